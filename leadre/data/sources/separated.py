"""CSV files: fields separated by commas, tabs, semicolons or pipes, quoted as in RFC 4180.

A file is scanned before it is parsed. Polars parses a file that keeps to RFC 4180. It would join rows where a quote is
inside an unquoted field (``27" screen``), so the standard library parses such a file, which takes the quote as text.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from leadre.data.sources import header, scan
from leadre.data.sources.header import SEPARATORS
from leadre.data.tables import ROW, TEXT, FileColumns
from leadre.errors import InputError

_CHUNK_ROWS = 50_000


def read(path: Path, columns: FileColumns, label: str, max_field_bytes: int) -> tuple[pl.DataFrame, list[str]]:
    """(all cells as text, with the column ROW; notes for the user).

    A row without any value is left out, as a blank line is; so are a column without a name and a row that repeats the
    header, as files have that were written one behind another. Raises InputError for a header without a known column,
    invalid UTF-8, a field longer than ``max_field_bytes``, a row with more fields than the header, and a quoted field
    that does not end at a separator.
    """
    scan.check_form(path, label)
    names, separator = header.read(path, columns, label, max_field_bytes)
    dialect = _Dialect(separator=separator, quoted=columns.quoted, first=1 if columns.header else 2)
    keeps_to_rfc = scan_csv(path, names, label, max_field_bytes, separator, quoted=columns.quoted)
    frame = _by_polars(path, dialect) if keeps_to_rfc else None
    if frame is None:
        frame = _by_standard_library(path, names, label, max_field_bytes, dialect)
    frame = frame.filter(pl.any_horizontal(pl.exclude(ROW).is_not_null()))
    notes = [] if separator == "," else [f"fields are separated by {SEPARATORS[separator]}"]
    unnamed = [column for column, name in zip(frame.columns[1:], names, strict=True) if not name.strip()]
    if unnamed:
        notes.append(f"{len(unnamed)} column{'s' * (len(unnamed) > 1)} without a name is not read")
    frame = frame.with_columns(pl.col(ROW).cast(pl.Int64))
    frame.columns = [
        ROW,
        *(name if name.strip() else column for column, name in zip(frame.columns[1:], names, strict=True)),
    ]
    frame = frame.drop(unnamed)
    if not columns.header and (repeats := _repeats_header(frame)).any():
        notes.append(f"rows that repeat the header: {repeats.sum():,}; they are left out")
        frame = frame.filter(~repeats)
    return frame, notes


def _repeats_header(frame: pl.DataFrame) -> pl.Series:
    """Mask of the rows whose cells are the names of the columns; the first may have a byte-order mark before it."""
    names = [column for column in frame.columns if column != ROW]
    mask = pl.repeat(bool(names), frame.height, dtype=pl.Boolean, eager=True)
    for name in names:
        if not mask.any():
            break
        cells = frame[name].str.strip_prefix("\ufeff") if name == names[0] else frame[name]
        mask &= (cells == name).fill_null(False)
    return mask


@dataclass(frozen=True, kw_only=True)
class _Dialect:
    """``first``: row of the first record, 2 after a header. ``quoted``: fields may be in double quotes."""

    separator: str
    quoted: bool
    first: int


def scan_csv(
    path: Path, names: list[str], label: str, max_field_bytes: int, separator: str = ",", *, quoted: bool = True
) -> bool:
    """Whether the quotes keep to RFC 4180; constant memory.

    Raises InputError for invalid UTF-8 or a field over the limit, in a file that keeps to it.
    """
    scanner = _Scanner(names, separator, has_quotes=quoted)
    utf8 = scan.Utf8Checker()
    for block in scan.blocks(path):
        scanner.next_block(block)
        if scanner.has_stray_quote():
            return False
        invalid_at = utf8.first_invalid_byte(block)
        if invalid_at is not None:
            scan.invalid_utf8(label, *scanner.row_and_column(invalid_at))
        size_bytes, start = scanner.longest_field()
        if size_bytes > max_field_bytes:
            scan.too_long(label, *scanner.row_and_column(start), max_field_bytes)
    scanner.next_block(b"")
    if utf8.is_inside_character():
        raise InputError(f"{label}, row {scanner.row}: the file ends inside a character; the file is truncated")
    if scanner.quoted:
        raise InputError(f"{label}, row {scanner.row}: the file ends inside a quoted field; close its quote")
    return True


class _Scanner:
    """Row and column of the fields of a CSV, block by block."""

    def __init__(self, columns: list[str], separator: str, *, has_quotes: bool) -> None:
        self.columns = columns
        self.has_quotes = has_quotes
        self.separator = ord(separator)
        # row, column and quoting at the start of the block
        self.row = 1
        self.column = 0
        self.quoted = False
        self._open_bytes = 0  # size so far of a field that began in an earlier block
        self._size = 0
        self._ends = np.empty(0, np.int64)  # of fields, within the block
        self._line_ends = np.empty(0, np.int64)
        self._last = ord("\n")  # the byte before the block
        self._is_closed = False  # that byte is a quote that may close a field
        self._has_stray_quote = False

    def next_block(self, block: bytes) -> None:
        """Move to the end of the last block and scan this one."""
        if len(self._line_ends):
            self.row += len(self._line_ends)
            self.column = 0
        after = self._ends > self._line_ends[-1] if len(self._line_ends) else self._ends >= 0
        self.column += int(after.sum())
        self._open_bytes = self._size - int(self._ends[-1]) - 1 if len(self._ends) else self._open_bytes + self._size
        data = np.frombuffer(block, np.uint8)
        is_line_end = data == ord("\n")
        is_end = is_line_end | (data == self.separator)
        quotes = np.flatnonzero(data == ord('"')) if self.has_quotes else np.empty(0, np.int64)
        is_inside = np.zeros(0, np.bool_)
        if len(quotes) or self.quoted:
            marks = np.zeros(len(data), np.uint8)
            marks[quotes] = 1
            is_inside = (np.cumsum(marks, dtype=np.uint8) + self.quoted) % 2 == 1  # the overflow of 256 is even
            is_line_end &= ~is_inside
            is_end &= ~is_inside
        self._line_ends = np.flatnonzero(is_line_end)
        self._ends = np.flatnonzero(is_end)
        self._check_quotes(data, quotes, is_inside[quotes])
        self.quoted = bool(is_inside[-1]) if len(is_inside) else self.quoted
        self._size = len(data)

    def has_stray_quote(self) -> bool:
        """Whether a quote so far is neither at the start nor at the end of a field, nor one of a pair inside."""
        return self._has_stray_quote

    def row_and_column(self, at: int) -> tuple[int, str]:
        """(row, column name) of byte ``at`` of the block."""
        lines = self._line_ends[self._line_ends < at]
        fields = self._ends[self._ends < at]
        number = int((fields > lines[-1]).sum()) if len(lines) else self.column + len(fields)
        name = self.columns[number] if number < len(self.columns) else f"number {number + 1}"
        return self.row + len(lines), name

    def longest_field(self) -> tuple[int, int]:
        """(bytes, first byte in this block) of the longest field that ends in this block or is still open."""
        sizes = np.diff(np.concatenate([[-1], self._ends, [self._size]])) - 1
        sizes[0] += self._open_bytes
        number = int(sizes.argmax())
        return int(sizes[number]), int(self._ends[number - 1]) + 1 if number else 0

    def _check_quotes(self, data: np.ndarray, quotes: np.ndarray, is_opening: np.ndarray) -> None:
        """``is_opening``: for each quote, whether its field is inside quotes after it."""
        if not len(data):
            return
        opens = quotes[is_opening]
        # A quote opens a field at its start; after a quote, it is the second of a pair.
        before = np.where(opens > 0, data[opens - 1], self._last)
        can_open = np.isin(before, [self.separator, ord("\n"), ord('"'), ord("\r")])
        if self.row == 1 and self._last == ord("\n") and not self.column:
            can_open |= (opens == 3) & data[:3].tobytes().startswith(b"\xef\xbb\xbf")
        closes = quotes[~is_opening]
        followed = data[closes[closes + 1 < len(data)] + 1]
        after = np.append(followed, data[0]) if self._is_closed else followed
        can_follow = np.isin(after, [self.separator, ord("\n"), ord("\r"), ord('"')])
        self._has_stray_quote |= not (can_open.all() and can_follow.all())
        self._last = int(data[-1])
        self._is_closed = bool(len(closes) and closes[-1] == len(data) - 1)


def _by_polars(path: Path, dialect: _Dialect) -> pl.DataFrame | None:
    """None if Polars cannot parse the file; the standard library then finds the place."""
    try:
        return pl.read_csv(
            path,
            has_header=dialect.first == 2,
            infer_schema=False,
            separator=dialect.separator,
            quote_char='"' if dialect.quoted else None,
            row_index_name=ROW,
            row_index_offset=dialect.first,
        )
    except pl.exceptions.PolarsError:
        return None


def _by_standard_library(
    path: Path, names: list[str], label: str, max_field_bytes: int, dialect: _Dialect
) -> pl.DataFrame:
    """The frame of a file with quotes inside unquoted fields. Raises InputError for a row that cannot be read."""
    frames: list[pl.DataFrame] = []
    rows: list[list[str | None]] = []
    numbers: list[int] = []
    columns = [f"column {n}" for n in range(len(names))]
    limit_before = csv.field_size_limit(max_field_bytes)

    def flush() -> None:
        cells = zip(*rows, strict=True) if rows else [[] for _ in columns]
        series = [pl.Series(name, values, dtype=TEXT) for name, values in zip(columns, cells, strict=True)]
        frames.append(pl.DataFrame([pl.Series(ROW, numbers, dtype=pl.Int64), *series]))
        rows.clear()
        numbers.clear()

    number = dialect.first - 1
    quoting = header.quoting(dialect.quoted)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=dialect.separator, strict=True, quoting=quoting)
            if dialect.first == 2:
                next(reader, None)
            for number, row in enumerate(reader, start=dialect.first):
                if any(row[len(names) :]):  # empty ones follow from a separator at the end of each row
                    raise InputError(
                        f"{label}, row {number}: {len(row)} fields, but the header has {len(names)}; put fields that"
                        f" contain the separator {dialect.separator!r} in double quotes"
                    )
                rows.append([cell or None for cell in row[: len(names)]] + [None] * (len(names) - len(row)))
                numbers.append(number)
                if len(rows) == _CHUNK_ROWS:
                    flush()
    except UnicodeDecodeError:
        scan.invalid_utf8(label, number + 1, "unknown")
    except csv.Error as error:
        column = _column_of_fault(path, number, names, dialect.separator)
        raise InputError(
            f"{label}, row {number + 1}, column {column!r}: a quote inside a quoted field is not doubled, or the field"
            f' is not closed ({error}); write "27"" screen" for 27" screen'
        ) from error
    finally:
        csv.field_size_limit(limit_before)
    flush()
    return pl.concat(frames)


def _column_of_fault(path: Path, records: int, names: list[str], separator: str) -> str:
    """The column of the first quoted field that does not end at a separator, after ``records`` valid records."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        for _ in range(records):
            next(reader)
        text = file.read(scan.BLOCK_BYTES)
    number = 0
    while text.startswith('"') or separator in text:
        if not text.startswith('"'):
            text = text.split(separator, 1)[1]
        else:
            end = re.match(r'"(?:[^"]|"")*"' + re.escape(separator), text)
            if end is None:
                break
            text = text[end.end() :]
        number += 1
    return names[number] if number < len(names) else f"number {number + 1}"
