"""Events -> requests with live inventories, for logs that record events only.

A request is a distinct ``request_id`` of ad-domain events or, in a log without request IDs, a user and an instant. Its
time is that of its first ad event. The ``inventory`` table defines the live ads: an ad in a placement from
``starts_at`` until before ``ends_at``; a missing bound is open, a missing placement means all. Without that table the
ads define it: status active, between their ``starts_at`` and ``ends_at``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from leadre.data import histories, tables
from leadre.data.histories import I32, I64
from leadre.data.split import SplitTimes, by_time, split_like
from leadre.errors import InputError

EVERYWHERE = "everywhere"  # the placement of events without one
_OPEN_START = np.iinfo(np.int64).min
_OPEN_END = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True)
class DerivedRequests:
    """Result of ``derive``; frames as in ``tables``."""

    events: pl.DataFrame
    requests: pl.DataFrame
    inventories: pl.DataFrame
    bad_rows: pl.DataFrame
    empty_requests: pl.DataFrame
    empty_inventories: pl.DataFrame
    late: dict[str, int]  # split -> requests without a label, as all their outcomes came after the next split began


def derive(
    *,
    ads: pl.DataFrame,
    events: pl.DataFrame,
    windows: pl.DataFrame,
    listed: pl.DataFrame | None,
    cut: SplitTimes,
    positive: str,
    keep_empty: bool,
) -> DerivedRequests:
    """Requests and inventories of ``events`` (with ROW and FILE, known items only).

    ``windows``: the inventory table, or ``windows_of(ads)``. ``listed``: the requests table of the user's log; its rows
    replace derived requests of the same ID. Ad events that contradict their request (another user, before the request,
    an ad not live then) are bad rows. Requests without a positive event are apart, unless ``keep_empty``. Raises
    InputError if no other request is left, or none of a split.
    """
    events = _with_request_ids(events)
    requests = _from_events(events)
    if listed is not None:
        requests = _replace_listed(requests, listed)
    requests = requests.with_columns(pl.col("placement_id").fill_null(EVERYWHERE)).sort("at", "user_id", "request_id")
    requests, inventories = _with_inventories(requests, windows, ads)
    events, bad_rows = _drop_contradictions(events, requests, inventories)
    hits = histories.positives(events, positive).filter(pl.col("domain") == "ad")
    all_requests = requests
    if not keep_empty:
        requests = requests.join(hits.select("request_id").unique(), on="request_id", how="semi", maintain_order="left")
    if not requests.height:
        raise InputError(
            f"no request has a {positive!r} of a live ad; check the columns domain and action of events, the inventory"
            " windows, and --positive (or pass --keep-empty true)\n" + _examples(bad_rows)
        )
    requests = requests.with_columns(by_time(requests["at"], cut))
    requests, late = _without_late(requests, hits, positive, keep_empty)
    requests = requests.select(list(tables.REQUESTS))
    empty = all_requests.join(requests, on="request_id", how="anti", maintain_order="left")
    empty = empty.with_columns(split_like(empty["at"], requests)).select(list(tables.REQUESTS))
    inventories, empty_inventories = tables.inventories_of(requests, empty, inventories)
    return DerivedRequests(
        events=events,
        requests=requests,
        inventories=inventories,
        bad_rows=bad_rows,
        empty_requests=empty,
        empty_inventories=empty_inventories,
        late=late,
    )


def windows_of(ads: pl.DataFrame) -> pl.DataFrame:
    """The inventory table that follows from the ads' status and dates: each active ad in every placement."""
    active = ads.filter(pl.col("status").fill_null("active") == "active")
    return active.select(pl.lit(None, pl.String).alias("placement_id"), "starts_at", "ends_at", "ad_id")


def _without_late(
    requests: pl.DataFrame, hits: pl.DataFrame, positive: str, keep_empty: bool
) -> tuple[pl.DataFrame, dict[str, int]]:
    """(the requests, by default only those with an outcome in time; the others with one, by split).

    Raises InputError if a split has no outcome in time, unless ``keep_empty``.
    """
    in_time = histories.in_time(hits, requests).select("request_id").unique()
    labelled = requests.join(in_time, on="request_id", how="semi", maintain_order="left")
    hit = requests.join(hits.select("request_id").unique(), on="request_id", how="semi")
    count_of = dict(hit["split"].value_counts().iter_rows())
    left = dict(labelled["split"].value_counts().iter_rows())
    late = {split: count_of.get(split, 0) - left.get(split, 0) for split in ("train", "valid", "test")}
    for split, count in late.items():
        if count and not left.get(split) and not keep_empty:
            raise InputError(
                f"no request of {split} has a label: the {positive}s of all {count:,} came after the next split began,"
                " so they were unknown then; set --valid-from and --test-from further apart than the delay, or count an"
                " earlier action as success (--positive)"
            )
    return requests if keep_empty else labelled, {split: count for split, count in late.items() if count}


def _with_request_ids(events: pl.DataFrame) -> pl.DataFrame:
    derived_id = pl.format("{}@{}", "user_id", pl.col("at").dt.epoch("us"))
    is_ad = pl.col("domain") == "ad"
    return events.with_columns(
        request_id=pl.when(is_ad).then(pl.coalesce("request_id", derived_id)).otherwise("request_id")
    )


def _from_events(events: pl.DataFrame) -> pl.DataFrame:
    in_order = events.filter(pl.col("domain") == "ad").sort("at", maintain_order=True)
    return in_order.group_by("request_id", maintain_order=True).agg(
        pl.first("user_id"), pl.first("at"), pl.col("placement_id").drop_nulls().first()
    )


def _replace_listed(requests: pl.DataFrame, listed: pl.DataFrame) -> pl.DataFrame:
    columns = ["request_id", "user_id", "at", "placement_id"]
    return pl.concat([listed.select(columns), requests.select(columns).join(listed, on="request_id", how="anti")])


def _drop_contradictions(
    events: pl.DataFrame, requests: pl.DataFrame, inventories: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(events without ad events that contradict their request, those as bad rows)."""
    request_columns = requests.select(
        "request_id", "inventory_id", r_user="user_id", r_at="at", is_request=pl.lit(True)
    )
    live = inventories.select("inventory_id", item_id="ad_id", is_live=pl.lit(True))
    joined = events.join(request_columns, on="request_id", how="left", maintain_order="left")
    joined = joined.join(live, on=["inventory_id", "item_id"], how="left", maintain_order="left")
    is_ad = pl.col("domain") == "ad"
    other_user = is_ad & (pl.col("user_id") != pl.col("r_user"))
    early = is_ad & (pl.col("at") < pl.col("r_at"))
    absent = is_ad & pl.col("is_live").is_null()
    rules = (
        ("request_id", other_user, pl.format("belongs to another user: request {} is {}'s", "request_id", "r_user")),
        ("at", early, pl.format("is before its request: {} begins {}", "request_id", "r_at")),
        ("item_id", absent, pl.format("was not live there and then: {} at {}", "item_id", "at")),
    )
    bad_rows = []
    for column, rule, why in rules:
        rule = rule.fill_null(False)
        bad_rows.append(tables.as_bad_rows("events", joined.filter(rule), column, why))
        joined = joined.filter(~rule)
    return joined.select(events.columns), pl.concat(bad_rows)


def _with_inventories(
    requests: pl.DataFrame, windows: pl.DataFrame, ads: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(requests with ``inventory_id``, without those that have no live ad; the inventories).

    Between two consecutive bounds of a placement's windows the live ads do not change, so they are computed once for
    each such interval. Intervals with the same ads share an inventory.
    """
    ads = ads.sort("ad_id")
    index = pl.DataFrame({"ad_id": ads["ad_id"], "index": np.arange(len(ads), dtype=np.int32)})
    windows = windows.join(index, on="ad_id", how="inner", maintain_order="left")
    number_of: dict[bytes, int] = {}
    sets: list[I32] = []
    inventory = np.full(len(requests), -1, np.int64)
    for (placement,), rows in requests.with_row_index("at_row").group_by("placement_id", maintain_order=True):
        placed = windows.filter((pl.col("placement_id") == placement) | pl.col("placement_id").is_null())
        starts_us = _bounds(placed["starts_at"], _OPEN_START)
        ends_us = _bounds(placed["ends_at"], _OPEN_END)
        ad_index = placed["index"].to_numpy()
        at_us = rows["at"].dt.epoch("us").to_numpy()
        interval = np.searchsorted(np.unique(np.concatenate([starts_us, ends_us])), at_us, side="right")
        _, first, inverse = np.unique(interval, return_index=True, return_inverse=True)
        numbers = np.empty(len(first), np.int64)
        for k, moment_us in enumerate(at_us[first]):
            live: I32 = np.unique(ad_index[(starts_us <= moment_us) & (moment_us < ends_us)])
            number = number_of.setdefault(live.tobytes(), len(number_of))
            if number == len(sets):
                sets.append(live)
            numbers[k] = number if len(live) else -1
        inventory[rows["at_row"].to_numpy()] = numbers[inverse]
    return _named_inventories(requests, inventory, sets, ads)


def _named_inventories(
    requests: pl.DataFrame, inventory: I64, sets: list[I32], ads: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    requests = requests.with_columns(_inventory_id(pl.Series(inventory)))
    flat = np.concatenate([*sets, np.empty(0, np.int32)])
    number = np.repeat(np.arange(len(sets)), [len(entry) for entry in sets])
    inventories = pl.DataFrame({"inventory_id": _inventory_id(pl.Series(number)), "ad_id": ads["ad_id"].gather(flat)})
    return requests.filter(pl.Series(inventory >= 0)), inventories


def _inventory_id(number: pl.Series) -> pl.Series:
    return ("inventory-" + number.cast(pl.String).str.zfill(6)).alias("inventory_id")


def _bounds(at: pl.Series, missing: int) -> I64:
    result: I64 = at.dt.epoch("us").fill_null(missing).to_numpy()
    return result


def _examples(bad_rows: pl.DataFrame) -> str:
    columns = ("file", "row", "column", "why")
    return "\n".join("  {}, row {}: {} {}".format(*row) for row in bad_rows.head(3).select(columns).iter_rows())
