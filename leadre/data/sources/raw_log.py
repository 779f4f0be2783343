"""The tables of a folder as they are read: each row checked by itself, and known by file and row."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import polars as pl

from leadre import progress
from leadre.data import cells, profiles, tables
from leadre.data.cells import CellFormat
from leadre.data.sources import doubts, raw
from leadre.data.sources import folder as folders
from leadre.data.sources import mapping as mappings
from leadre.data.sources.folder import Part
from leadre.data.sources.mapping import TableMapping
from leadre.data.sources.options import FileOptions
from leadre.data.split import date
from leadre.data.tables import FILE, ROW, SCHEMAS
from leadre.data.times import TimeFormat
from leadre.errors import InputError

REQUIRED = ("ads", "events")


@dataclass(kw_only=True)
class RawLog:
    """The tables as they are read and checked. ``left_out`` names the ads and contents whose rows are bad."""

    frames: dict[str, pl.DataFrame] = field(default_factory=dict)  # with ROW and FILE
    bad: list[pl.DataFrame] = field(default_factory=lambda: [tables.no_bad_rows()])
    rows: dict[str, int] = field(default_factory=dict)  # read, by table
    left_out: dict[str, list[pl.DataFrame]] = field(default_factory=dict)  # table -> its key, ROW, FILE
    is_unordered: bool = False  # by the mapping, events are not in order of time

    @classmethod
    def read(cls, folder: Path, options: FileOptions) -> RawLog:
        """Read all tables of a folder. Raises InputError for a file that cannot be read."""
        log = cls()
        mapped = mappings.of_layout(options.layout) if options.layout else {}
        mapped |= mappings.parse(options.columns, options.events)
        files = {name: _files(folder, name, mapped.get(name)) for name in SCHEMAS}
        joined = [folders.matching(folder, table.join.file) for table in mapped.values() if table.join is not None]
        unread = folders.unread(folder, [part for parts in [*files.values(), *joined] for part in parts])
        if unread:
            progress.say(f"data: not read, as no table has these names: {', '.join(unread)}")
        for name, schema in SCHEMAS.items():
            parts = files[name]
            if not parts and name in REQUIRED:
                raise InputError(
                    f"{folder}: no {name}.parquet, {name}.csv, {name}.jsonl and no folder {name} with such files; this"
                    f" table is required. Beside the tables there is {', '.join(unread) or 'nothing'}. For another"
                    f" layout, leadre data --inspect {folder} writes a config"
                )
            log.rows[name] = 0
            if not parts:
                continue
            frame = _TableReader(log, folder, name, options, mapped.get(name)).read(parts)
            log.frames[name] = frame
            if schema.key is not None:
                tables.check_unique(name, frame)
        log.is_unordered = "events" in mapped and mapped["events"].unordered
        return log

    def drop(self, name: str, column: str, rule: pl.Expr, why: pl.Expr) -> None:
        """Make the rows for which ``rule`` is true bad rows."""
        frame = self.frames[name]
        rule = rule.fill_null(False)
        dropped = frame.filter(rule)
        if not dropped.height:
            return
        self.bad.append(tables.as_bad_rows(name, dropped, column, why))
        self.frames[name] = frame.filter(~rule)
        key = SCHEMAS[name].key
        if key is not None:
            self.left_out.setdefault(name, []).append(dropped.select(key, ROW, FILE))

    def check_share(self, max_share: float) -> None:
        """Raise InputError if too many rows of a table are bad."""
        tables.check_share(pl.concat(self.bad), self.rows, max_share)

    def reasons(self) -> pl.DataFrame:
        """domain, item_id, __left_out: the place and reason of each ad and content that was left out."""
        whys = pl.concat(self.bad).unique(["table", "file", "row"], keep="first", maintain_order=True)
        reasons = [pl.DataFrame(schema={"domain": pl.String, "item_id": pl.String, "__left_out": pl.String})]
        for table, domain in (("ads", "ad"), ("contents", "content")):
            whys_of_table = whys.filter(pl.col("table") == table)
            for rows in self.left_out.get(table, ()):
                joined = rows.rename({ROW: "row", FILE: "file"}).join(whys_of_table, on=["file", "row"], how="inner")
                reason = joined.select(
                    pl.lit(domain).alias("domain"),
                    pl.col(SCHEMAS[table].key or "").alias("item_id"),
                    pl.format("{}, row {}: {} {}", "file", "row", "column", "why").alias("__left_out"),
                )
                reasons.append(reason)
        return pl.concat(reasons).drop_nulls().unique(["domain", "item_id"], keep="first", maintain_order=True)


class _TableReader:
    """Reads the files of one table into a `RawLog`."""

    def __init__(
        self, log: RawLog, folder: Path, name: str, options: FileOptions, mapping: TableMapping | None
    ) -> None:
        self.log = log
        self.name = name
        self.options = options
        self.mapping = mapping
        self.columns = tables.file_columns(name) if mapping is None else mapping.file_columns()
        self._form = _cell_format(options, mapping)
        self._joined = None if mapping is None or mapping.join is None else self._read_joined(folder, mapping.join)
        self._notes: dict[str, list[str]] = {}  # note -> files
        self._rows_read = 0
        self._lines_read = 0
        self._lines_without = 0  # lines from which the conditions of the mapping make nothing
        self._rows_matched = 0  # rows with a row of the joined file

    def read(self, parts: list[Part]) -> pl.DataFrame:
        """The good rows of all parts, with ROW and FILE."""
        schema = SCHEMAS[self.name]
        shown = progress.bar(parts, len(parts), f"{self.name} files") if len(parts) > 1 else parts
        good = [frame for part in shown if (frame := self._read_part(part)) is not None]
        if not good:
            self.log.check_share(0.0)
            raise InputError(f"{parts[0].label}: has no rows; write the table {self.name} into it, or delete the file")
        for note, labels in self._notes.items():
            progress.say(f"data: {labels[0]}" + f" and {len(labels) - 1:,} more" * (len(labels) > 1) + f": {note}")
        if self.mapping is not None and self.mapping.join is not None:
            self._say_matches(self.mapping.join)
        if self._lines_without:
            progress.say(
                f"data: {self.name}: {self._lines_without:,} of {self._lines_read:,} rows meet no condition of"
                " the mapping"
            )
        if schema.others:
            profiles.check_types(good, schema.key or "")
        table = pl.concat(good, how="diagonal_relaxed" if schema.others else "diagonal")
        if self.mapping is not None and self.mapping.distinct and schema.key is not None:
            table = table.unique(schema.key, keep="first", maintain_order=True)
        extra = {ROW: table[ROW], FILE: table[FILE]}
        return tables.complete(self.name, table.drop(ROW, FILE)).with_columns(**extra)

    def _read_part(self, part: Part) -> pl.DataFrame | None:
        """The good rows of one file; None for a file without rows that can be read."""
        name = self.name
        rows = raw.read(part, self.columns, self.options)
        frame = rows.frame
        if not frame.height and not rows.bad.height:
            self._notes.setdefault("has no rows", []).append(part.label)
            return None
        for note in filter(None, (*rows.notes, tables.unread_columns(self.columns, frame.columns, self.columns.known))):
            self._notes.setdefault(note, []).append(part.label)
        self.log.bad.append(rows.bad)
        if self.mapping is not None and frame.height:
            unmapped = frame
            frame = self.mapping.rows(unmapped, self._joined, part.label, self._rows_read)
            lines = unmapped[ROW].n_unique()  # a line of JSON may hold several rows
            self._rows_read += unmapped.height
            self._lines_read += lines
            self._lines_without += lines - frame[ROW].n_unique()
            if self.mapping.join is not None and self._joined is not None:
                keys = unmapped[self.mapping.join.on].cast(pl.String)
                self._rows_matched += keys.is_in(self._joined[self.mapping.join.on].implode()).arg_true().len()
        self.log.rows[name] += frame[ROW].n_unique() + rows.bad.height  # a row may give several events
        if not frame.height:
            return None
        typed, bad_rows = cells.conform(name, frame, part.label, self._form)
        for note in doubts.notes(name, frame, typed, self._form.list_separator):
            self._notes.setdefault(note, []).append(part.label)
        self.log.bad.append(bad_rows)
        key = SCHEMAS[name].key
        if bad_rows.height and key is not None:
            column = next(column for column in frame.columns if tables.plain_name(column) == key)
            bad = frame.filter(pl.col(ROW).is_in(bad_rows["row"].implode()))
            ids = bad.select(pl.col(column).cast(pl.String).alias(key), ROW, pl.lit(part.label).alias(FILE))
            self.log.left_out.setdefault(name, []).append(ids)
        return typed

    def _say_matches(self, join: mappings.Join) -> None:
        """Say how many rows have a row of the joined file. Raises InputError if none has."""
        if not self._rows_matched and self._joined is not None:
            place = f"[data] join of {self.name} with {join.file}"
            if not self._joined.height:
                raise InputError(f"{place}: the file has no rows; fill it, or remove the join")
            keys = ", ".join(map(repr, self._joined[join.on].head(3).to_list()))
            raise InputError(
                f"{place}: none of {self._rows_read:,} rows has a {join.on} that is in the file, which begins with"
                f" {keys}; keys are compared as text, letter by letter"
            )
        progress.say(
            f"data: {self.name}: {self._rows_matched:,} of {self._rows_read:,} rows match a row of {join.file} by"
            f" {join.on}"
        )

    def _read_joined(self, folder: Path, join: mappings.Join) -> pl.DataFrame:
        """The rows of a joined file by its key. Raises InputError if a key occurs twice."""
        parts = folders.matching(folder, join.file)
        columns = dataclasses.replace(self.columns, others=True, header=join.header)
        read = [raw.read(part, columns, self.options) for part in parts]
        place = f"[data] join of {self.name} with {join.file}"
        frame = pl.concat([rows.frame for rows in read], how="diagonal_relaxed").drop(ROW)
        if join.on not in frame.columns:
            raise InputError(f"{place}: has no column {join.on!r}; it has {', '.join(frame.columns[:30])}")
        frame = frame.with_columns(pl.col(join.on).cast(pl.String))
        if any(rows.bad.height for rows in read):
            bad = next(rows.bad for rows in read if rows.bad.height).row(0, named=True)
            raise InputError(f"{place}: {bad['file']}, row {bad['row']}: {bad['why']}")
        repeated = frame.filter(pl.col(join.on).is_duplicated())
        if repeated.height:
            raise InputError(f"{place}: {join.on} {repeated[join.on][0]!r} is there twice; keep one row for each")
        return frame


def _files(folder: Path, name: str, mapping: TableMapping | None) -> list[Part]:
    if mapping is None or not mapping.file:
        return folders.find(folder, name)
    return folders.matching(folder, mapping.file)


def _cell_format(options: FileOptions, mapping: TableMapping | None) -> CellFormat:
    """The format of the cells of a table; the settings of its mapping come before the options."""
    earliest = date(options.earliest, "earliest")
    latest = date(options.latest, "latest")
    if not earliest < latest:
        raise InputError(f"--earliest {options.earliest} is not before --latest {options.latest}; swap them")
    unit = options.time_unit
    zone = options.time_zone
    origin = options.time_origin
    if mapping is not None:
        unit = mapping.time_unit or unit  # type: ignore[assignment]  # checked by mapping.parse
        zone = mapping.time_zone or zone
        origin = mapping.time_origin or origin
    if not options.list_separator:
        raise InputError("--list-separator is empty; write the characters between the entries, such as ' > '")
    try:
        ZoneInfo(zone)
    except (ValueError, OSError, ZoneInfoNotFoundError) as error:
        raise InputError(f"--time-zone {zone!r}: no such zone; write it as Asia/Shanghai or UTC") from error
    earliest_us, latest_us, origin_us = (
        (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        for moment in (earliest, latest, date(origin, "time-origin"))
    )
    time = TimeFormat(unit=unit, zone=zone, origin_us=origin_us, earliest_us=earliest_us, latest_us=latest_us)
    return CellFormat(
        time=time,
        decimal_comma=options.decimal_comma,
        max_median_amount=options.max_median_amount,
        numbers=options.profile_numbers,
        list_separator=options.list_separator,
    )
