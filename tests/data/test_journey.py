"""The real data, with exact counts: the proof that the task is the one that the numbers are about."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from leadre.data import histories, tables
from leadre.data.histories import TEST, TRAIN, VALID, Logs, first_seen
from leadre.data.sources import journey
from leadre.errors import InputError


@pytest.fixture(scope="module")
def made() -> tables.Tables:
    return journey.read()


@pytest.fixture(scope="module")
def logs(made: tables.Tables) -> Logs:
    frames = {name: frame for name, frame in made.named().items() if name != "bad_rows"}
    return histories.build(**frames, positive="conversion")


def test_counts(logs: Logs) -> None:
    assert (len(logs.ads), len(logs.objects), len(logs.users)) == (3429, 3429, 2469)
    assert [len(logs.requests_of(split)) for split in (TRAIN, VALID, TEST)] == [77677, 11696, 13714]
    assert np.bincount(logs.domain_E).tolist() == [777840, 411920]
    assert sum(bool(first_seen(logs, int(r)).any()) for r in logs.requests_of(TEST)) == 7646
    per_request = np.diff(logs.inventory_offsets)[logs.request_inventory_R]
    assert 428 < per_request.mean() < 429


def test_everything_bought_in_the_ad_domain_was_live(logs: Logs) -> None:
    for r in range(0, len(logs.request_user_R), 101):
        ads, _ = logs.relevant(r)
        assert len(ads) and np.isin(ads, logs.inventory(r)).all()


def test_splits_follow_each_other(logs: Logs) -> None:
    at_us = [logs.request_at_us_R[logs.requests_of(split)] for split in (TRAIN, VALID, TEST)]
    assert at_us[0].max() < at_us[1].min() and at_us[1].max() < at_us[2].min()


def test_ads_are_readable(made: tables.Tables) -> None:
    titles = made.ads["title"]
    assert "Shredded cheese, private brand, manufacturer 69" in titles.to_list()
    assert made.ads.select("title", pl.col("category_path").list.join(">")).n_unique() == 3429
    assert made.ads["price_nanos"].null_count() == 0 and made.ads["price_nanos"].min() > 0
    cheese = made.ads.row(by_predicate=pl.col("title") == "Shredded cheese, private brand, manufacturer 69", named=True)
    assert cheese["category_path"] == ["Grocery", "Cheese", "Shredded cheese"]
    assert 1.0 < cheese["price_nanos"] / 1e9 < 5.0


def test_profiles(made: tables.Tables) -> None:
    assert (made.users["age"] != "unknown").sum() == 801
    assert made.users.null_count().sum_horizontal().item() == 0


def test_money_is_kept(made: tables.Tables) -> None:
    assert made.events["value_nanos"].sum() / 1e9 == pytest.approx(2_410_122.53 + 1_356_610.49, rel=2e-4)


def test_missing_file(tmp_path: object) -> None:
    with pytest.raises(InputError, match=r"transactions\.parquet: not there"):
        journey.read(tmp_path)  # type: ignore[arg-type]
