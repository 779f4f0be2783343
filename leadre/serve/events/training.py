"""Tables for training: the event log as Parquet, in the form that `leadre data --source files` reads.

    events/      impressions, clicks and conversions of users who allowed profiling, by day (UTC) and time
    requests/    the requests of these users, with or without a bid
    answers/     every request with candidates, scores, bids, propensities and versions, for off-policy work
    inventory.parquet, ads.parquet: the intervals in which each ad was live; the catalogue, ended ads included

Read them with ``leadre data --source files --path FOLDER --unordered true``. Tests (`test=1`) are in no table. A
flush adds a part (`leadre.serve.events.table_parts`) for each day of its rows. A row carries the number of its record,
so that a run that follows a killed one adds no row twice.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from leadre import checked_parquet
from leadre.data.tables import SCHEMAS, TEXT, WHOLE
from leadre.errors import StorageError
from leadre.extended_ids import covers
from leadre.serve.events import durable, event_log, table_parts, table_position, user_texts
from leadre.serve.events.records import EventRecord, RequestRecord, StatusRecord
from leadre.types import Ad
from leadre.units import US_PER_S

ACTIONS = {"imp": "impression", "click": "click", "conv": "conversion"}
NUMBER = "number"
MAX_RECORDS = 40_000  # whose rows are in memory at once; rows of 10,000 requests take 200 MB
RESENT_US = (
    US_PER_S  # a record that was written later after its request may have been sent before: see `_without_known`
)

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
_INTERVALS = SCHEMAS["inventory"].columns
_ADS = {
    name: kind
    for name, kind in SCHEMAS["ads"].columns.items()
    if name in Ad.__dataclass_fields__ or name in ("iab_category", "creative_sizes")
}


@dataclass
class TableRows:
    """Rows of a range of records that ends at ``last``, by table. ``place``: of that record, if it is known.

    ``changes`` has the status records in log order, ``resent`` the IDs of requests that may be in earlier parts.
    """

    last: int
    place: event_log.Place | None = None
    daily: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in _DAILY})
    changes: list[StatusRecord] = field(default_factory=list)
    resent: set[str] = field(default_factory=set)

    def add(self, entry: event_log.LogEntry, place: event_log.Place) -> None:
        """Add the rows of one record."""
        self.last = entry.number
        self.place = place
        record = entry.record
        if isinstance(record, StatusRecord):
            self.changes.append(record)
        elif isinstance(record, EventRecord):
            self._add_event(record, entry.number)
        elif not record.is_test:
            self._add_request(record, entry.number)
            if entry.written_at_us - record.at_us > RESENT_US:
                self.resent.add(record.request_id)

    def _add_event(self, record: EventRecord, number: int) -> None:
        outcome = record.outcome
        if not (record.is_training and outcome.user_id and outcome.kind in ACTIONS):
            return
        row = {
            "user_id": outcome.user_id,
            "at": outcome.at_us,
            "domain": "ad",
            "item_id": outcome.ad_id,
            "action": ACTIONS[outcome.kind],
            "value_nanos": outcome.value_nanos if outcome.kind == "conv" else None,
            "request_id": outcome.request_id,
            NUMBER: number,
        }
        self.daily["events"].append(row)

    def _add_request(self, record: RequestRecord, number: int) -> None:
        row = {
            "request_id": record.request_id,
            "at": record.at_us,
            "user_id": record.user_id or None,
            "placement_id": next(iter(record.placements.values()), "") or None,
            NUMBER: number,
        }
        if record.user_id:
            self.daily["requests"].append(row)
        scores = record.scores or (None,) * len(record.candidates)
        candidates = [
            {"ad_id": candidate.ad_id, "source": candidate.source, "log_p": candidate.log_p, "score": score}
            for candidate, score in zip(record.candidates, scores, strict=True)
        ]
        bids = [{name.name: getattr(bid, name.name) for name in _BID.fields} for bid in record.bids]
        versions = msgspec.json.encode(record.versions).decode()
        self.daily["answers"].append(row | {"candidates": candidates, "bids": bids, "versions": versions})


def compact(log: Path, folder: Path, ads: Iterable[Ad], max_records: int = MAX_RECORDS) -> int:
    """Add the next new records of the log to the tables, at most ``max_records``; the number of records.

    ``ads``: the catalogue, with every ad that was ever shown. StorageError leaves each file whole.
    """
    start = table_position.read(folder)
    rows = TableRows(start, table_position.place(folder))
    for entry, place in itertools.islice(event_log.read_placed(log, start, rows.place), max_records):
        rows.add(entry, place)
    _write(folder / "ads.parquet", _catalogue(ads))
    _store(folder, rows, start + 1)
    return rows.last - start


def recover(folder: Path) -> None:
    """Remove what a killed flush or merge left behind, and rows beyond the position, as in a backup made meanwhile."""
    end = table_position.read(folder)
    for name in _DAILY:
        parts = table_parts.parts(folder / name)
        leftover = {*table_parts.redundant(parts), *(part for part in parts if part.first > end)}
        for part in parts:
            if part not in leftover and part.last > end:
                path = table_parts.path_of(folder / name, part.day, part.first, end) if part.first else part.path
                _write(path, _read(part.path).filter(pl.col(NUMBER) <= end))
                leftover |= {part} if path != part.path else set()
        for part in leftover:
            part.path.unlink()


def retain(folder: Path, after: date) -> None:
    """Delete the rows of days before ``after``, and the intervals of ads that ended before it."""
    for name in _DAILY:
        for path in (folder / name).glob("*.parquet"):
            if path.name[:10] < after.isoformat():
                path.unlink()
    path = folder / "inventory.parquet"
    if path.exists():
        intervals = _read(path)
        _write(path, intervals.filter(pl.col("ends_at").is_null() | (pl.col("ends_at").dt.date() >= after)))


def users(folder: Path) -> Iterator[str]:
    """The users whom the tables name; some several times."""
    for name in _DAILY:
        for path in (folder / name).glob("*.parquet"):
            yield from _read(path, ["user_id"])["user_id"].drop_nulls().unique()


def erase(folder: Path, users: Collection[str]) -> Counter[str]:
    """Remove users: rows of events and requests are deleted, answers lose the user_id. User -> number of rows.

    Publishers' names of places and IDs of imps that contain the ID are deleted too.

    On return the IDs are in no file. StorageError leaves each file whole, with its old or its new content.
    """
    durable.tidy(folder)
    changed: Counter[str] = Counter()
    may_be_theirs = _any([pl.col("user_id").is_in(list(users)), *(_ends("user_id", f":{user}") for user in users)])
    texts = user_texts.long_enough(users)
    is_place = _any([_contains(pl.col("placement_id"), user) for user in texts])
    is_imp = _any([_contains(pl.element().struct.field("imp_id"), user) for user in texts])
    imp_ids = pl.when(~is_imp).then(pl.element().struct.field("imp_id"))
    has_imp = pl.col("bids").list.eval(is_imp).list.any().fill_null(False)
    for name in _DAILY:
        for path in sorted((folder / name).glob("*.parquet")):
            has_bids = name == "answers"
            rows = _read(path, ["user_id", "placement_id", *(["bids"] if has_bids else [])])
            named = [user_id for user_id in rows.filter(may_be_theirs)["user_id"] if covers(users, user_id)]
            if not named and not rows.select((is_place | has_imp if has_bids else is_place).any()).item():
                continue
            changed.update(covers(users, user_id) for user_id in named)
            is_theirs = pl.col("user_id").is_in(list(set(named))).fill_null(False)
            frame = _read(path).with_columns(pl.when(~is_place).then("placement_id").alias("placement_id"))
            if has_bids:
                bids = pl.col("bids").list.eval(pl.element().struct.with_fields(imp_ids.alias("imp_id")))
                _write(path, frame.with_columns(pl.when(~is_theirs).then("user_id").alias("user_id"), bids))
            else:
                _write(path, frame.filter(~is_theirs))
    return changed


def _any(conditions: Sequence[pl.Expr]) -> pl.Expr:
    """Whether one of the conditions holds; a null holds not."""
    return pl.any_horizontal(*conditions).fill_null(False) if conditions else pl.lit(False)


def _ends(column: str, text: str) -> pl.Expr:
    return pl.col(column).str.ends_with(text)


def _contains(value: pl.Expr, text: str) -> pl.Expr:
    return value.str.contains(text, literal=True)


def _store(folder: Path, rows: TableRows, first: int) -> None:
    """Add parts with the rows of records ``first`` to ``rows.last``, then set the position, then merge small parts."""
    days: set[tuple[str, str]] = set()
    for name, schema in _DAILY.items():
        new = pl.DataFrame(rows.daily[name], schema=schema).unique(_KEYS[name], keep="first", maintain_order=True)
        for (day,), frame in new.group_by(pl.col("at").dt.date()):
            assert isinstance(day, date)
            path = table_parts.path_of(folder / name, day.isoformat(), first, rows.last)
            if rows.resent and name != "events":
                earlier = [part.path for part in table_parts.parts(path.parent, day.isoformat()) if part.last < first]
                frame = _without_known(frame, earlier, rows.resent)
            _write(path, frame.sort("at", NUMBER))
            for leftover in path.parent.glob(f"{day.isoformat()}.{first:020d}-*.parquet"):  # of a flush that failed
                if leftover != path:
                    leftover.unlink()
            days.add((name, day.isoformat()))
    if rows.changes:
        path = folder / "inventory.parquet"
        old = _read(path) if path.exists() else pl.DataFrame(schema=_INTERVALS)
        _write(path, _live_intervals(old, rows.changes))
    table_position.write(folder, rows.last, rows.place)
    with table_parts.merging(folder) as may_merge:
        for name, of_day in sorted(days) if may_merge else ():
            _merge(folder / name, table_parts.to_merge(table_parts.parts(folder / name, of_day)), name)


def _without_known(frame: pl.DataFrame, earlier: Sequence[Path], resent: set[str]) -> pl.DataFrame:
    """The rows without those of ``resent`` requests that earlier parts of the day have.

    A worker without a reply sends its records again, and the writer recognises the newest requests (`MAX_RECENT`). A
    record that it does not recognise is written at least `RESENT_US` after its request; most flushes have none.
    """
    is_resent = pl.col("request_id").is_in(list(resent))
    known = [_read(path, ["request_id"]).filter(is_resent) for path in earlier]
    return frame.join(pl.concat(known), on="request_id", how="anti", maintain_order="left") if known else frame


def _merge(folder: Path, parts: Sequence[table_parts.Part], name: str) -> None:
    """Replace consecutive parts of a day by one. Killed before the last is deleted, `recover` deletes the rest."""
    if parts:
        rows = pl.concat([_read(part.path) for part in parts]).unique(_KEYS[name], keep="first", maintain_order=True)
        path = table_parts.path_of(folder, parts[0].day, parts[0].first, parts[-1].last)
        _write(path, rows.sort("at", NUMBER))
        for part in parts:
            part.path.unlink()


def _live_intervals(old: pl.DataFrame, changes: Sequence[StatusRecord]) -> pl.DataFrame:
    """``old`` with the intervals of later changes; an interval without end is of a live ad. Idempotent."""
    intervals = old.select("ad_id", pl.col("starts_at", "ends_at").dt.epoch("us")).rows()
    closed = [interval for interval in intervals if interval[2] is not None]
    open_us = {ad_id: starts_us for ad_id, starts_us, ends_us in intervals if ends_us is None}
    started = {(ad_id, starts_us) for ad_id, starts_us, _ in intervals}
    for change in changes:
        starts_us = open_us.get(change.ad_id)
        if change.is_live:
            if starts_us is None and (change.ad_id, change.at_us) not in started:
                open_us[change.ad_id] = change.at_us
        elif starts_us is not None and starts_us <= change.at_us:
            del open_us[change.ad_id]
            closed += [(change.ad_id, starts_us, change.at_us)] if starts_us < change.at_us else []
    columns = ("ad_id", "starts_at", "ends_at")
    rows = [*closed, *((ad_id, starts_us, None) for ad_id, starts_us in open_us.items())]
    frame = pl.DataFrame(rows, schema={name: _INTERVALS[name] for name in columns}, orient="row")
    return frame.with_columns(placement_id=pl.lit(None, TEXT)).select(list(_INTERVALS)).sort("ad_id", "starts_at")


def _catalogue(ads: Iterable[Ad]) -> pl.DataFrame:
    """The ads table. Empty texts are null; an ad without a title has its ID as title, which the schema requires."""
    texts = [name for name in _ADS if name in Ad.__dataclass_fields__]
    rows = [
        {name: getattr(ad, name) or None for name in texts}
        | {"title": ad.title or ad.ad_id}
        | {"iab_category": next(iter(ad.iab_categories), None)}
        | {"creative_sizes": [f"{width}x{height}" for width, height in ad.sizes]}
        for ad in ads
    ]
    return pl.DataFrame(rows, schema=_ADS)


def _read(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """The rows of a file, of all columns by default. StorageError if it is damaged."""
    if not checked_parquet.is_intact(path):
        raise _damaged(path, "its checksum differs")
    try:
        return pl.read_parquet(path, columns=columns)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> StorageError:
    folder = path.parent if path.name == "inventory.parquet" else path.parent.parent
    return StorageError(
        f"{path}: damaged ({why.splitlines()[0]}); stop the bidder and delete {folder}: the next start writes"
        " the tables again from the log"
    )


def _write(path: Path, frame: pl.DataFrame) -> None:
    """Replace the file. A frame without rows has no file, because `leadre data` rejects empty tables."""
    if frame.height:
        durable.replace(path, checked_parquet.to_bytes(frame))
    elif path.exists():
        path.unlink()
        durable.sync_folder(path.parent)
