"""The event log -> Parquet that `leadre data --source files --path FOLDER --unordered true` reads: what serving saw is
what training learns from.

    events/DAY.parquet     impressions, clicks and conversions of users who may be remembered, by day (UTC) and time
    requests/DAY.parquet   the requests of these users, answered with a bid or not
    answers/DAY.parquet    every request with candidates, scores, bids, propensities and versions, for off-policy work
    inventory.parquet      which ad was live from when until when
    ads.parquet            the catalogue, ads that ended too

Tests (`test=1`) are in none of them. A day's file is replaced whole. Rows carry the number of their record, so a run
that was killed is run again and nothing is there twice.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from leadre.data.tables import SCHEMAS, TEXT, WHOLE
from leadre.serve.events import durable, event_log
from leadre.serve.events.records import EventRecord, RequestRecord, StatusRecord
from leadre.types import Ad

ACTIONS = {"imp": "impression", "click": "click", "conv": "conversion"}
POSITION = "position"  # file: the number of the last record that is in the tables
NUMBER = "number"

_CANDIDATE = pl.Struct({"ad_id": TEXT, "source": TEXT, "log_p": pl.Float64(), "score": pl.Float64()})
_BID = pl.Struct(
    {"bid_id": TEXT, "imp_id": TEXT, "ad_id": TEXT, "campaign_id": TEXT, "price_nanos": WHOLE, "currency": TEXT}
    | {"source": TEXT, "propensity": pl.Float64()}
)
_DAILY: dict[str, dict[str, pl.DataType]] = {
    "events": {**SCHEMAS["events"].columns, NUMBER: WHOLE},
    "requests": {**SCHEMAS["requests"].columns, NUMBER: WHOLE},
    "answers": {
        **SCHEMAS["requests"].columns,
        "candidates": pl.List(_CANDIDATE),
        "bids": pl.List(_BID),
        "versions": TEXT,  # JSON
        NUMBER: WHOLE,
    },
}
_KEYS = {"events": NUMBER, "requests": "request_id", "answers": "request_id"}
_WINDOWS = SCHEMAS["inventory"].columns
_ADS = {
    name: kind
    for name, kind in SCHEMAS["ads"].columns.items()
    if name in Ad.__dataclass_fields__ or name in ("iab_category", "creative_sizes")
}


@dataclass
class _Rows:
    """Rows out of records, by table; ``switches`` in the order of the log."""

    last: int
    daily: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in _DAILY})
    switches: list[StatusRecord] = field(default_factory=list)

    def take(self, entry: event_log.LogEntry) -> None:
        record, self.last = entry.record, entry.number
        if isinstance(record, StatusRecord):
            self.switches.append(record)
        elif isinstance(record, EventRecord):
            self._event(record, entry.number)
        elif not record.is_test:
            self._request(record, entry.number)

    def _event(self, record: EventRecord, number: int) -> None:
        done = record.outcome
        if record.is_training and done.user_id and done.kind in ACTIONS:
            row = {"user_id": done.user_id, "at": done.at_us, "domain": "ad", "item_id": done.ad_id, NUMBER: number}
            row |= {"action": ACTIONS[done.kind], "value_nanos": done.value_nanos if done.kind == "conv" else None}
            self.daily["events"].append(row | {"request_id": done.request_id})

    def _request(self, record: RequestRecord, number: int) -> None:
        row = {"request_id": record.request_id, "at": record.at_us, "user_id": record.user_id or None, NUMBER: number}
        row["placement_id"] = next(iter(record.placements.values()), "") or None
        if record.user_id:
            self.daily["requests"].append(row)
        scores = record.scores or (None,) * len(record.candidates)
        candidates = [
            {"ad_id": one.ad_id, "source": one.source, "log_p": one.log_p, "score": score}
            for one, score in zip(record.candidates, scores, strict=True)
        ]
        bids = [{name.name: getattr(bid, name.name) for name in _BID.fields} for bid in record.bids]
        versions = msgspec.json.encode(record.versions).decode()
        self.daily["answers"].append(row | {"candidates": candidates, "bids": bids, "versions": versions})


def compact(log: Path, folder: Path, ads: Iterable[Ad], at_most: int = 1_000_000) -> int:
    """Bring the tables up to the log; how many records that took. StorageError leaves each file whole.

    ``ads``: the catalogue, and every ad that has been shown. ``at_most`` records are held in memory at once.
    """
    begun = position(folder)
    rows = _Rows(begun)
    for entry in event_log.read(log, begun):
        rows.take(entry)
        if entry.number % at_most == 0:
            _store(folder, rows)
            rows = _Rows(entry.number)
    _write(folder / "ads.parquet", _catalogue(ads))
    _store(folder, rows)
    return rows.last - begun


def position(folder: Path) -> int:
    """The number of the last record that is in the tables; 0 before the first run."""
    path = folder / POSITION
    return int(path.read_text()) if path.exists() else 0


def retain(folder: Path, after: date) -> None:
    """Delete what is of days before one: days' files, and spells of ads that ended before it."""
    for name in _DAILY:
        for path in (folder / name).glob("*.parquet"):
            if path.stem < after.isoformat():
                path.unlink()
    path = folder / "inventory.parquet"
    if path.exists():
        windows = pl.read_parquet(path)
        _write(path, windows.filter(pl.col("ends_at").is_null() | (pl.col("ends_at").dt.date() >= after)))


def erase(folder: Path, user_id: str) -> int:
    """Take a user out of the tables: rows to learn from go, answers become nobody's. How many rows that were.

    When it returns, the ID is in no file. StorageError leaves each file whole, the old or the new one.
    """
    durable.tidy(folder)
    changed = 0
    for name in _DAILY:
        for path in sorted((folder / name).glob("*.parquet")):
            is_theirs = pl.col("user_id") == user_id
            count = pl.scan_parquet(path).filter(is_theirs).select(pl.len()).collect().item()
            if not count:
                continue
            changed += count
            frame = pl.read_parquet(path)
            if name == "answers":
                _write(path, frame.with_columns(pl.when(~is_theirs).then("user_id").alias("user_id")))
            else:
                _write(path, frame.filter(is_theirs.not_()))
    return changed


def _store(folder: Path, rows: _Rows) -> None:
    for name, schema in _DAILY.items():
        new = pl.DataFrame(rows.daily[name], schema=schema)
        for (day,), part in new.group_by(pl.col("at").dt.date()):
            assert isinstance(day, date)
            path = folder / name / f"{day.isoformat()}.parquet"
            old = pl.read_parquet(path) if path.exists() else new.clear()
            whole = pl.concat([old, part]).unique(_KEYS[name], keep="first", maintain_order=True)
            _write(path, whole.sort("at", NUMBER))
    if rows.switches:
        path = folder / "inventory.parquet"
        old = pl.read_parquet(path) if path.exists() else pl.DataFrame(schema=_WINDOWS)
        _write(path, _windows(old, rows.switches))
    durable.replace(folder / POSITION, str(rows.last).encode())


def _windows(old: pl.DataFrame, switches: Sequence[StatusRecord]) -> pl.DataFrame:
    """Spells of each ad: one is open while the ad is live. Saying the same twice changes nothing."""
    spells = old.select("ad_id", pl.col("starts_at", "ends_at").dt.epoch("us")).rows()
    closed = [spell for spell in spells if spell[2] is not None]
    open_us = {ad_id: starts_us for ad_id, starts_us, ends_us in spells if ends_us is None}
    begun = {(ad_id, starts_us) for ad_id, starts_us, _ in spells}
    for switch in switches:
        since_us = open_us.get(switch.ad_id)
        if switch.is_live:
            if since_us is None and (switch.ad_id, switch.at_us) not in begun:
                open_us[switch.ad_id] = switch.at_us
        elif since_us is not None and since_us <= switch.at_us:
            del open_us[switch.ad_id]
            closed += [(switch.ad_id, since_us, switch.at_us)] if since_us < switch.at_us else []
    columns = ("ad_id", "starts_at", "ends_at")
    rows = [*closed, *((ad_id, starts_us, None) for ad_id, starts_us in open_us.items())]
    made = pl.DataFrame(rows, schema={name: _WINDOWS[name] for name in columns}, orient="row")
    return made.with_columns(placement_id=pl.lit(None, TEXT)).select(list(_WINDOWS)).sort("ad_id", "starts_at")


def _catalogue(ads: Iterable[Ad]) -> pl.DataFrame:
    """Texts that are empty are missing; an ad without a title is called by its ID, as a title is required."""
    texts = [name for name in _ADS if name in Ad.__dataclass_fields__]
    rows = [
        {name: getattr(ad, name) or None for name in texts}
        | {"title": ad.title or ad.ad_id}
        | {"iab_category": next(iter(ad.iab_categories), None)}
        | {"creative_sizes": [f"{width}x{height}" for width, height in ad.sizes]}
        for ad in ads
    ]
    return pl.DataFrame(rows, schema=_ADS)


def _write(path: Path, frame: pl.DataFrame) -> None:
    """The frame as a file; no file for no rows, as `leadre data` takes an empty table for a mistake."""
    if frame.height:
        made = io.BytesIO()
        frame.write_parquet(made)
        durable.replace(path, made.getvalue())
    elif path.exists():
        path.unlink()
        durable.sync_folder(path.parent)
