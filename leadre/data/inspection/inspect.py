"""Inspect a folder of logs: find a layout that fits, or draft a mapping, and read the first rows by it."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from leadre import progress
from leadre.data import text
from leadre.data.inspection import draft as drafts
from leadre.data.inspection import excerpts
from leadre.data.inspection.excerpts import Excerpts
from leadre.data.inspection.sections import Draft, toml
from leadre.data.sources import files, mapping
from leadre.data.sources.options import TIME_UNITS, FileOptions
from leadre.data.sources.raw_log import RawLog
from leadre.data.split import SplitTimes
from leadre.data.tables import SCHEMAS, shorten
from leadre.errors import InputError

ROWS = 10  # that are shown
_MAX_CELL = 40  # characters of a cell that is shown


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """``config``: the text of a TOML file. ``report``: for the console. ``is_complete``: the config runs as it is."""

    config: str
    report: str
    is_complete: bool


def inspect(folder: Path, options: FileOptions, cut: SplitTimes) -> Inspection:
    """Inspect ``folder``, at a cost that does not grow with it. Raises InputError if it is no folder of tables.

    Of each table at most `excerpts.MAX_BYTES` are read. ``options``: those that the user set hold.
    """
    with tempfile.TemporaryDirectory(prefix="leadre-") as place:
        copy = Path(place)
        sample = excerpts.take(folder, copy, options)
        if not sample.tables:
            unread = "; ".join(sample.unread[:10]) or "it is empty"
            raise InputError(f"{folder}: has no table that can be read: {unread}")
        with progress.silenced():
            draft = _known(copy, options)
        if draft is None:
            draft = drafts.make(sample.tables)
            draft.missing[:0] = [reason for reason in sample.unread if reason.split(".")[0].lower() in SCHEMAS]
        body = _body(folder, options, cut, draft)
        is_whole = all(table.is_whole for table in sample.tables)
        rows = []
        if not draft.missing:
            rows = _proof(folder, copy, body, options, cut, draft, is_whole=is_whole)
    about = _about(sample, draft, is_whole=is_whole)
    comments = "".join(f"# {line}\n" for line in [*about, *rows[:1]])
    config = f"# Written by leadre data --inspect. Each guess is marked: look at it.\n#\n{comments}\n{body}"
    return Inspection(config=config, report="\n".join([*about, *rows]), is_complete=not draft.missing)


def _known(copy: Path, options: FileOptions) -> Draft | None:
    """The draft for tables that have the names of LEADRE's, or the layout of a public log; None for others."""
    units: list[Any] = [options.time_unit, *(unit for unit in TIME_UNITS if unit != options.time_unit)]
    trials = [("", unit) for unit in units] + [(layout, options.time_unit) for layout in mapping.layouts()]
    for layout, unit in trials:
        trial = dataclasses.replace(options, layout=layout, time_unit=unit, columns=None, events=None)
        try:
            log = RawLog.read(copy, trial)
            log.check_share(options.max_bad_share)
        except InputError:
            continue
        draft = Draft()
        if layout:
            draft.options.append(("layout", toml(layout), "files and columns are those of this public log"))
        elif unit != options.time_unit:
            draft.options.append(("time_unit", toml(unit), "the range of times that are numbers"))
        events = log.frames["events"]
        before = pl.col("at").cum_max().shift(1).over("user_id")
        if not log.is_unordered and not trial.unordered and events.filter(pl.col("at") < before).height:
            draft.options.append(("unordered", "true", "events of a user are not in the order of time"))
        events = events.filter(domain="ad")
        for positive in ("conversion", "click"):
            if positive in events["action"]:
                draft.options.append(("positive", toml(positive), f"the rows have {positive}s"))
                return draft
        draft.missing.append("events: no clicks and no conversions of ads were found in the rows that were read")
        return draft
    return None


def _body(folder: Path, options: FileOptions, cut: SplitTimes, draft: Draft) -> str:
    """The config without its comments above."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).lstrip(".-") or "logs"
    lines = [f"run = {toml(name)}", "", "[data]", 'source = "files"', f"path = {toml(str(folder))}"]
    values = {f.name: (getattr(options, f.name), f.default) for f in dataclasses.fields(FileOptions)}
    drafted = [key for key, _, _ in draft.options]
    for key, (value, default) in values.items():
        if value != default and key not in (*drafted, "columns", "events", "layout"):
            lines.append(f"{key} = {toml(list(value) if isinstance(value, tuple) else value)}")
    lines += [
        f"{f.name} = {toml(value)}" for f in dataclasses.fields(cut) if (value := getattr(cut, f.name)) != f.default
    ]
    lines += [f"{key} = {value}  # guess: {why}" for key, value, why in draft.options]
    for section in draft.sections:
        lines += ["", *section.text()]
    return "\n".join(lines) + "\n"


def _proof(
    folder: Path, copy: Path, body: str, options: FileOptions, cut: SplitTimes, draft: Draft, *, is_whole: bool
) -> list[str]:
    """Rows as the config reads them; adds to ``draft.missing`` the reason for which it cannot."""
    section = tomllib.loads(body)["data"]
    values = {key: value for key, value in section.items() if key in FileOptions.__dataclass_fields__}
    options = dataclasses.replace(options, **values)
    try:
        log = RawLog.read(copy, options)
        log.check_share(options.max_bad_share)
        if is_whole:
            with progress.silenced():
                files.read(copy, options, cut, section["positive"])
    except InputError as error:
        draft.missing.append(str(error).replace(str(copy), str(folder)))
        return []
    events = log.frames["events"]
    counts = events.group_by("action").len().sort("len", descending=True)
    actions = ", ".join(f"{count:,} {action}s" for action, count in counts.iter_rows())
    first, last = (_cell(value) for value in (events["at"].min(), events["at"].max()))
    which = "all rows" if is_whole else "the rows that were read"
    lines = [
        f"in {which}: {events['user_id'].n_unique():,} users and {events['item_id'].n_unique():,} items in the events,"
        f" {log.frames['ads'].height:,} ads; {actions}, from {first} to {last}"
    ]
    for name in ("ads", "users", "events"):
        if name in log.frames:
            rows = log.frames[name].head(ROWS if name == "events" else 3)
            lines += ["", f"{name}, as they will be read:", *_table(rows)]
    return lines


def _table(frame: pl.DataFrame) -> list[str]:
    """The rows as lines, without columns that have no values."""
    columns = [c for c in frame.columns if not c.startswith("__") and frame[c].null_count() < frame.height]
    cells = [[text.clean(column, _MAX_CELL), *(_cell(value) for value in frame[column])] for column in columns[:12]]
    widths = [max(map(len, column)) for column in cells]
    rows = zip(*cells, strict=True)
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    shown_value = " > ".join(map(str, value)) if isinstance(value, list | pl.Series) else str(value)
    return text.clean(shown_value.removesuffix("+00:00"), _MAX_CELL) or "-"


def _about(sample: Excerpts, draft: Draft, *, is_whole: bool) -> list[str]:
    """Tables, missing parts and notes, a line each."""
    lines = ["found:"]
    for table in sample.tables:
        rows = f"{table.frame.height:,} rows" if table.is_whole else f"the first {table.frame.height:,} rows"
        parts = f" in {table.parts:,} files" if table.parts > 1 else ""
        header = ", no header" if table.header else ", the first row is taken as header" * table.is_header_guessed
        columns = ", ".join(text.clean(column, _MAX_CELL) for column in table.frame.columns[:12])
        more = f" and {table.frame.width - 12:,} more" if table.frame.width > 12 else ""
        lines.append(f"  {shorten(table.file)}: {rows}{parts}{header}; columns {columns}{more}")
    lines += [f"  not read: {_line(reason)}" for reason in sample.unread[:20]]
    if len(sample.unread) > 20:
        lines.append(f"  not read: {len(sample.unread) - 20:,} more")
    if not is_whole:
        lines.append("  rows beyond these were not checked")
    lines.append("missing, and needed:" if draft.missing else "missing: nothing that is needed")
    lines += [f"  {_line(reason)}" for reason in draft.missing]
    if draft.absent:
        lines += ["look at:", *(f"  {_line(reason)}" for reason in draft.absent)]
    return lines


def _line(reason: str) -> str:
    return text.clean(reason, 1_000)
