"""Counts of the tables, for summary.json."""

from __future__ import annotations

import polars as pl

from leadre.data.inventories import Inventories
from leadre.data.tables import Tables


def summarise(tables: Tables) -> dict[str, dict[str, float]]:
    """Counts for summary.json: rows of each table, requests of each split, actions, inventory sizes."""
    frames = tables.named()
    splits = dict(tables.requests["split"].value_counts().iter_rows())
    actions = tables.events.group_by("domain", "action").len().sort("domain", "action")
    live = Inventories.of(tables.requests, tables.inventories, tables.ads["ad_id"].sort())
    span = tables.events.select(pl.min("at").dt.epoch("us").alias("first"), pl.max("at").dt.epoch("us").alias("last"))
    return {
        "rows": {name: frame.height for name, frame in frames.items()},
        "requests": {name: int(splits.get(name, 0)) for name in ("train", "valid", "test")},
        "events": {f"{domain} {action}": n for domain, action, n in actions.iter_rows()},
        "inventory": {
            "windows": live.windows,
            "live_sets": len(live.request_S),
            "mean_ads_per_request": float(live.sizes_R.mean()) if len(live.sizes_R) else 0.0,
        },
        "events_at_us": {"first": span["first"][0] or 0, "last": span["last"][0] or 0},
    }
