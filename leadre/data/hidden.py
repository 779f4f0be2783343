"""Objects that are new when training ends, so that cold start can be measured: a log from which they were taken out.

Until the first held-out request a hidden object is in no event and live in no request, as if its ads had been launched
then; from there on it is an object like any other. The tables themselves say so, so no later stage can learn from it
or hold it against it that nobody wanted it.
"""

from __future__ import annotations

import dataclasses
import hashlib

import polars as pl

from leadre.data import histories
from leadre.data.tables import Tables
from leadre.errors import InputError


def draw(object_ids: pl.Series, share: float, seed: int) -> pl.Series:
    """The distinct IDs that are hidden, about a ``share`` of them (0 to 1), ascending.

    Each ID decides by its own hash, so it stays hidden whatever else is in the catalogue.
    """
    ids = object_ids.unique().sort()
    hashes = [hashlib.sha256(f"{seed}:{object_id}".encode()).digest()[:8] for object_id in ids]
    return ids.filter(pl.Series([int.from_bytes(digest) < share * 2**64 for digest in hashes], dtype=pl.Boolean))


def launch_late(tables: Tables, object_ids: pl.Series, *, positive: str, keep_empty: bool) -> Tables:
    """The tables as if the ads of these objects had been launched at the first held-out request.

    Training requests that lose all they were answered with go, unless ``keep_empty``; those with nothing live go
    anyhow. InputError where there are no held-out requests.
    """
    launched_at = tables.requests.filter(pl.col("split") != "train")["at"].min()
    if launched_at is None:
        raise InputError("--hide: the log has no validation or test requests, so a hidden object would never be live")
    ads = tables.ads.filter(pl.col("object_id").is_in(object_ids.implode()))["ad_id"]
    training = tables.requests.filter(pl.col("split") == "train")
    is_hidden = (
        pl.when(pl.col("domain") == "ad")
        .then(pl.col("item_id").is_in(ads.implode()))
        .otherwise(pl.col("item_id").is_in(object_ids.implode()))
    )
    is_early = (pl.col("at") < launched_at) | pl.col("request_id").is_in(training["request_id"].implode())
    events = tables.events.filter(~(is_hidden & is_early.fill_null(False)))
    requests, inventories = _without(tables.requests, tables.inventories, ads)
    if not keep_empty:
        answered = [_answered(frame, tables.requests, positive) for frame in (tables.events, events)]
        requests = requests.join(
            answered[0].join(answered[1], on="request_id", how="anti"), on="request_id", how="anti"
        )
    inventories = inventories.join(requests.select("inventory_id").unique(), on="inventory_id", how="semi")
    return dataclasses.replace(
        tables,
        events=events,
        requests=requests.sort("at", "user_id", "request_id"),
        inventories=inventories.sort("inventory_id", "ad_id"),
    )


def _without(requests: pl.DataFrame, inventories: pl.DataFrame, ads: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Training requests asked of inventories without these ads; splits may share an inventory, so theirs are copies."""
    touched = inventories.filter(pl.col("ad_id").is_in(ads.implode())).select("inventory_id").unique()
    early = touched.with_columns(early_id=pl.col("inventory_id") + "-before-launch")
    copies = inventories.join(early, on="inventory_id").filter(~pl.col("ad_id").is_in(ads.implode()))
    copies = copies.select(inventory_id="early_id", ad_id="ad_id")
    named = pl.when(pl.col("split") == "train").then(pl.coalesce("early_id", "inventory_id"))
    requests = requests.join(early, on="inventory_id", how="left", maintain_order="left")
    requests = requests.with_columns(inventory_id=named.otherwise("inventory_id")).drop("early_id")
    inventories = pl.concat([inventories, copies])
    return requests.join(inventories.select("inventory_id").unique(), on="inventory_id", how="semi"), inventories


def _answered(events: pl.DataFrame, requests: pl.DataFrame, positive: str) -> pl.DataFrame:
    """The distinct ``request_id`` of training requests with an outcome."""
    outcomes = histories.in_time(histories.positives(events, positive), requests)
    return outcomes.filter(pl.col("split") == "train").select("request_id").unique()
