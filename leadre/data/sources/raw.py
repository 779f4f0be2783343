"""Untrusted log files -> raw frames.

Text files are first scanned in blocks of constant size, so that an error names row and column of a field of a gigabyte
or of invalid UTF-8 before a parser reads it. CSV and JSON lines give text columns, which ``tables.conform`` then
converts; Parquet keeps its types.
"""

from __future__ import annotations

import codecs
import csv
import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from leadre import checked_parquet
from leadre.data import tables
from leadre.data.tables import LIST_MARK, ROW
from leadre.errors import InputError

LOCK = ".lock"  # file in a folder of tables; a process that replaces several files by one holds it exclusively
ENDINGS = (".parquet", ".csv", ".jsonl")
BLOCK_BYTES = 1 << 20
_CHUNK_ROWS = 50_000


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Hold the shared lock of a folder, so that a bidder that writes its tables there merges no files meanwhile."""
    with ExitStack() as stack:
        with suppress(FileNotFoundError):
            fcntl.flock(stack.enter_context((folder / LOCK).open("rb")), fcntl.LOCK_SH)
        yield


def find_files(folder: Path, name: str) -> list[Path]:
    """The files of one table, sorted by name; [] if there are none. Raises InputError if it exists in two forms."""
    forms = [folder / f"{name}{ending}" for ending in ENDINGS if (folder / f"{name}{ending}").is_file()]
    parts = (
        sorted(path for path in (folder / name).glob("*") if path.suffix in ENDINGS) if (folder / name).is_dir() else []
    )
    names = [str(path.name) for path in forms] + ([f"{name}/"] if parts else [])
    if len(names) > 1:
        raise InputError(f"{folder}: the table {name} exists {len(names)} times ({', '.join(names)}); keep one of them")
    return forms or parts


def read(path: Path, name: str, label: str, max_field_bytes: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(rows with the column ROW, rows that do not parse in the form of BAD_ROWS). ``label`` names the file in messages.

    Raises InputError if the file is empty, is not of the format of its ending, has invalid UTF-8, or a field longer
    than ``max_field_bytes`` (in JSON lines: a line).
    """
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{label}: the file is empty; write the table {name} into it, or delete it")
        if path.suffix == ".parquet":
            return _parquet(path, label, max_field_bytes), tables.no_bad_rows()
        if path.suffix == ".csv":
            scan_csv(path, label, max_field_bytes)
            return _csv(path, label), tables.no_bad_rows()
        scan_json_lines(path, label, max_field_bytes)
        return _json_lines(path, name, label)
    except OSError as error:
        raise InputError(
            f"{label}: cannot be read ({error.strerror or error}); check the file and its permissions"
        ) from error


def scan_csv(path: Path, label: str, max_field_bytes: int) -> None:
    """Raise InputError for invalid UTF-8 or a field over the limit; constant memory. Fields may be quoted."""
    scanner = _CsvScanner(_header(path, label, max_field_bytes))
    utf8 = _Utf8Checker()
    for block in _blocks(path):
        scanner.next_block(block)
        invalid_at = utf8.first_invalid_byte(block)
        if invalid_at is not None:
            _invalid_utf8(label, *scanner.row_and_column(invalid_at))
        size_bytes, start = scanner.longest_field()
        if size_bytes > max_field_bytes:
            _too_long(label, *scanner.row_and_column(start), max_field_bytes)
    scanner.next_block(b"")
    if utf8.is_inside_character() or scanner.quoted:
        place = "a quoted field; close its quote" if scanner.quoted else "a character; the file is truncated"
        raise InputError(f"{label}, row {scanner.row}: the file ends inside {place}")


class _CsvScanner:
    """Row and column of the fields of a CSV, block by block."""

    def __init__(self, columns: list[str]) -> None:
        self.columns = columns
        # row, column and quoting at the start of the block
        self.row = 1
        self.column = 0
        self.quoted = False
        self._open_bytes = 0  # size so far of a field that began in an earlier block
        self._size = 0
        self._ends = np.empty(0, np.int64)  # of fields, within the block
        self._line_ends = np.empty(0, np.int64)

    def next_block(self, block: bytes) -> None:
        """Move to the end of the last block and scan this one."""
        if len(self._line_ends):
            self.row += len(self._line_ends)
            self.column = 0
        after = self._ends > self._line_ends[-1] if len(self._line_ends) else self._ends >= 0
        self.column += int(after.sum())
        self._open_bytes = self._size - int(self._ends[-1]) - 1 if len(self._ends) else self._open_bytes + self._size
        data = np.frombuffer(block, np.uint8)
        inside = (np.cumsum(data == ord('"')) + self.quoted) % 2 == 1
        self._line_ends = np.flatnonzero((data == ord("\n")) & ~inside)
        self._ends = np.flatnonzero(((data == ord("\n")) | (data == ord(","))) & ~inside)
        self.quoted = bool(inside[-1]) if len(data) else self.quoted
        self._size = len(data)

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


def scan_json_lines(path: Path, label: str, max_field_bytes: int) -> None:
    """As `scan_csv`, for JSON lines; the limit applies to a whole line."""
    row = 1
    line_start = 0
    offset = 0  # of the block in the file
    utf8 = _Utf8Checker()
    for block in _blocks(path):
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
        invalid_at = utf8.first_invalid_byte(block)
        if invalid_at is not None:
            before = ends[ends < invalid_at]
            start = offset + int(before[-1]) + 1 if len(before) else line_start
            length = min(offset + invalid_at - start, BLOCK_BYTES)
            _invalid_utf8(label, row + len(before), _last_key(path, start, length))
        sizes = np.diff(np.concatenate([[line_start - offset - 1], ends, [len(block)]])) - 1
        if sizes.max() > max_field_bytes:
            number = int(sizes.argmax())
            start = line_start if number == 0 else offset + int(ends[number - 1]) + 1
            _too_long(label, row + number, _last_key(path, start, min(max_field_bytes, BLOCK_BYTES)), max_field_bytes)
        if len(ends):
            row += len(ends)
            line_start = offset + int(ends[-1]) + 1
        offset += len(block)
    if utf8.is_inside_character():
        raise InputError(f"{label}, row {row}: the file ends inside a character; the file is truncated")


class _Utf8Checker:
    """Incremental check of UTF-8, block by block."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")

    def first_invalid_byte(self, block: bytes) -> int | None:
        """Offset in the block; 0 if the invalid sequence began in an earlier block; None if the block is valid."""
        try:
            self._decoder.decode(block)
        except UnicodeDecodeError as error:
            return max(0, error.start - (len(error.object) - len(block)))
        return None

    def is_inside_character(self) -> bool:
        """Whether the last block ended inside a multi-byte character."""
        return bool(self._decoder.getstate()[0])


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _header(path: Path, label: str, max_field_bytes: int) -> list[str]:
    with path.open("rb") as file:
        line = file.readline(min(max_field_bytes, BLOCK_BYTES) + 1)
    if not line.endswith(b"\n") and len(line) > min(max_field_bytes, BLOCK_BYTES):
        _too_long(label, 1, "the header", max_field_bytes)
    try:
        names = next(csv.reader([line.decode("utf-8-sig").rstrip("\r\n")]), [])
    except UnicodeDecodeError:
        _invalid_utf8(label, 1, "the header")
    except csv.Error as error:
        raise InputError(
            f"{label}, row 1: the header is not valid CSV ({error}); write the column names, separated by commas"
        ) from error
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(
            f"{label}, row 1: column {repeated[0]!r} occurs {names.count(repeated[0])} times; keep one of them"
        )
    return names


def _csv(path: Path, label: str) -> pl.DataFrame:
    try:
        frame = pl.read_csv(path, infer_schema=False, row_index_name=ROW, row_index_offset=2)
    except pl.exceptions.PolarsError as error:
        raise InputError(
            _extra_fields(path, label) or f"{label}: not valid CSV ({_first_line(error)}); write the file again"
        ) from error
    return frame.with_columns(pl.col(ROW).cast(pl.Int64))


def _extra_fields(path: Path, label: str) -> str | None:
    """The message for the first row with more fields than the header; None if there is no such row."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        width = len(next(rows, []))
        for number, row in enumerate(rows, start=2):
            if len(row) > width:
                return (
                    f"{label}, row {number}: {len(row)} fields, but the header has {width};"
                    " put fields that contain a comma in double quotes"
                )
    return None


def _json_lines(path: Path, name: str, label: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One object per line; blank lines are skipped. Every value is converted to text (see ``_as_text``)."""
    schema = tables.SCHEMAS[name].columns
    frames: list[pl.DataFrame] = []
    bad: list[tuple[str, str, int, str, str]] = []
    rows: list[dict[str, str | None]] = []
    numbers: list[int] = []

    def flush() -> None:
        keys = list(dict.fromkeys(key for row in rows for key in row))
        columns = {key: pl.Series(key, [row.get(key) for row in rows], dtype=pl.String) for key in keys}
        frames.append(pl.DataFrame({ROW: pl.Series(numbers, dtype=pl.Int64), **columns}))
        rows.clear()
        numbers.clear()

    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            column = ""
            try:
                row = json.loads(line, parse_constant=_raise_constant)
                if not isinstance(row, dict):
                    raise ValueError(f"is not an object but {type(row).__name__}")
                texts = {}
                for column, value in row.items():
                    texts[column] = _as_text(value, schema.get(column, tables.TEXT))
            except (ValueError, RecursionError) as error:
                bad.append((name, label, number, column, f"cannot be read: {tables.shorten(error, 100)}"))
                continue
            texts.pop(ROW, None)
            rows.append(texts)
            numbers.append(number)
            if len(rows) == _CHUNK_ROWS:
                flush()
    flush()
    return pl.concat(frames, how="diagonal"), pl.DataFrame(bad, schema=tables.BAD_ROWS, orient="row")


def _as_text(value: object, kind: pl.DataType) -> str | None:
    """A JSON value as the text of a CSV cell. Raises ValueError for a value that no cell can express."""
    if value is None:
        return None
    if isinstance(value, list) and kind == tables.TEXTS and all(isinstance(entry, str) for entry in value):
        value = LIST_MARK + LIST_MARK.join(entry.replace(LIST_MARK, " ") for entry in value) if value else None
    elif isinstance(value, bool | list | dict) or (isinstance(value, float) and kind == tables.WHOLE):
        raise ValueError(f"{json.dumps(value)} is a JSON {type(value).__name__}, which does not fit")
    text = None if value is None else str(value)
    if text is not None and not text.isascii():
        text.encode()  # JSON can spell a lone surrogate; UnicodeEncodeError is a ValueError
    return text


def _raise_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _parquet(path: Path, label: str, max_field_bytes: int) -> pl.DataFrame:
    if not checked_parquet.is_intact(path):
        raise InputError(
            f"{label}: is damaged, as its checksum differs; if a bidder wrote it, stop the bidder and delete the"
            " folder of its tables: the next start writes them again from the log"
        )
    try:
        with pq.ParquetFile(path) as file:
            _scan_parquet(file, label, max_field_bytes)
        frame = pl.read_parquet(path, hive_partitioning=False)
    except (pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise InputError(
            f"{label}: not a Parquet file that can be read ({_first_line(error)}); write the file again"
        ) from error
    return frame.with_row_index(ROW, offset=1).with_columns(pl.col(ROW).cast(pl.Int64))


def _scan_parquet(file: pq.ParquetFile, label: str, max_field_bytes: int) -> None:
    """Check length and UTF-8 of every text column, batch by batch."""
    schema = file.schema_arrow
    for name in [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]:
        _check_chunk_sizes(file, name, label, max_field_bytes)
        row = 1
        for batch in file.iter_batches(batch_size=1 << 16, columns=[name]):
            texts = batch.column(0)
            as_bytes = texts.cast(pa.large_binary())
            if len(texts) and (pc.max(pc.binary_length(as_bytes)).as_py() or 0) > max_field_bytes:
                too_long = pc.index(pc.greater(pc.binary_length(as_bytes), max_field_bytes), True).as_py()
                _too_long(label, row + too_long, name, max_field_bytes)
            try:
                texts.validate(full=True)
            except pa.ArrowInvalid:
                _invalid_utf8(label, row + _first_invalid_utf8(as_bytes), name)
            row += len(texts)


def _check_chunk_sizes(file: pq.ParquetFile, name: str, label: str, max_field_bytes: int) -> None:
    """Raise InputError, before any read, if by the byte counts of the footer the mean field exceeds the limit."""
    first = 1
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        for index in range(group.num_columns):
            chunk = group.column(index)
            if (
                chunk.path_in_schema == name
                and chunk.total_uncompressed_size > (max_field_bytes + 64) * group.num_rows + 4096
            ):
                _too_long(label, first, name, max_field_bytes)
        first += group.num_rows


def _first_invalid_utf8(values: pa.Array) -> int:
    for index, value in enumerate(values.to_pylist()):
        try:
            (value or b"").decode()
        except UnicodeDecodeError:
            return index
    raise AssertionError("Arrow found invalid UTF-8 that Python does not")


def _last_key(path: Path, start: int, length: int) -> str:
    """The last ``"key":`` in ``length`` bytes from ``start``: the field that contains the fault of a JSON line."""
    with path.open("rb") as file:
        file.seek(start)
        keys = re.findall(rb'"([A-Za-z0-9_ -]{1,64})"\s*:', file.read(length))
    return keys[-1].decode() if keys else "unknown"


def _too_long(label: str, row: int, column: str, limit: int) -> NoReturn:
    raise InputError(
        f"{label}, row {row}, column {column!r}: longer than {limit:,} bytes; shorten it (or close its quote),"
        " or raise --max-field-bytes"
    )


def _invalid_utf8(label: str, row: int, column: str) -> NoReturn:
    raise InputError(
        f"{label}, row {row}, column {column!r}: not valid UTF-8; write the file as UTF-8 again"
        " (a file in Latin-1: iconv -f LATIN1 -t UTF-8)"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
