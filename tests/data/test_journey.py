"""The real data, with exact counts: the published results are about this task."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from leadre.data import histories
from leadre.data.histories import TEST, TRAIN, VALID, Logs, first_seen
from leadre.data.sources import journey
from leadre.data.tables import Tables
from leadre.errors import InputError


@pytest.fixture(scope="module")
def tables() -> Tables:
    return journey.read()


@pytest.fixture(scope="module")
def logs(tables: Tables) -> Logs:
    return histories.of_tables(tables, "conversion")


def test_counts(logs: Logs) -> None:
    assert (len(logs.ads), len(logs.objects), len(logs.users)) == (3429, 3429, 2469)
    assert [len(logs.requests_of(split)) for split in (TRAIN, VALID, TEST)] == [77677, 11696, 13714]
    assert np.bincount(logs.domain_E).tolist() == [777840, 411920]
    assert sum(bool(first_seen(logs, int(r)).any()) for r in logs.requests_of(TEST)) == 7646
    assert 428 < logs.inventories.sizes_R.mean() < 429


def test_visits_without_a_conversion_are_empty_requests(tables: Tables, logs: Logs) -> None:
    empty = tables.empty_requests
    assert dict(empty["split"].value_counts().iter_rows()) == {"train": 26927, "valid": 4301, "test": 4819}
    every = histories.of_tables(tables, "conversion", empty=True)
    assert len(every.request_user_R) == 103_087 + 36_047 == every.request_at_us_R.size
    assert (every.inventories.sizes_R > 0).all()
    is_empty_R = np.diff(every.relevant_offsets) == 0
    assert is_empty_R.sum() == empty.height and every.relevant_ads.size == logs.relevant_ads.size
    ads = tables.events.filter(pl.col("domain") == "ad")
    assert ads.join(empty, on="request_id", how="semi").height == 0
    at_us = [every.request_at_us_R[every.requests_of(split)] for split in (TRAIN, VALID, TEST)]
    assert at_us[0].max() < at_us[1].min() and at_us[1].max() < at_us[2].min()


def test_conversions_are_of_live_ads(logs: Logs) -> None:
    for r in range(0, len(logs.request_user_R), 101):
        ads, _ = logs.relevant(r)
        assert len(ads) and np.isin(ads, logs.inventory(r)).all()


def test_splits_are_ordered_by_time(logs: Logs) -> None:
    at_us = [logs.request_at_us_R[logs.requests_of(split)] for split in (TRAIN, VALID, TEST)]
    assert at_us[0].max() < at_us[1].min() and at_us[1].max() < at_us[2].min()


def test_titles_categories_and_prices(tables: Tables) -> None:
    titles = tables.ads["title"]
    assert "Shredded cheese, private brand, manufacturer 69" in titles.to_list()
    assert tables.ads.select("title", pl.col("category_path").list.join(">")).n_unique() == 3429
    assert tables.ads["price_nanos"].null_count() == 0 and tables.ads["price_nanos"].min() > 0
    cheese = tables.ads.row(
        by_predicate=pl.col("title") == "Shredded cheese, private brand, manufacturer 69", named=True
    )
    assert cheese["category_path"] == ["Grocery", "Cheese", "Shredded cheese"]
    assert 1.0 < cheese["price_nanos"] / 1e9 < 5.0


def test_profiles(tables: Tables) -> None:
    assert (tables.users["age"] != "unknown").sum() == 801
    assert tables.users.null_count().sum_horizontal().item() == 0


def test_total_value_equals_the_sales(tables: Tables) -> None:
    assert tables.events["value_nanos"].sum() / 1e9 == pytest.approx(2_410_122.53 + 1_356_610.49, rel=2e-4)


@pytest.fixture(scope="module")
def few_buyers() -> Tables:
    return journey.read(task=journey.Task(at_least=10, at_most=19))


def test_ads_of_few_buyers_are_no_ads_of_the_first_task(tables: Tables, few_buyers: Tables) -> None:
    described = ["title", "category_path"]
    assert (len(few_buyers.ads), len(few_buyers.contents)) == (1386, 1386 + 3429)
    assert few_buyers.ads.join(tables.ads, on=described, how="semi").is_empty()
    contents = few_buyers.contents.join(few_buyers.ads, left_on="content_id", right_on="object_id", how="anti")
    assert contents.join(tables.contents, on=described, how="anti").is_empty()


def test_ads_of_few_buyers_have_10_to_19_households_in_the_training_weeks(tables: Tables, few_buyers: Tables) -> None:
    train_end = tables.requests.filter(pl.col("split") == "valid")["at"].min()
    events = few_buyers.events.filter(pl.col("at") < train_end).join(
        few_buyers.ads, left_on="item_id", right_on="ad_id"
    )
    households = events.group_by("item_id").agg(pl.col("user_id").n_unique())["user_id"]
    assert (len(households), households.min(), households.max()) == (1386, 10, 19)


def test_lines_above_the_bound_are_content_where_they_are_promoted_too(tables: Tables, few_buyers: Tables) -> None:
    conversions = few_buyers.events.filter(pl.col("domain") == "ad")
    assert set(conversions["item_id"]) <= set(few_buyers.ads["ad_id"])
    assert set(few_buyers.inventories["ad_id"]) <= set(few_buyers.ads["ad_id"])
    assert set(few_buyers.requests["request_id"]) == set(conversions["request_id"])
    assert len(few_buyers.events) > len(tables.events)


def test_products_are_live_wherever_a_store_promotes_them(tables: Tables) -> None:
    products = journey.read(task=journey.Task(at_least=20, products=True))
    assert (len(products.ads), products.ads["title"].n_unique()) == (8306, 4661)
    assert products.ads["title"][0] == "Apples braeburn (bulk&bag), national brand, manufacturer 2"
    assert products.inventories["inventory_id"].n_unique() == 53
    sizes = products.inventories.group_by("inventory_id").len()["len"]
    assert (sizes.min(), sizes.max()) == (3440, 4341)
    assert (len(products.requests), len(products.empty_requests)) == (113_611, 27_519)
    assert len(products.requests.join(tables.requests, on="request_id", how="semi")) == 97_068
    events = products.events.filter(pl.col("domain") == "ad")
    assert set(events["item_id"]) <= set(products.inventories["ad_id"])


def test_bounds_without_a_line_are_refused() -> None:
    with pytest.raises(InputError, match="no line has 30 or more buyers and at most 10"):
        journey.read(task=journey.Task(at_least=30, at_most=10))


def test_missing_file(tmp_path: object) -> None:
    with pytest.raises(InputError, match=r"transactions\.parquet: no such file"):
        journey.read(tmp_path)  # type: ignore[arg-type]
