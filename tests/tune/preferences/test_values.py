"""Value of an impression from logs with bids: rates of events before the end of training, and one-line errors."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from leadre.data.bids import PRIOR_IMPRESSIONS, PRIOR_RATES
from leadre.data.histories import AD, train_end_us
from leadre.errors import InputError
from leadre.tune.preferences.values import training_values


@pytest.fixture
def logged(hand, tmp_path):
    """(tables, logs): ad 0 pays 2 a view, 1 and 2 pay 1,000 a click, 3 pays a conversion, 4 has no bid.

    Before the end of training ad 1 has 1,000 impressions and 100 clicks, and a click comes after it.
    """
    logs = hand([(0, 10, AD, 1, 0)], [(0, 20, "train", [1]), (0, 90, "test", [0])], live=range(5), objects=5)
    ends = datetime.fromtimestamp(train_end_us(logs) / 1e6, UTC)
    ads = logs.ads["ad_id"].to_list()
    rows = [(ends - timedelta(days=1), "ad", ads[1], "impression")] * 1000
    rows += [(ends - timedelta(days=1), "ad", ads[1], "click")] * 100
    rows += [(ends, "ad", ads[1], "click"), (ends - timedelta(days=1), "content", "elsewhere", "click")]
    events = pl.DataFrame(rows, schema=["at", "domain", "item_id", "action"], orient="row")
    events.write_parquet(tmp_path / "events.parquet")
    bid_type = pl.Series("bid_type", ["cpm", "cpc", "cpc", "cpa", None])
    bid_nanos = pl.Series("bid_nanos", [2, 1000, 1000, 10**6, 7])
    return SimpleNamespace(path=tmp_path), replace(logs, ads=logs.ads.with_columns(bid_type, bid_nanos))


def test_value_is_the_bid_times_the_rate_before_the_end_of_training(logged):
    overall = (100 + PRIOR_IMPRESSIONS * PRIOR_RATES["cpc"]) / (1000 + PRIOR_IMPRESSIONS)
    clicked = (100 + PRIOR_IMPRESSIONS * overall) / (1000 + PRIOR_IMPRESSIONS)
    expected = [2, int(1000 * clicked), int(1000 * overall), int(10**6 * PRIOR_RATES["cpa"]), 0]
    assert training_values(*logged).tolist() == expected
    assert expected[1] > expected[2]


def test_logs_without_bids_are_refused(logged):
    tables, logs = logged
    with pytest.raises(InputError, match=r"no column bid_nanos and no column bid_type.*--value price"):
        training_values(tables, replace(logs, ads=logs.ads.drop("bid_nanos", "bid_type")))
    with pytest.raises(InputError, match=r"no column bid_type, so"):
        training_values(tables, replace(logs, ads=logs.ads.drop("bid_type")))
    for missing in ({"bid_nanos": pl.lit(0)}, {"bid_type": pl.lit(None, pl.String)}):
        with pytest.raises(InputError, match="none of 5 ads has both"):
            training_values(tables, replace(logs, ads=logs.ads.with_columns(**missing)))


def test_bids_for_clicks_need_impressions(logged):
    tables, logs = logged
    events = pl.read_parquet(tables.path / "events.parquet")
    events.filter(pl.col("action") != "impression").write_parquet(tables.path / "events.parquet")
    with pytest.raises(InputError, match=r"3 ads pay for clicks or conversions.*hold no impression"):
        training_values(tables, logs)
    by_view = logs.ads.with_columns(bid_type=pl.lit("cpm"))
    assert training_values(tables, replace(logs, ads=by_view)).tolist() == np.array([2, 1000, 1000, 10**6, 7]).tolist()
