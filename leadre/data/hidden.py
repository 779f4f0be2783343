"""Cold-start data: tables in which some objects are first launched when training ends, or some days before.

Before its launch a hidden object is in no event and live in no request; from then on it is an object like any other.
The tables themselves lack it, so no later stage can train on it or count it as shown without a click.
"""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import datetime, timedelta

import polars as pl

from leadre.data import histories
from leadre.data.inventories import Inventories
from leadre.data.tables import TIME, Tables, inventories_of
from leadre.errors import InputError


def draw(object_ids: pl.Series, share: float, seed: int) -> pl.Series:
    """The hidden IDs: about a ``share`` (0 to 1) of the distinct ones, ascending.

    A hash of the ID decides, so it does not depend on the other objects in the catalogue.
    """
    ids = object_ids.unique().sort()
    hashes = [hashlib.sha256(f"{seed}:{object_id}".encode()).digest()[:8] for object_id in ids]
    return ids.filter(pl.Series([int.from_bytes(digest) < share * 2**64 for digest in hashes], dtype=pl.Boolean))


def launch_late(tables: Tables, object_ids: pl.Series, *, positive: str, keep_empty: bool, days: float = 0.0) -> Tables:
    """The tables as if the ads of these objects were launched ``days`` before the first held-out request.

    Training requests that lose all their outcomes are empty requests, unless ``keep_empty``. Those without a live ad
    are dropped. Raises InputError if there are no held-out requests.
    """
    ended_at = tables.requests.filter(pl.col("split") != "train")["at"].min()
    if not isinstance(ended_at, datetime):
        raise InputError(
            "--hide: the log has no validation or test requests, so a hidden object would never be live; set --hide 0,"
            " or move --valid-from and --test-from"
        )
    launched_at = ended_at - timedelta(days=days)
    ads = tables.ads.filter(pl.col("object_id").is_in(object_ids.implode()))["ad_id"]
    before_launch = tables.requests.filter(pl.col("at") < launched_at)
    is_hidden = (
        pl.when(pl.col("domain") == "ad")
        .then(pl.col("item_id").is_in(ads.implode()))
        .otherwise(pl.col("item_id").is_in(object_ids.implode()))
    )
    is_early = (pl.col("at") < launched_at) | pl.col("request_id").is_in(before_launch["request_id"].implode())
    events = tables.events.filter(~(is_hidden & is_early.fill_null(False)))
    empty_ids = tables.empty_requests.select("request_id")
    if not keep_empty:
        before = _with_outcome(tables.events, tables.requests, positive)
        after = _with_outcome(events, tables.requests, positive)
        empty_ids = pl.concat([empty_ids, before.join(after, on="request_id", how="anti")])
    inventories = _live_from(launched_at, pl.concat([tables.inventories, tables.empty_inventories]), ads)
    requests = pl.concat([tables.requests, tables.empty_requests]).sort("at", "user_id", "request_id")
    assert (requests.filter(pl.col("split") == "train")["at"] < ended_at).all(), "training ends after held-out requests"
    live = Inventories.of(requests, inventories, inventories["ad_id"].unique().sort())
    requests = requests.filter(live.sizes_R > 0)
    empty = requests.join(empty_ids, on="request_id", how="semi", maintain_order="left")
    requests = requests.join(empty_ids, on="request_id", how="anti", maintain_order="left")
    inventories, empty_inventories = inventories_of(requests, empty, inventories)
    return dataclasses.replace(
        tables,
        events=events,
        requests=requests,
        inventories=inventories,
        empty_requests=empty,
        empty_inventories=empty_inventories,
    )


def _live_from(launched_at: datetime, inventories: pl.DataFrame, ads: pl.Series) -> pl.DataFrame:
    """The inventories, in which the windows of ``ads`` begin at ``launched_at`` at the earliest."""
    start = pl.max_horizontal("starts_at", pl.lit(launched_at, TIME))
    is_late = pl.col("ad_id").is_in(ads.implode())
    inventories = inventories.with_columns(starts_at=pl.when(is_late).then(start).otherwise("starts_at"))
    return inventories.filter((pl.col("starts_at") < pl.col("ends_at")).fill_null(True))


def _with_outcome(events: pl.DataFrame, requests: pl.DataFrame, positive: str) -> pl.DataFrame:
    """``request_id`` of the training requests with an outcome, distinct."""
    outcomes = histories.in_time(histories.positives(events, positive), requests)
    return outcomes.filter(pl.col("split") == "train").select("request_id").unique()
