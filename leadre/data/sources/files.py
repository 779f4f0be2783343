"""A user's own logs: a folder of Parquet, CSV or JSON files in the schema of the four tables.

Each table is one file (``events.parquet``, ``.csv``, ``.tsv``, ``.jsonl`` or ``.json``, also compressed), or a folder
of such files that are read in the order of their paths (``events/2026-03-01.csv.gz``):

    ads         ad_id, title; object_id, advertiser_id, description, brand, category_path, price_nanos, ... optional
    events      user_id, at, domain (content, ad), item_id, action (impression, click, conversion, view); value_nanos,
                placement_id, request_id optional
    contents    (optional) content_id, title; category_path, brand, description optional
    users       (optional) user_id and any profile columns; users in events alone get an empty profile
    inventory   (optional) ad_id; placement_id, starts_at, ends_at: live ads by placement and time; without it the ads'
                status, starts_at and ends_at decide
    requests    (optional) request_id, user_id, at, placement_id: visits that are not in the events

All columns with their types: ``leadre/data/tables.py``. Times are ISO 8601 (UTC unless they carry an offset) or whole
microseconds since 1970 (``time_unit``); money is a whole number of billionths of the currency, or a decimal amount in a
column without ``_nanos``; a CSV writes a category path as ``Home > Garden > Seeds``. Events must be in time order for
each user, as a log is (``--unordered true`` sorts them).

A file that cannot be read raises InputError with its name, row and column. A row that can be read but not used is
written to bad_rows.parquet; more than ``max_bad_share`` of a table stops the run. Nothing is passed over in silence:
files and columns that no table reads are named. Rows are counted as an editor counts lines: the header of a CSV is row
1 (a quoted line break does not count); Parquet rows begin at 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from leadre import progress
from leadre.data import cells, profiles, requests, tables
from leadre.data.cells import CellFormat
from leadre.data.sources import folder as folders
from leadre.data.sources import raw
from leadre.data.sources.folder import Part
from leadre.data.sources.options import FileOptions
from leadre.data.split import SplitTimes, date
from leadre.data.tables import FILE, ROW, SCHEMAS, Tables
from leadre.data.times import TimeFormat
from leadre.errors import InputError

REQUIRED = ("ads", "events")
MAX_NANOS = 2**63 - 1


def read(
    folder: Path, options: FileOptions, cut: SplitTimes, positive: str = "conversion", keep_empty: bool = False
) -> Tables:
    """Read, check and join the tables in ``folder``. Raises InputError; see the module docstring for the rules."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: not a folder; --path is a folder with {' and '.join(REQUIRED)} as Parquet, CSV or JSON lines"
        )
    with raw.reading(folder):
        log = _RawLog.read(folder, options)
    for name in ("ads", "inventory"):
        if name in log.frames:
            log.drop(name, "ends_at", *_ENDS_BEFORE_START)
    log.check_share(options.max_bad_share)
    ads = log.frames["ads"].with_columns(pl.col("object_id").fill_null(pl.col("ad_id")))
    contents = _keep_apart(log, ads, options.content_prefix)
    _check_events(log, ads, contents, options)
    windows = _windows(log, ads)
    log.check_share(options.max_bad_share)  # before the joins, which expect valid rows
    derived = requests.derive(
        ads=ads,
        events=log.frames["events"],
        windows=windows,
        listed=log.frames.get("requests"),
        cut=cut,
        positive=positive,
        keep_empty=keep_empty,
    )
    log.bad.append(derived.bad_rows)
    log.check_share(options.max_bad_share)
    _check_money(derived.events)
    late = ", ".join(f"{count:,} of {split}" for split, count in derived.late.items())
    if late:
        progress.say(
            f"data: requests that lost their label, as their {positive} came after the next split began: {late};"
            " they are kept apart like requests without one"
        )
    return Tables(
        ads=tables.complete("ads", ads.drop(ROW, FILE)),
        contents=tables.complete("contents", contents.drop(ROW, FILE)),
        users=_users(log.frames.get("users"), options, derived.events, derived.requests, derived.empty_requests),
        events=tables.complete("events", derived.events.drop(ROW, FILE)),
        requests=derived.requests,
        inventories=derived.inventories,
        empty_requests=derived.empty_requests,
        empty_inventories=derived.empty_inventories,
        bad_rows=pl.concat(log.bad),
    )


@dataclass(kw_only=True)
class _RawLog:
    """The tables as they are read and checked. ``left_out`` names the ads and contents whose rows are bad."""

    frames: dict[str, pl.DataFrame] = field(default_factory=dict)  # with ROW and FILE
    bad: list[pl.DataFrame] = field(default_factory=lambda: [tables.no_bad_rows()])
    rows: dict[str, int] = field(default_factory=dict)  # read, by table
    left_out: dict[str, list[pl.DataFrame]] = field(default_factory=dict)  # table -> its key, ROW, FILE

    @classmethod
    def read(cls, folder: Path, options: FileOptions) -> _RawLog:
        log = cls()
        form = _cell_format(options)
        unread = folders.unread(folder)
        if unread:
            progress.say(f"data: not read, as no table has these names: {', '.join(unread)}")
        for name, schema in SCHEMAS.items():
            parts = folders.find(folder, name)
            if not parts and name in REQUIRED:
                raise InputError(
                    f"{folder}: no {name}.parquet, {name}.csv, {name}.jsonl and no folder {name} with such files; this"
                    f" table is required. Beside the tables there is {', '.join(unread) or 'nothing'}"
                )
            log.rows[name] = 0
            if parts:
                log.frames[name] = log._read_parts(parts, name, options, form)
                if schema.key is not None:
                    tables.check_unique(name, log.frames[name])
        return log

    def _read_parts(self, parts: list[Part], name: str, options: FileOptions, form: CellFormat) -> pl.DataFrame:
        schema = SCHEMAS[name]
        good = []
        notes: dict[str, list[str]] = {}
        for part in progress.bar(parts, len(parts), f"{name} files") if len(parts) > 1 else parts:
            read = raw.read(part, name, options)
            if not read.frame.height and not read.bad.height:
                notes.setdefault("has no rows", []).append(part.label)
                continue
            self.bad.append(read.bad)
            self.rows[name] += read.frame.height + read.bad.height
            if not read.frame.height:
                continue
            typed, bad_rows = cells.conform(name, read.frame, part.label, form)
            good.append(typed)
            self.bad.append(bad_rows)
            if bad_rows.height and schema.key is not None:
                key = next(column for column in read.frame.columns if tables.plain_name(column) == schema.key)
                rows = read.frame.filter(pl.col(ROW).is_in(bad_rows["row"].implode()))
                self._leave_out(name, rows.select(pl.col(key).cast(pl.String).alias(schema.key), ROW), part.label)
            for note in filter(None, (*read.notes, tables.unread_columns(name, read.frame.columns))):
                notes.setdefault(note, []).append(part.label)
        if not good:
            self.check_share(0.0)
            raise InputError(f"{parts[0].label}: has no rows; write the table {name} into it, or delete the file")
        for note, labels in notes.items():
            progress.say(f"data: {labels[0]}" + f" and {len(labels) - 1:,} more" * (len(labels) > 1) + f": {note}")
        if schema.others:
            profiles.check_types(good, schema.key or "")
        table = pl.concat(good, how="diagonal_relaxed" if schema.others else "diagonal")
        extra = {ROW: table[ROW], FILE: table[FILE]}
        return tables.complete(name, table.drop(ROW, FILE)).with_columns(**extra)

    def drop(self, name: str, column: str, rule: pl.Expr, why: pl.Expr) -> None:
        """Make the rows for which ``rule`` is true bad rows."""
        frame = self.frames[name]
        rule = rule.fill_null(False)
        dropped = frame.filter(rule)
        self.bad.append(tables.as_bad_rows(name, dropped, column, why))
        self.frames[name] = frame.filter(~rule)
        key = SCHEMAS[name].key
        if key is not None and dropped.height:
            self.left_out.setdefault(name, []).append(dropped.select(key, ROW, FILE))

    def check_share(self, max_share: float) -> None:
        """Raise InputError if too many rows of a table are bad."""
        tables.check_share(pl.concat(self.bad), self.rows, max_share)

    def reasons(self) -> pl.DataFrame:
        """domain, item_id, __left_out: the place and reason of each ad and content that was left out."""
        whys = pl.concat(self.bad).unique(["table", "file", "row"], keep="first", maintain_order=True)
        reasons = [pl.DataFrame(schema={"domain": pl.String, "item_id": pl.String, "__left_out": pl.String})]
        for table, domain in (("ads", "ad"), ("contents", "content")):
            for rows in self.left_out.get(table, ()):
                key = SCHEMAS[table].key or ""
                joined = rows.rename({ROW: "row", FILE: "file"}).join(
                    whys.filter(pl.col("table") == table), on=["file", "row"], how="inner"
                )
                place = pl.format("{}, row {}: {} {}", "file", "row", "column", "why")
                reasons.append(
                    joined.select(
                        pl.lit(domain).alias("domain"), pl.col(key).alias("item_id"), place.alias("__left_out")
                    )
                )
        return pl.concat(reasons).drop_nulls().unique(["domain", "item_id"], keep="first", maintain_order=True)

    def _leave_out(self, name: str, rows: pl.DataFrame, file: str) -> None:
        self.left_out.setdefault(name, []).append(rows.with_columns(pl.lit(file).alias(FILE)))


_ENDS_BEFORE_START = (pl.col("ends_at") <= pl.col("starts_at"), pl.format("is not after starts_at: {}", "ends_at"))


def _cell_format(options: FileOptions) -> CellFormat:
    earliest = date(options.earliest, "earliest")
    latest = date(options.latest, "latest")
    if not earliest < latest:
        raise InputError(f"--earliest {options.earliest} is not before --latest {options.latest}; swap them")
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    range_us = [int((moment - epoch).total_seconds()) * 1_000_000 for moment in (earliest, latest)]
    time = TimeFormat(unit=options.time_unit, earliest_us=range_us[0], latest_us=range_us[1])
    return CellFormat(time=time, decimal_comma=options.decimal_comma, numbers=options.profile_numbers)


def _keep_apart(log: _RawLog, ads: pl.DataFrame, prefix: str) -> pl.DataFrame:
    """The contents, with ``prefix`` before their IDs there and in the events.

    Without a prefix, IDs that an object and a content share mean one thing; other titles make that doubtful, so their
    number is shown.
    """
    contents = log.frames.get("contents")
    if contents is None:
        return pl.DataFrame(schema={**SCHEMAS["contents"].columns, ROW: pl.Int64, FILE: pl.String})
    if prefix:
        is_content = (pl.col("domain") == "content") & pl.col("item_id").is_in(contents["content_id"].implode())
        prefixed = pl.when(is_content).then(pl.lit(prefix) + pl.col("item_id")).otherwise("item_id")
        log.frames["events"] = log.frames["events"].with_columns(item_id=prefixed)
        return contents.with_columns(content_id=pl.lit(prefix) + pl.col("content_id"))
    objects = ads.select(content_id="object_id", title_of_ad="title").unique("content_id", keep="first")
    both = contents.join(objects, on="content_id", how="inner", maintain_order="left")
    both = both.filter(pl.col("title") != pl.col("title_of_ad"))
    if both.height:
        first = both.row(0, named=True)
        progress.say(
            f"data: {both.height:,} IDs are an ad's object and a content with another title (first: "
            f"{first['content_id']!r} is {tables.shorten(first['title_of_ad'])} and {tables.shorten(first['title'])});"
            " each is one thing to the model. If they are two, --content-prefix content- keeps them apart"
        )
    return contents


def _check_events(log: _RawLog, ads: pl.DataFrame, contents: pl.DataFrame, options: FileOptions) -> None:
    """Drop events that are not in time order for their user, and events of unknown items."""
    content_ids = pl.concat([ads["object_id"], contents["content_id"]]).unique()
    is_ad = pl.col("domain") == "ad"
    known_ad = pl.col("item_id").is_in(ads["ad_id"].implode())
    known_content = pl.col("item_id").is_in(content_ids.implode())
    unknown = pl.when(is_ad).then(~known_ad).otherwise(~known_content)
    if not options.unordered:
        before = pl.col("at").cum_max().shift(1).over("user_id")
        log.frames["events"] = log.frames["events"].with_columns(__latest=before)
        why = "goes backwards: {} after {} of this user; sort the log or pass --unordered true"
        log.drop("events", "at", pl.col("at") < pl.col("__latest"), pl.format(why, "at", "__latest"))
        log.frames["events"] = log.frames["events"].drop("__latest")
    log.frames["events"] = log.frames["events"].join(
        log.reasons(), on=["domain", "item_id"], how="left", maintain_order="left"
    )
    left_out = pl.format("is of an item that was left out: {} ({})", "item_id", "__left_out")
    item = pl.coalesce(left_out, pl.format("is unknown: no {} has the ID {}", "domain", "item_id"))
    log.drop("events", "item_id", unknown, item)
    log.frames["events"] = log.frames["events"].drop("__left_out")


def _check_money(events: pl.DataFrame) -> None:
    """Raise InputError if the values of a request do not fit into int64 together: they are summed in later stages."""
    sums = events.group_by("request_id", maintain_order=True).agg(
        pl.col("value_nanos").cast(pl.Int128).sum().alias("sum")
    )
    too_large = sums.filter((pl.col("sum") > MAX_NANOS) & pl.col("request_id").is_not_null())
    if too_large.height:
        request_id = too_large["request_id"][0]
        rows = events.filter((pl.col("request_id") == request_id) & (pl.col("value_nanos") > 0))
        raise InputError(
            f"{rows[FILE][0]}, row {rows[ROW][0]}, column 'value_nanos': the values of the request {request_id!r} are"
            f" more than {MAX_NANOS:,} billionths together; correct the amounts"
        )


def _windows(log: _RawLog, ads: pl.DataFrame) -> pl.DataFrame:
    if "inventory" not in log.frames:
        return requests.windows_of(ads)
    unknown = ~pl.col("ad_id").is_in(ads["ad_id"].implode())
    log.drop("inventory", "ad_id", unknown, pl.format("is unknown: no ad has the ID {}", "ad_id"))
    return log.frames["inventory"]


def _users(users: pl.DataFrame | None, options: FileOptions, *others: pl.DataFrame) -> pl.DataFrame:
    """Profiles with a row for each user of ``others``."""
    log_users = pl.concat([frame.select("user_id") for frame in others]).unique().sort("user_id")
    if users is None:
        users = log_users
    known = [column for column in users.columns if column != "user_id"]
    for name in options.profile_numbers:
        if name not in known:
            raise InputError(f"--profile-numbers: users has no column {name!r}; it has {', '.join(known) or 'none'}")
    users, left_out = profiles.plain(users.drop(ROW, FILE, strict=False), "user_id")
    if left_out:
        progress.say(f"data: columns of users that are neither words nor numbers are left out: {', '.join(left_out)}")
    return pl.concat([users, log_users.join(users, on="user_id", how="anti")], how="diagonal").sort("user_id")
