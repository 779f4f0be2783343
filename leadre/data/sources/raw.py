"""Files that strangers wrote -> raw frames: how a log is opened without trusting it.

Text files are first scanned in blocks of constant size, so that a field of a gigabyte or a broken byte is named by row
and column before a parser sees it. CSV and JSON lines come out as text columns, which ``tables.conform`` then types;
Parquet keeps its types.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from leadre.data import tables
from leadre.data.tables import LIST_MARK, ROW
from leadre.errors import InputError

ENDINGS = (".parquet", ".csv", ".jsonl")
BLOCK_BYTES = 1 << 20
_CHUNK_ROWS = 50_000


def find(folder: Path, name: str) -> list[Path]:
    """The files of one table, in order. Raises InputError where it is there in two forms."""
    forms = [folder / f"{name}{ending}" for ending in ENDINGS if (folder / f"{name}{ending}").is_file()]
    parts = (
        sorted(path for path in (folder / name).glob("*") if path.suffix in ENDINGS) if (folder / name).is_dir() else []
    )
    found = [str(path.name) for path in forms] + ([f"{name}/"] if parts else [])
    if len(found) > 1:
        raise InputError(f"{folder}: {name} is there more than once ({', '.join(found)}); keep one")
    return forms or parts


def read(path: Path, name: str, label: str, max_field_bytes: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(rows with the column ROW, rows that could not be parsed as BAD_ROWS). ``label`` names the file in messages.

    Raises InputError where the file is empty, is not what its ending says, holds invalid UTF-8, or has a field longer
    than ``max_field_bytes`` (a line, in JSON lines).
    """
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{label}: the file is empty; write the {name} table or take the file away")
        if path.suffix == ".parquet":
            return _parquet(path, label, max_field_bytes), tables.no_bad_rows()
        if path.suffix == ".csv":
            scan_csv(path, label, max_field_bytes)
            return _csv(path, label), tables.no_bad_rows()
        scan_lines(path, label, max_field_bytes)
        return _json_lines(path, name, label)
    except OSError as error:
        raise InputError(
            f"{label}: cannot be read ({error.strerror or error}); check the file and its rights"
        ) from error


def scan_csv(path: Path, label: str, max_field_bytes: int) -> None:
    """Raise InputError for invalid UTF-8 or a field over the limit; constant memory. Fields may be quoted."""
    fields = _CsvFields(_header(path, label, max_field_bytes))
    decoder = _Utf8()
    for block in _blocks(path):
        fields.take(block)
        if (broken := decoder.feed(block)) is not None:
            _invalid_utf8(label, *fields.place(broken))
        size_bytes, start = fields.longest()
        if size_bytes > max_field_bytes:
            _too_long(label, *fields.place(start), max_field_bytes)
    fields.take(b"")
    if decoder.unfinished() or fields.quoted:
        what = "a quoted field; close its quote" if fields.quoted else "a character; it was cut off"
        raise InputError(f"{label}, row {fields.row}: the file ends inside {what}")


class _CsvFields:
    """Where the fields of a CSV end, one block after another."""

    def __init__(self, columns: list[str]) -> None:
        self.columns = columns
        self.row, self.column, self.quoted = 1, 0, False  # at the start of the block
        self._open_bytes = 0  # of the field that began in an earlier block
        self._size = 0
        self._ends = self._line_ends = np.empty(0, np.int64)

    def take(self, block: bytes) -> None:
        """Step over the block before, and look at this one."""
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

    def place(self, at: int) -> tuple[int, str]:
        """(row, column name) of byte ``at`` of the block."""
        lines = self._line_ends[self._line_ends < at]
        fields = self._ends[self._ends < at]
        number = int((fields > lines[-1]).sum()) if len(lines) else self.column + len(fields)
        name = self.columns[number] if number < len(self.columns) else f"number {number + 1}"
        return self.row + len(lines), name

    def longest(self) -> tuple[int, int]:
        """(bytes, first byte in this block) of the longest field that ends in it or is still open."""
        sizes = np.diff(np.concatenate([[-1], self._ends, [self._size]])) - 1
        sizes[0] += self._open_bytes
        which = int(sizes.argmax())
        return int(sizes[which]), int(self._ends[which - 1]) + 1 if which else 0


def scan_lines(path: Path, label: str, max_field_bytes: int) -> None:
    """The same for JSON lines, where the limit holds for a whole line."""
    row, line_start, offset = 1, 0, 0
    decoder = _Utf8()
    for block in _blocks(path):
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
        if (broken := decoder.feed(block)) is not None:
            before = ends[ends < broken]
            start = offset + int(before[-1]) + 1 if len(before) else line_start
            _invalid_utf8(label, row + len(before), _last_key(path, start, min(offset + broken - start, BLOCK_BYTES)))
        sizes = np.diff(np.concatenate([[line_start - offset - 1], ends, [len(block)]])) - 1
        if sizes.max() > max_field_bytes:
            which = int(sizes.argmax())
            start = line_start if which == 0 else offset + int(ends[which - 1]) + 1
            _too_long(label, row + which, _last_key(path, start, min(max_field_bytes, BLOCK_BYTES)), max_field_bytes)
        if len(ends):
            row, line_start = row + len(ends), offset + int(ends[-1]) + 1
        offset += len(block)
    if decoder.unfinished():
        raise InputError(f"{label}, row {row}: the file ends inside a character; it was cut off")


class _Utf8:
    """An incremental check: ``feed`` returns where in the block the first broken byte is (0 where it began before)."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")

    def feed(self, block: bytes) -> int | None:
        try:
            self._decoder.decode(block)
        except UnicodeDecodeError as error:
            return max(0, error.start - (len(error.object) - len(block)))
        return None

    def unfinished(self) -> bool:
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
            f"{label}, row 1: the header is no CSV ({error}); write the column names, comma-separated"
        ) from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{label}, row 1: column {twice[0]!r} is there twice; keep one")
    return names


def _csv(path: Path, label: str) -> pl.DataFrame:
    try:
        frame = pl.read_csv(path, infer_schema=False, row_index_name=ROW, row_index_offset=2)
    except pl.exceptions.PolarsError as error:
        raise InputError(
            _ragged(path, label) or f"{label}: not a CSV that can be read ({_first_line(error)})"
        ) from error
    return frame.with_columns(pl.col(ROW).cast(pl.Int64))


def _ragged(path: Path, label: str) -> str | None:
    """Where the first row with too many fields is."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        width = len(next(rows, []))
        for number, row in enumerate(rows, start=2):
            if len(row) > width:
                return (
                    f"{label}, row {number}: {len(row)} fields where the header has {width};"
                    " put fields that hold a comma in double quotes"
                )
    return None


def _json_lines(path: Path, name: str, label: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One object per line; blank lines are passed over. Every value becomes text (see ``_as_text``)."""
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
                row = json.loads(line, parse_constant=_refuse)
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
    """A JSON value as the text that a CSV would hold. Raises ValueError for what has no such text."""
    if value is None:
        return None
    if isinstance(value, list) and kind == tables.TEXTS and all(isinstance(entry, str) for entry in value):
        value = LIST_MARK + LIST_MARK.join(entry.replace(LIST_MARK, " ") for entry in value) if value else None
    elif isinstance(value, bool | list | dict) or (isinstance(value, float) and kind == tables.WHOLE):
        raise ValueError(f"{json.dumps(value)} is a JSON {type(value).__name__}, which does not fit")
    text = None if value is None else str(value)
    if text is not None and not text.isascii():
        text.encode()  # a lone surrogate, which JSON can spell: UnicodeEncodeError is a ValueError
    return text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _parquet(path: Path, label: str, max_field_bytes: int) -> pl.DataFrame:
    try:
        with pq.ParquetFile(path) as file:
            _scan_parquet(file, label, max_field_bytes)
        frame = pl.read_parquet(path, hive_partitioning=False)
    except (pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise InputError(
            f"{label}: not a Parquet file that can be read ({_first_line(error)}); write it again"
        ) from error
    return frame.with_row_index(ROW, offset=1).with_columns(pl.col(ROW).cast(pl.Int64))


def _scan_parquet(file: pq.ParquetFile, label: str, max_field_bytes: int) -> None:
    """Length and UTF-8 of every text column, one batch of rows after another."""
    schema = file.schema_arrow
    for name in [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]:
        _refuse_huge_chunks(file, name, label, max_field_bytes)
        row = 1
        for batch in file.iter_batches(batch_size=1 << 16, columns=[name]):
            texts = batch.column(0)
            as_bytes = texts.cast(pa.large_binary())
            if len(texts) and (pc.max(pc.binary_length(as_bytes)).as_py() or 0) > max_field_bytes:
                long = pc.index(pc.greater(pc.binary_length(as_bytes), max_field_bytes), True).as_py()
                _too_long(label, row + long, name, max_field_bytes)
            try:
                texts.validate(full=True)
            except pa.ArrowInvalid:
                _invalid_utf8(label, row + _first_broken(as_bytes), name)
            row += len(texts)


def _refuse_huge_chunks(file: pq.ParquetFile, name: str, label: str, max_field_bytes: int) -> None:
    """Stop before reading where even the mean field must be over the limit: the footer counts the bytes."""
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


def _first_broken(values: pa.Array) -> int:
    for index, value in enumerate(values.to_pylist()):
        try:
            (value or b"").decode()
        except UnicodeDecodeError:
            return index
    raise AssertionError("Arrow found invalid UTF-8 that Python does not")


def _last_key(path: Path, start: int, length: int) -> str:
    """The last ``"key":`` in ``length`` bytes from ``start``: the field that a fault in a JSON line lies in."""
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
