"""A folder of small valid logs; each test breaks it in one respect."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from leadre.data import run
from leadre.data.tables import Tables

Rows = list[dict[str, Any]]
START = datetime(2026, 3, 1, tzinfo=UTC)


def market() -> dict[str, Rows]:
    """4 ads (2 of one object), 2 contents, 3 users; each user visits once a day for 20 days and converts one ad."""
    ads: Rows = [
        {
            "ad_id": f"a{n}",
            "object_id": f"o{n // 2}",
            "title": f"Thing {n}",
            "category_path": ["Home", f"Kind {n // 2}"],
        }
        for n in range(4)
    ]
    contents: Rows = [{"content_id": "c0", "title": "Film"}, {"content_id": "o1", "title": "Object one, unpaid"}]
    users: Rows = [{"user_id": f"u{n}", "age": 20 + n, "town": "Genoa"} for n in range(2)]  # u2 has no profile
    events: Rows = []
    for day in range(20):
        for user in range(3):
            at = START + timedelta(days=day, minutes=user)
            row = {"user_id": f"u{user}", "at": at, "placement_id": "top", "request_id": f"r{day}-{user}"}
            ad = f"a{(day + user) % 4}"
            events.append(row | {"domain": "content", "item_id": "c0", "action": "view", "value_nanos": 0})
            events.append(row | {"domain": "ad", "item_id": ad, "action": "impression", "value_nanos": 0})
            events.append(row | {"domain": "ad", "item_id": ad, "action": "conversion", "value_nanos": 5_000_000_000})
    return {"ads": ads, "contents": contents, "users": users, "events": events}


def write(folder: Path, name: str, rows: Rows, form: str) -> Path:
    """One table as ``parquet``, ``csv`` or ``jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{form}"
    if form == "parquet":
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
    elif form == "csv":
        flat = [{key: " > ".join(v) if isinstance(v, list) else v for key, v in row.items()} for row in rows]
        pl.DataFrame(flat, infer_schema_length=None).write_csv(path, datetime_format="%Y-%m-%dT%H:%M:%S%.6f+00:00")
    else:
        path.write_text("".join(json.dumps(row, default=lambda at: at.isoformat()) + "\n" for row in rows))
    return path


def live_ads(requests: pl.DataFrame, inventories: pl.DataFrame) -> list[tuple[str, ...]]:
    """The ads live in each request, by the definition: one of their windows there holds its time."""
    windows = list(inventories.iter_rows())
    return [
        tuple(
            sorted(
                {
                    ad_id
                    for name, ad_id, starts_at, ends_at in windows
                    if name in (None, inventory_id)
                    and (starts_at is None or starts_at <= at)
                    and (ends_at is None or at < ends_at)
                }
            )
        )
        for inventory_id, at in requests.select("inventory_id", "at").iter_rows()
    ]


def read_folder(folder: Path, **options: Any) -> Tables:
    """The tables of a folder of files, read with options of ``leadre data``."""
    config = run.Config(run="mine", work=folder.parent / "work", source="files", path=folder)
    return run.read(config.changed(options))


@pytest.fixture
def logs(tmp_path: Path) -> Callable[..., Path]:
    """``logs(form="csv", events=[...])`` writes the market with some tables replaced (None: left out)."""

    def make(form: str = "csv", **replaced: Rows | None) -> Path:
        for name, rows in (market() | replaced).items():
            if rows is not None:
                write(tmp_path / "logs", name, rows, form)
        return tmp_path / "logs"

    return make
