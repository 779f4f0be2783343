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
from leadre.data.inventories import Inventories
from leadre.data.split import SplitTimes, by_time, split_like
from leadre.errors import InputError

EVERYWHERE = "everywhere"  # the placement of events without one
_WINDOW = ("ad_id", "starts_at", "ends_at")


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
    requests, inventories = _with_inventories(requests, windows)
    ad_ids = ads["ad_id"].sort()
    live = Inventories.of(requests, inventories, ad_ids)
    events, bad_rows = _drop_contradictions(events, requests, live, ad_ids)
    requests = requests.filter(live.sizes_R > 0)
    hits = histories.positives(events.filter(pl.col("domain") == "ad"), positive)
    all_requests = requests
    if not keep_empty:
        requests = requests.join(hits.select("request_id").unique(), on="request_id", how="semi", maintain_order="left")
    if not requests.height:
        raise InputError(
            f"no request has a {positive!r} of a live ad; check the columns domain and action of events, the inventory"
            " windows, and --positive (or pass --keep-empty true)" + _examples(bad_rows)
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
    rows = events.select((pl.col("domain") == "ad") & pl.col("request_id").is_null()).to_series().arg_true()
    if not len(rows):
        return events
    derived_id = pl.format("{}@{}", "user_id", pl.col("at").dt.epoch("us"))
    ids = events.select("user_id", "at")[rows].select(derived_id).to_series()
    return events.with_columns(events["request_id"].scatter(rows, ids))


def _from_events(events: pl.DataFrame) -> pl.DataFrame:
    in_order = events.filter(pl.col("domain") == "ad").sort("at", maintain_order=True)
    return in_order.group_by("request_id", maintain_order=True).agg(
        pl.first("user_id"), pl.first("at"), pl.col("placement_id").drop_nulls().first()
    )


def _replace_listed(requests: pl.DataFrame, listed: pl.DataFrame) -> pl.DataFrame:
    columns = ["request_id", "user_id", "at", "placement_id"]
    return pl.concat([listed.select(columns), requests.select(columns).join(listed, on="request_id", how="anti")])


def _drop_contradictions(
    events: pl.DataFrame, requests: pl.DataFrame, live: Inventories, ad_ids: pl.Series
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(events without ad events that contradict their request, those as bad rows)."""
    request_columns = requests.select("request_id", r_user="user_id", r_at="at").with_row_index("r")
    of_ads = events.with_row_index("e").filter(pl.col("domain") == "ad")
    joined = of_ads.join(request_columns, on="request_id", how="left", maintain_order="left")
    has_request = joined["r"].is_not_null()
    pairs = joined.filter(has_request)
    is_live = np.zeros(len(joined), np.bool_)
    is_live[has_request.to_numpy()] = live.is_live(pairs["r"].to_numpy(), tables.positions(pairs["item_id"], ad_ids))
    joined = joined.with_columns(is_live=is_live)
    other_user = pl.col("user_id") != pl.col("r_user")
    early = pl.col("at") < pl.col("r_at")
    absent = ~pl.col("is_live")
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
    if len(joined) < len(of_ads):
        bad_events = of_ads["e"].filter(~of_ads["e"].is_in(joined["e"].implode()))
        events = events.with_row_index("e").filter(~pl.col("e").is_in(bad_events.implode())).drop("e")
    return events, pl.concat(bad_rows)


def _with_inventories(requests: pl.DataFrame, windows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(requests with ``inventory_id``, the inventories: each window of the log once).

    Placements without windows of their own share an inventory ID. A window of all placements has none.
    """
    own = windows.join(requests, on="placement_id", how="semi").select("placement_id").unique()
    numbers = own.sort("placement_id").with_row_index("number", offset=1)
    inventory_id = (pl.lit("inventory-") + pl.col("number").cast(pl.String).str.zfill(6)).alias("inventory_id")
    requests = requests.join(numbers, on="placement_id", how="left", maintain_order="left")
    requests = requests.with_columns(pl.col("number").fill_null(0)).with_columns(inventory_id)
    windows = windows.join(numbers, on="placement_id", how="left")
    windows = windows.filter(pl.col("placement_id").is_null() | pl.col("number").is_not_null())
    return requests.drop("number"), windows.select(inventory_id, *_WINDOW)


def _examples(bad_rows: pl.DataFrame) -> str:
    columns = ("file", "row", "column", "why")
    return "".join("\n  {}, row {}: {} {}".format(*row) for row in bad_rows.head(3).select(columns).iter_rows())
