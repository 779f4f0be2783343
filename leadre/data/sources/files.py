"""A user's own logs: a folder of Parquet, CSV or JSON-lines files in the schema of the four tables.

Each table is one file (``events.parquet``, ``.csv`` or ``.jsonl``), or a folder of such files that are read in the
order of their names (``events/2026-03-01.csv``):

    ads         ad_id, title; object_id, advertiser_id, description, brand, category_path, price_nanos, ... optional
    events      user_id, at, domain (content, ad), item_id, action (impression, click, conversion, view); value_nanos,
                placement_id, request_id optional
    contents    (optional) content_id, title; category_path, brand, description optional
    users       (optional) user_id and any profile columns; users in events alone get an empty profile
    inventory   (optional) ad_id; placement_id, starts_at, ends_at: live ads by placement and time; without it the ads'
                status, starts_at and ends_at decide
    requests    (optional) request_id, user_id, at, placement_id: visits that are not in the events

All columns with their types: ``leadre/data/tables.py``. Times are ISO 8601 (UTC unless they carry an offset) or whole
microseconds since 1970; money is a whole number of billionths of the currency; a CSV writes a category path as
``Home > Garden > Seeds``. Events must be in time order for each user, as a log is (``--unordered true`` sorts them).

A file that cannot be read raises InputError with its name, row and column. A row that can be read but not used is
written to bad_rows.parquet; more than ``max_bad_share`` of a table stops the run. Rows are counted as an editor counts
lines: the header of a CSV is row 1 (a quoted line break does not count); Parquet rows begin at 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl

from leadre import progress
from leadre.data import requests, tables
from leadre.data.sources import raw
from leadre.data.split import SplitTimes, date
from leadre.data.tables import FILE, ROW, SCHEMAS, Tables
from leadre.errors import InputError

REQUIRED = ("ads", "events")


@dataclass(frozen=True, kw_only=True)
class InputLimits:
    """Limits beyond which the run stops; the fields are options of ``leadre data``."""

    max_bad_share: float = 0.01
    max_field_bytes: int = 1 << 20
    unordered: bool = False
    earliest: str = "1990-01-01"
    latest: str = "2100-01-01"


def read(
    folder: Path, limits: InputLimits, cut: SplitTimes, positive: str = "conversion", keep_empty: bool = False
) -> Tables:
    """Read, check and join the tables in ``folder``. Raises InputError; see the module docstring for the rules."""
    if not 0 <= limits.max_bad_share <= 1:
        raise InputError(f"--max-bad-share {limits.max_bad_share:g}: must be a share from 0 to 1")
    if not folder.is_dir():
        raise InputError(
            f"{folder}: not a folder; --path is a folder with {' and '.join(REQUIRED)} as Parquet, CSV or JSON lines"
        )
    frames: dict[str, pl.DataFrame] = {}
    bad: list[pl.DataFrame] = []
    read_rows: dict[str, int] = {}
    with raw.reading(folder):
        for name, schema in SCHEMAS.items():
            frame, bad_rows, read_rows[name] = _read_table(folder, name, limits)
            if frame is None:
                continue
            if schema.key is not None:
                tables.check_unique(name, frame)
            frames[name] = frame
            bad.append(bad_rows)
    for name in ("ads", "inventory"):
        if name in frames:
            frames[name] = _drop_bad(name, frames[name], _ENDS_BEFORE_START, bad)
    tables.check_share(pl.concat(bad), read_rows, limits.max_bad_share)
    contents = frames.get("contents")
    ads = frames["ads"].with_columns(pl.col("object_id").fill_null(pl.col("ad_id")))
    events = _checked_events(frames["events"], ads, contents, limits, bad)
    windows = _windows(ads, frames.get("inventory"), bad)
    tables.check_share(pl.concat(bad), read_rows, limits.max_bad_share)  # before the joins, which expect valid rows
    derived = requests.derive(
        ads=ads,
        events=events,
        windows=windows,
        listed=frames.get("requests"),
        cut=cut,
        positive=positive,
        keep_empty=keep_empty,
    )
    bad_rows = pl.concat([*bad, derived.bad_rows])
    tables.check_share(bad_rows, read_rows, limits.max_bad_share)
    return Tables(
        ads=tables.complete("ads", ads.drop(ROW, FILE)),
        contents=_contents(contents),
        users=_users(frames.get("users"), derived.events, derived.requests, derived.empty_requests),
        events=tables.complete("events", derived.events.drop(ROW, FILE)),
        requests=derived.requests,
        inventories=derived.inventories,
        empty_requests=derived.empty_requests,
        empty_inventories=derived.empty_inventories,
        bad_rows=bad_rows,
    )


_ENDS_BEFORE_START = (
    ("ends_at", pl.col("ends_at") <= pl.col("starts_at"), pl.format("is not after starts_at: {}", "ends_at")),
)


def _read_table(folder: Path, name: str, limits: InputLimits) -> tuple[pl.DataFrame | None, pl.DataFrame, int]:
    """(good rows with ROW and FILE, bad rows, rows read); (None, .., 0) for a missing optional table."""
    paths = raw.find_files(folder, name)
    if not paths:
        if name in REQUIRED:
            raise InputError(
                f"{folder}: no {name}.parquet, {name}.csv, {name}.jsonl and no folder {name}; this table is required"
            )
        return None, tables.no_bad_rows(), 0
    good = []
    bad = []
    rows = 0
    for path in progress.bar(paths, len(paths), f"{name} files") if len(paths) > 1 else paths:
        label = path.relative_to(folder).as_posix()
        frame, unreadable = raw.read(path, name, label, limits.max_field_bytes)
        if not frame.height and not unreadable.height:
            raise InputError(f"{label}: has no rows; write the table into it, or delete the file")
        typed, bad_rows = tables.conform(name, frame, label)
        good.append(typed)
        bad += [unreadable, bad_rows]
        rows += frame.height + unreadable.height
    # Profile columns may differ in type from file to file; those of a schema cannot.
    table = pl.concat(good, how="diagonal_relaxed" if SCHEMAS[name].others else "diagonal")
    extra = {ROW: table[ROW], FILE: table[FILE]}
    return tables.complete(name, table.drop(ROW, FILE)).with_columns(**extra), pl.concat(bad), rows


def _drop_bad(
    name: str, frame: pl.DataFrame, rules: tuple[tuple[str, pl.Expr, pl.Expr], ...], bad: list[pl.DataFrame]
) -> pl.DataFrame:
    """The rows that pass all rules (column, is bad, why), applied in order; the others are appended to ``bad``."""
    for column, rule, why in rules:
        rule = rule.fill_null(False)
        bad.append(tables.as_bad_rows(name, frame.filter(rule), column, why))
        frame = frame.filter(~rule)
    return frame


def _checked_events(
    events: pl.DataFrame, ads: pl.DataFrame, contents: pl.DataFrame | None, limits: InputLimits, bad: list[pl.DataFrame]
) -> pl.DataFrame:
    """The events of known items, inside the declared range, in time order for each user."""
    earliest = date(limits.earliest, "earliest")
    latest = date(limits.latest, "latest")
    content_ids = ads["object_id"]
    if contents is not None:
        content_ids = pl.concat([content_ids, contents["content_id"]])
    is_ad = pl.col("domain") == "ad"
    known_ad = pl.col("item_id").is_in(ads["ad_id"].to_list())
    known_content = pl.col("item_id").is_in(content_ids.unique().to_list())
    unknown = pl.when(is_ad).then(~known_ad).otherwise(~known_content)
    item = pl.format("is unknown: no {} has the ID {}", "domain", "item_id")
    outside = (pl.col("at") < earliest) | (pl.col("at") >= latest)
    range_text = f"is outside {_day(earliest)} to {_day(latest)}: {{}}"
    events = _drop_bad("events", events, (("at", outside, pl.format(range_text, "at")),), bad)
    if not limits.unordered:
        latest_before = pl.col("at").cum_max().shift(1).over("user_id")
        events = events.with_columns(__latest=latest_before)
        why = pl.format(
            "goes backwards: {} after {} of this user; sort the log or pass --unordered true", "at", "__latest"
        )
        events = _drop_bad("events", events, (("at", pl.col("at") < pl.col("__latest"), why),), bad).drop("__latest")
    return _drop_bad("events", events, (("item_id", unknown, item),), bad)


def _windows(ads: pl.DataFrame, inventory: pl.DataFrame | None, bad: list[pl.DataFrame]) -> pl.DataFrame:
    if inventory is None:
        return requests.windows_of(ads)
    unknown = ~pl.col("ad_id").is_in(ads["ad_id"].to_list())
    return _drop_bad(
        "inventory", inventory, (("ad_id", unknown, pl.format("is unknown: no ad has the ID {}", "ad_id")),), bad
    )


def _contents(contents: pl.DataFrame | None) -> pl.DataFrame:
    if contents is None:
        return pl.DataFrame(schema=SCHEMAS["contents"].columns)
    return tables.complete("contents", contents.drop(ROW, FILE))


def _users(users: pl.DataFrame | None, *others: pl.DataFrame) -> pl.DataFrame:
    """Profiles with a row for each user of ``others``; a text column with numbers alone is converted to numbers."""
    log_users = pl.concat([frame.select("user_id") for frame in others]).unique().sort("user_id")
    if users is None:
        return log_users
    users = users.drop(ROW, FILE)
    for column in users.columns:
        if column != "user_id" and users.schema[column] == pl.String:
            numbers = users[column].cast(pl.Float64, strict=False)
            if numbers.null_count() == users[column].null_count():
                users = users.with_columns(numbers)
    return pl.concat([users, log_users.join(users, on="user_id", how="anti")], how="diagonal").sort("user_id")


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"
