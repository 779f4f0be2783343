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
    frames = {name: frame for name, frame in tables.named().items() if name != "bad_rows"}
    return histories.build(**frames, positive="conversion")


def test_counts(logs: Logs) -> None:
    assert (len(logs.ads), len(logs.objects), len(logs.users)) == (3429, 3429, 2469)
    assert [len(logs.requests_of(split)) for split in (TRAIN, VALID, TEST)] == [77677, 11696, 13714]
    assert np.bincount(logs.domain_E).tolist() == [777840, 411920]
    assert sum(bool(first_seen(logs, int(r)).any()) for r in logs.requests_of(TEST)) == 7646
    per_request = np.diff(logs.inventory_offsets)[logs.request_inventory_R]
    assert 428 < per_request.mean() < 429


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


def test_missing_file(tmp_path: object) -> None:
    with pytest.raises(InputError, match=r"transactions\.parquet: no such file"):
        journey.read(tmp_path)  # type: ignore[arg-type]
