"""Flat arrays against a naive reading of the same tables; a request does not see its own instant."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from leadre.data import histories, moment, tables, world
from leadre.data.histories import AD, CONTENT, Logs, first_seen
from tests.data.conftest import live_ads

T0 = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def market() -> tuple[tables.Tables, Logs]:
    source = world.read(seed=3, users=30, ads=40, contents=10)
    return source, histories.of_tables(source, "conversion")


def test_arrays_equal_a_naive_reading_of_the_tables(market: tuple[tables.Tables, Logs]) -> None:
    source, logs = market
    requests = source.requests.sort("user_id", "at", "request_id")
    for r in range(0, requests.height, 17):
        row = requests.row(r, named=True)
        wins = (pl.col("domain") == "ad") & (pl.col("action") == "conversion")
        own_events = source.events.filter(
            (pl.col("user_id") == row["user_id"]) & (wins | (pl.col("domain") == "content"))
        )
        past = own_events.filter(pl.col("at") < row["at"]).sort("at")
        names = logs.objects["object_id"].gather(logs.object_E[logs.history(r)])
        assert names.len() == past.height
        objects = dict(source.ads.select("ad_id", "object_id").iter_rows())
        assert sorted(names) == sorted(objects.get(item, item) for item in past["item_id"])
        here = own_events.filter(wins & (pl.col("request_id") == row["request_id"]))
        value = here.group_by("item_id").agg(pl.sum("value_nanos")).sort("item_id")
        ads, value_nanos = logs.relevant(r)
        assert logs.ads["ad_id"].gather(ads).to_list() == value["item_id"].to_list()
        assert value_nanos.tolist() == value["value_nanos"].to_list()
        (live,) = live_ads(requests[r], source.inventories)
        assert logs.ads["ad_id"].gather(logs.inventory(r)).to_list() == list(live)
        assert logs.placements[logs.request_placement_R[r]] == row["placement_id"]


def test_arrays_agree_with_each_other(market: tuple[tables.Tables, Logs]) -> None:
    _, logs = market
    assert [logs.history_end(r) for r in range(len(logs.request_user_R))] == logs.history_ends().tolist()
    assert ((logs.domain_E == AD) == (logs.ad_E >= 0)).all()
    assert (logs.object_E[logs.domain_E == AD] == logs.ad_object_A[logs.ad_E[logs.domain_E == AD]]).all()
    assert logs.event_offsets[-1] == len(logs.at_us_E) == len(logs.request_E)
    for u in range(len(logs.users)):
        assert (np.diff(logs.at_us_E[logs.event_offsets[u] : logs.event_offsets[u + 1]]) >= 0).all()
    assert {len(logs.requests_of(split)) > 0 for split in (histories.TRAIN, histories.VALID, histories.TEST)} == {True}


def test_history_of_a_million_events_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that follow each other share the begin; nothing changes for users with few events."""
    source = world.read(seed=3, users=30, ads=40, contents=10)
    whole = moment.of_requests(histories.of_tables(source, "conversion"))
    monkeypatch.setattr(histories, "MAX_HISTORY", 8)
    logs = histories.of_tables(source, "conversion")
    bounded = moment.of_requests(logs)
    now = moment.as_of(logs, 2**62, np.arange(len(logs.users)), np.zeros(0, np.int32))
    sizes = [len(bounded[m].history) for m in range(len(bounded))]
    all_sizes = [len(whole[m].history) for m in range(len(whole))]
    assert sizes == [size if size < 16 else 8 + size % 8 for size in all_sizes]
    assert max(all_sizes) > 16
    assert max(len(now[m].history) for m in range(len(now))) < 16
    for m in range(len(bounded)):
        assert bounded[m].history.object_E.tolist() == whole[m].history.object_E[all_sizes[m] - sizes[m] :].tolist()
        assert len(logs.object_E[logs.history(m)]) == sizes[m]
    assert len(np.unique(bounded.begin_M)) < len(np.unique(bounded.end_M)) / 3


def hand_made(c: str = "c") -> Logs:
    """One user: a view of content ``c``; two visits in the same second; a late conversion of a train request."""
    ads = pl.DataFrame({"ad_id": ["x", "y", "z"], "object_id": ["ox", "oy", "ox"], "title": ["X", "Y", "Z"]})
    contents = pl.DataFrame({"content_id": ["oy", c], "title": ["unused title", "C"]})
    rows = [
        ("u", 0, "content", "oy", "view", None, None),
        ("u", 60, "ad", "x", "conversion", 3, "r1"),
        ("u", 60, "ad", "y", "click", 0, "r2"),
        ("u", 60, "ad", "y", "conversion", 4, "r2"),
        ("u", 60, "ad", "x", "conversion", 1, "r1"),
        ("u", 120, "content", c, "impression", None, None),
        ("u", 950, "content", c, "view", None, None),
        ("u", 300, "ad", "z", "conversion", 9, "r3"),
        ("u", 320, "ad", "y", "conversion", 7, "r1"),  # arrives after validation began
        ("u", 900, "ad", "x", "conversion", 2, "r4"),
    ]
    names = ("user_id", "at", "domain", "item_id", "action", "value_nanos", "request_id")
    events = pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None)
    times = pl.Series("at", [T0 + timedelta(seconds=s) for s in events["at"]])
    events = events.with_columns(times.dt.cast_time_unit("us"))
    visits = [("r2", 60, "train"), ("r1", 60, "train"), ("r3", 300, "valid"), ("r4", 900, "test")]
    requests = pl.DataFrame(
        [(r, "u", T0 + timedelta(seconds=s), None, "all", split) for r, s, split in visits],
        schema=tables.REQUESTS,
        orient="row",
    )
    return histories.build(
        ads=tables.complete("ads", ads),
        contents=tables.complete("contents", contents),
        users=pl.DataFrame({"user_id": ["u"]}),
        events=tables.complete("events", events),
        requests=requests,
        inventories=tables.always_live(pl.DataFrame({"inventory_id": ["all"] * 3, "ad_id": ["z", "y", "x"]})),
        positive="conversion",
    )


def test_ads_and_contents_share_object_ids_and_first_ad_describes_the_object() -> None:
    logs = hand_made()
    assert logs.objects["object_id"].to_list() == ["c", "ox", "oy"]
    assert logs.objects["title"].to_list() == ["C", "X", "Y"]
    assert logs.ad_object_A.tolist() == [1, 2, 1]


def test_content_with_the_id_of_an_ad_is_another_object() -> None:
    logs = hand_made("z")
    assert logs.objects["object_id"].to_list() == ["ox", "oy", "z"]
    last = (logs.domain_E[-1], logs.ad_E[-1], logs.object_E[-1])
    assert last == (CONTENT, -1, 2)


def test_visits_at_one_instant_are_not_in_each_others_history() -> None:
    logs = hand_made()
    for r in (0, 1):
        past = logs.history(r)
        assert logs.object_E[past].tolist() == [2]
        assert logs.domain_E[past].tolist() == [CONTENT]


def test_relevant_ads_sum_money_and_leave_clicks_out() -> None:
    logs = hand_made()
    assert [a.tolist() for a in logs.relevant(0)] == [[0], [4]]  # r1: x twice; the late y is no label
    assert [a.tolist() for a in logs.relevant(1)] == [[1], [4]]


def test_late_conversion_is_history_but_no_label() -> None:
    logs = hand_made()
    assert logs.object_E[logs.history(3)].tolist() == [2, 1, 1, 2, 1, 2]  # view, r1 x x, r2 y, r3 z, late y


def test_first_seen_counts_objects_in_both_domains() -> None:
    logs = hand_made()
    assert first_seen(logs, 0).tolist() == [True]  # ox
    assert first_seen(logs, 1).tolist() == [False]  # oy was viewed as content
    assert first_seen(logs, 2).tolist() == [False]  # z is ox again


@pytest.mark.parametrize(
    ("times", "clock"),
    [
        (["2026-03-01T00:00", "2026-03-04T00:00"], "days"),
        (["2026-03-01T00:00", "2026-03-04T00:01"], "instants"),
        ([], "instants"),
    ],
)
def test_times_that_are_all_at_midnight_are_days(times: list[str], clock: str) -> None:
    at = pl.Series("at", [datetime.fromisoformat(time).replace(tzinfo=UTC) for time in times], dtype=tables.TIME)
    assert histories.clock_of(at) == clock
