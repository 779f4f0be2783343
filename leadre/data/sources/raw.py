"""Untrusted log files -> raw frames.

CSV and JSON give text columns, which ``conform`` then converts; Parquet keeps its types.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from leadre.data import tables
from leadre.data.sources import json_rows, parquet, separated, unpacked
from leadre.data.sources.folder import Part
from leadre.data.sources.options import FileOptions
from leadre.data.tables import FileColumns
from leadre.errors import InputError

LOCK = ".lock"  # file in a folder of tables; a process that replaces several files by one holds it exclusively


@dataclass(frozen=True, kw_only=True)
class RawRows:
    """The rows of one file: ``frame`` has the column ROW, ``bad`` the form of BAD_ROWS; ``notes`` are for the user."""

    frame: pl.DataFrame
    bad: pl.DataFrame = field(default_factory=tables.no_bad_rows)
    notes: list[str] = field(default_factory=list)


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Hold the shared lock of a folder, so that a bidder that writes its tables there merges no files meanwhile."""
    with ExitStack() as stack:
        with suppress(FileNotFoundError):
            fcntl.flock(stack.enter_context((folder / LOCK).open("rb")), fcntl.LOCK_SH)
        yield


def read(part: Part, columns: FileColumns, options: FileOptions) -> RawRows:
    """The rows of one file of a table, with the columns that the names of its folders give.

    Raises InputError if the file is not of the format of its ending, has invalid UTF-8, or a field longer than
    ``options.max_field_bytes`` (of JSON: an object).
    """
    try:
        with unpacked.plain(part, options.max_unpacked_bytes) as path:
            rows = _read(path, part, columns, options)
    except OSError as error:
        raise InputError(
            f"{part.label}: cannot be read ({error.strerror or error}); check the file and its permissions"
        ) from error
    keys = [pl.lit(value, pl.String).alias(key) for key, value in part.keys if key not in rows.frame.columns]
    return RawRows(frame=rows.frame.with_columns(keys), bad=rows.bad, notes=rows.notes)


def _read(path: Path, part: Part, columns: FileColumns, options: FileOptions) -> RawRows:
    max_field_bytes = options.max_field_bytes
    if path.stat().st_size == 0:
        return RawRows(frame=pl.DataFrame(schema={tables.ROW: pl.Int64}))
    if part.form == "parquet":
        return RawRows(frame=parquet.read(path, columns, part.label, max_field_bytes))
    if part.form == "separated":
        frame, notes = separated.read(path, columns, part.label, max_field_bytes)
        return RawRows(frame=frame, notes=notes)
    frame, bad = json_rows.read(
        path,
        columns,
        part.label,
        max_field_bytes,
        may_be_array=part.form == "json",
        decimal_comma=options.decimal_comma,
    )
    return RawRows(frame=frame, bad=bad)
