"""Windows against the definition of a live ad, which tries every window on every request."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.data import hidden, histories, requests
from leadre.data.inventories import Inventories
from leadre.data.split import SplitTimes
from leadre.data.tables import FILE, INVENTORIES, ROW, SCHEMAS, TEXT, TIME, Tables, complete
from tests.data.conftest import live_ads

START = datetime(2026, 3, 1, tzinfo=UTC)
ADS = 5
ITEM_A = np.array([0, 1, 1, 2, 0], np.int32)  # several ads of an item

hours = st.integers(0, 8)  # few hours, so that bounds coincide with each other and with requests
bounds = st.none() | hours
moments = st.lists(st.tuples(st.sampled_from(["left", "right"]), hours), min_size=1, max_size=12)
windows = st.lists(
    st.tuples(st.sampled_from([None, "left", "right", "never"]), st.integers(0, ADS - 1), bounds, bounds)
)


def at(hour: int | None) -> datetime | None:
    return None if hour is None else START + timedelta(hours=hour)


def ad_ids() -> pl.Series:
    return pl.Series([f"a{a}" for a in range(ADS)])


def tables(
    times: list[tuple[str, int]], live: list[tuple[str, int, int | None, int | None]]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    request_rows = [(name, at(hour)) for name, hour in times]
    rows = [(name, f"a{ad}", at(start), at(end)) for name, ad, start, end in live]
    return (
        pl.DataFrame(request_rows, schema={"inventory_id": TEXT, "at": TIME}, orient="row"),
        pl.DataFrame(rows, schema=INVENTORIES, orient="row"),
    )


@settings(max_examples=100, deadline=None)
@given(times=moments, live=windows)
def test_windows_have_the_live_ads_of_their_definition(times, live):
    request_rows, rows = tables(times, live)
    inventories = Inventories.of(request_rows, rows, ad_ids())
    expected = [[int(ad_id[1:]) for ad_id in ads] for ads in live_ads(request_rows, rows)]
    count = len(times)
    assert [inventories.ads(r).tolist() for r in range(count)] == expected
    assert inventories.sizes_R.tolist() == [len(ads) for ads in expected]
    same = inventories.set_R[:, None] == inventories.set_R
    assert same.tolist() == [[a == b for b in expected] for a in expected]
    for number, r in enumerate(inventories.request_S):
        assert inventories.set_R[r] == number
    pairs = [(r, a) for r in range(count) for a in range(ADS)]
    is_live = inventories.is_live(*np.array(pairs).T)
    assert is_live.tolist() == [a in expected[r] for r, a in pairs]


@settings(max_examples=50, deadline=None)
@given(times=moments, live=windows, seed=st.integers(0, 9))
def test_exposures_count_an_item_once_in_a_request(times, live, seed):
    request_rows, rows = tables(times, live)
    inventories = Inventories.of(request_rows, rows, ad_ids())
    counted_R = np.random.default_rng(seed).random(len(times)) < 0.6
    sets = [{int(ad_id[1:]) for ad_id in ads} for ads in live_ads(request_rows, rows)]
    chosen = [ads for ads, is_counted in zip(sets, counted_R, strict=True) if is_counted]
    expected = [sum(any(ITEM_A[a] == item for a in ads) for ads in chosen) for item in range(3)]
    assert inventories.exposures(counted_R, ITEM_A, 3).tolist() == expected
    assert inventories.ever_live(counted_R).tolist() == sorted(set().union(*chosen))


def test_rows_of_an_artifact_without_bounds_are_always_live():
    request_rows, rows = tables([("left", 3), ("right", 1)], [("left", 2, None, None), ("right", 4, None, None)])
    inventories = Inventories.of(request_rows, rows.drop("starts_at", "ends_at"), ad_ids())
    assert [inventories.ads(r).tolist() for r in (0, 1)] == [[2], [4]]


placements = st.none() | st.sampled_from(["top", "side", "everywhere"])
visits = st.lists(st.tuples(placements, hours, st.integers(0, ADS - 1)), max_size=12)
placed = st.lists(st.tuples(placements, st.integers(0, ADS - 1), bounds, bounds))
ANCHOR = ADS  # an ad of the first and the last requests, so that no split is empty; it is not live in between


@settings(max_examples=40, deadline=None)
@given(visits=visits, live=placed)
def test_requests_of_a_log_have_the_ads_live_at_their_placement_and_time(visits, live):
    visits = [("top", -9, ANCHOR), *visits, ("top", 24, ANCHOR), ("top", 48, ANCHOR)]
    live = [*live, (None, ANCHOR, None, -1), ("top", ANCHOR, 24, None)]
    expected = {}
    for n, (placement, hour, _) in enumerate(visits):
        expected[f"r{n}"] = {
            ad
            for where, ad, start, end in live
            if where in (None, placement or requests.EVERYWHERE)
            and (start is None or start <= hour)
            and (end is None or hour < end)
        }
    converted = {f"r{n}" for n, (_, _, ad) in enumerate(visits) if ad in expected[f"r{n}"]}
    derived = derive(visits, live)
    assert sets_of(derived) == {name: ads for name, ads in expected.items() if ads}
    assert set(derived.events["request_id"]) == converted
    late = hidden.launch_late(derived, pl.Series(["a0", "a1"]), positive="conversion", keep_empty=True)
    held_out = {f"r{n}" for n in range(len(visits) - 2, len(visits))}
    launched = {name: ads if name in held_out else ads - {0, 1} for name, ads in expected.items()}
    assert sets_of(late) == {name: ads for name, ads in launched.items() if ads}


def test_window_of_all_placements_is_stored_once() -> None:
    placements = [f"p{n}" for n in range(40)]
    visits = [(placements[n % 40], n - 60, n % 5) for n in range(240)]
    live = [(None, ad, None, None) for ad in range(5)] + [(name, ANCHOR, None, None) for name in placements]
    derived = derive(visits, live)
    assert len(derived.inventories) == len(live)
    assert all(ads == set(range(6)) for ads in sets_of(derived).values())


def derive(visits, live) -> Tables:
    """The tables of visits (placement, hour, ad that converts) with windows (placement, ad, first hour, end)."""
    events = [
        (f"u{n % 3}", at(hour), "ad", f"a{ad}", "conversion", None, placement, f"r{n}", n, "events")
        for n, (placement, hour, ad) in enumerate(visits)
    ]
    rows = [(f"a{ad}", placement, at(start), at(end)) for placement, ad, start, end in live]
    ids = pl.Series([f"a{a}" for a in range(ADS + 1)])
    ads = complete("ads", pl.DataFrame({"ad_id": ids, "title": ids, "object_id": ids}))
    derived = requests.derive(
        ads=ads,
        events=pl.DataFrame(events, schema={**SCHEMAS["events"].columns, ROW: pl.Int64, FILE: TEXT}, orient="row"),
        windows=pl.DataFrame(rows, schema=SCHEMAS["inventory"].columns, orient="row"),
        listed=None,
        cut=SplitTimes(valid_from="2026-03-02", test_from="2026-03-03"),
        positive="conversion",
        keep_empty=True,
    )
    return Tables(
        ads=ads,
        contents=pl.DataFrame(schema=SCHEMAS["contents"].columns),
        users=pl.DataFrame({"user_id": ["u0", "u1", "u2"]}),
        events=derived.events.select(list(SCHEMAS["events"].columns)),
        requests=derived.requests,
        inventories=derived.inventories,
        bad_rows=derived.bad_rows,
    )


def sets_of(checked: Tables) -> dict[str, set[int]]:
    """The live ads of each request, as the stages read them."""
    logs = histories.of_tables(checked, "conversion")
    ids = checked.requests.sort(histories.REQUEST_ORDER)["request_id"]
    return {name: set(logs.inventory(r).tolist()) for r, name in enumerate(ids)}


def test_many_ids_and_times_exceed_no_key() -> None:
    """60,000 IDs x 80,000 times exceed 32 bits. Each request has one ad; with keys of 32 bits many had none."""
    requests = 80_000
    ids = [f"i{r % 60_000:05d}" for r in range(requests)]
    ad_ids = pl.Series([f"a{i:05d}" for i in range(60_000)])
    visits = pl.DataFrame({"inventory_id": ids, "at": pl.from_epoch(pl.int_range(requests, eager=True), "s")})
    open_end = pl.lit(None, pl.Datetime("us", "UTC"))
    windows = pl.DataFrame({"inventory_id": [f"i{i:05d}" for i in range(60_000)], "ad_id": ad_ids}).with_columns(
        starts_at=open_end, ends_at=open_end
    )
    live = Inventories.of(visits, windows, ad_ids)
    assert (live.sizes_R == 1).all()
    assert [live.ads(r).tolist() for r in (0, 59_999, 60_000, 79_999)] == [[0], [59_999], [0], [19_999]]
