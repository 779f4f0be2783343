"""The first rows of the files of a folder, at constant cost: copies in a temporary folder, under the same names.

A copy is read by the reader of `leadre data`, so a config that fits the copies fits the files. Files whose names differ
in digits alone (``log-01.csv``, ``log-02.csv``) are one table.
"""

from __future__ import annotations

import csv
import dataclasses
import glob
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from leadre.data.sources import folder as folders
from leadre.data.sources import raw, scan
from leadre.data.sources.folder import Part
from leadre.data.sources.header import SEPARATORS
from leadre.data.sources.options import FileOptions
from leadre.data.tables import ROW, SCHEMAS, TEXT, FileColumns, plain_name
from leadre.errors import InputError

MAX_FILES = 2_000  # that are listed; a folder with more is inspected up to there
MAX_TABLES = 40
MAX_PARTS = 8  # files of one table
MAX_BYTES = 8 << 20  # unpacked, of one table
_BATCH_ROWS = 4_096
_SNIFF_LINES = 50
_NUMBER = re.compile(r"[+-]?\d[\d.,eE+:-]*")
_BETWEEN = re.compile(r"[\s,]*")  # elements of an array


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """The first rows of one table. ``file``: the path or pattern of its files, as a mapping has it."""

    file: str
    parts: int
    bytes: int  # of all files, packed
    is_whole: bool  # the rows are all rows
    frame: pl.DataFrame  # cells of CSV and JSON are text
    form: str
    header: tuple[str, ...] = ()  # invented names of the columns of files without a header
    quoted: bool = True
    is_header_guessed: bool = False

    @property
    def name(self) -> str:
        """The name of the table in words, in lower case: without folder, digits and endings."""
        stem = Path(self.file).name.split(".")[0].lower()
        return re.sub(r"[^a-z]+", "_", stem).strip("_")


@dataclass(frozen=True, kw_only=True)
class Excerpts:
    """The tables of a folder, and the reasons why other files are not among them."""

    tables: list[Excerpt]
    unread: list[str]


def take(folder: Path, to: Path, options: FileOptions) -> Excerpts:
    """Copy the first rows of all tables in ``folder`` to ``to`` and read them. Raises InputError for no folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; --inspect names the folder that holds the files of the logs")
    files, is_cut = _files(folder)
    unread = [f"more than {MAX_FILES:,} files; only the first are inspected"] if is_cut else []
    groups = _groups(folder, files)
    if len(groups) > MAX_TABLES:
        unread.append(f"{len(groups) - MAX_TABLES:,} more tables than {MAX_TABLES}; the largest files are inspected")
    by_size = sorted(groups, key=lambda name: -sum(path.stat().st_size for path in groups[name]))[:MAX_TABLES]
    tables = []
    for name in sorted(by_size):
        try:
            tables.append(_excerpt(folder, to, name, groups[name], options))
        except (InputError, OSError, UnicodeDecodeError, pa.ArrowException, csv.Error) as error:
            unread.append(f"{name}: {str(error).removeprefix(f'{name}: ')}")
        except pl.exceptions.PolarsError as error:
            unread.append(f"{name}: its files differ in the type of a column ({scan.first_line(error)})")
    return Excerpts(tables=tables, unread=unread)


def _files(folder: Path) -> tuple[list[Path], bool]:
    """(visible files in the order of their paths, whether there are more)."""
    files: list[Path] = []
    for place, names, entries in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith((".", "_")))
        for entry in sorted(entries):
            path = Path(place, entry)
            if entry.startswith((".", "_")) or not path.is_file():
                continue
            if len(files) == MAX_FILES:
                return sorted(files), True
            files.append(path)
    return sorted(files), False


def _groups(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Path or pattern -> the files that it matches."""
    names = {path: path.relative_to(folder).as_posix() for path in files}
    groups: dict[str, list[Path]] = {}
    for path, name in names.items():
        top, _, rest = name.partition("/")
        is_table = bool(rest) and (top.split(".")[0].lower() in SCHEMAS or "=" in rest)
        groups.setdefault(glob.escape(top) if is_table else re.sub(r"\d+", "*", glob.escape(name)), []).append(path)
    plain: dict[str, list[Path]] = {}
    for pattern, members in groups.items():
        is_folder = any(names[path].startswith(f"{pattern}/") for path in members)
        matched = sum(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for name in names.values())
        if is_folder or (len(members) > 1 and matched == len(members)):
            plain[pattern] = members
        else:
            plain |= {glob.escape(names[path]): [path] for path in members}
    return plain


def _excerpt(folder: Path, to: Path, name: str, paths: list[Path], options: FileOptions) -> Excerpt:
    parts = [folders.part(path, folder, other="separated") for path in paths]
    left = MAX_BYTES
    copies = []
    is_whole = True
    for part in parts[:MAX_PARTS]:
        target = to / part.label
        target.parent.mkdir(parents=True, exist_ok=True)
        size, is_all = _copy(part, target, left)
        is_whole &= is_all
        left -= size
        if size:
            copies.append(folders.part(target, to, other="separated"))
        if left <= 0:
            break
    if not copies:
        raise InputError("has no rows")
    columns = FileColumns(table="the log", known={}, others=True)
    is_guessed = False
    if parts[0].form == "separated":
        columns, is_guessed = _sniff(copies[0], options)
    elif parts[0].form == "json lines":
        columns = dataclasses.replace(columns, header=_invented_header(_array_width(copies[0])))
    rows = [raw.read(copy, columns, options) for copy in copies]
    bad = sum(part.bad.height for part in rows)
    frame = pl.concat([part.frame for part in rows], how="diagonal_relaxed").drop(ROW)
    if not frame.height:
        raise InputError(f"has no rows that can be read ({bad:,} cannot)")
    return Excerpt(
        file=name,
        parts=len(paths),
        bytes=sum(path.stat().st_size for path in paths),
        is_whole=is_whole and len(paths) <= MAX_PARTS and left > 0,
        frame=frame,
        form=parts[0].form,
        header=columns.header,
        quoted=columns.quoted,
        is_header_guessed=is_guessed,
    )


def _copy(part: Part, target: Path, max_bytes: int) -> tuple[int, bool]:
    """Write the first rows of a file, in its form and compression; (their size unpacked, whether they are all)."""
    if part.form == "parquet" and part.compression is None:
        return _copy_parquet(part.path, target, max_bytes)
    with part.path.open("rb") as file:
        if part.compression is None:
            head = file.read(max_bytes + 1)
        else:
            head = b""
            with pa.CompressedInputStream(file, part.compression) as source:
                while len(head) <= max_bytes and (block := source.read(scan.BLOCK_BYTES)):
                    head += block
                head = head[: max_bytes + 1]
    is_all = len(head) <= max_bytes
    if not is_all and part.form == "parquet":
        raise InputError("a compressed Parquet file of this size is not inspected; unpack it")
    if not is_all:
        head = _whole_elements(head) if part.form == "json" and head.lstrip()[:1] == b"[" else _whole_lines(head)
    if part.compression is None:
        target.write_bytes(head)
    else:
        with target.open("wb") as sink, pa.CompressedOutputStream(sink, part.compression) as packed:
            packed.write(head)
    return len(head), is_all


def _copy_parquet(path: Path, target: Path, max_bytes: int) -> tuple[int, bool]:
    with pq.ParquetFile(path) as file:
        size = 0
        rows = 0
        with pq.ParquetWriter(target, file.schema_arrow) as writer:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                writer.write_batch(batch)
                size += batch.nbytes
                rows += batch.num_rows
                if size > max_bytes:
                    break
        return size, rows == file.metadata.num_rows


def _whole_lines(head: bytes) -> bytes:
    """``head`` up to the end of a line outside quotes, or of its last line if quotes are text."""
    last = end = head.rfind(b"\n") + 1
    if not last:
        raise InputError(f"its first line is longer than {len(head) - 1:,} bytes")
    for _ in range(100):
        if end and head.count(b'"', 0, end) % 2:
            end = head.rfind(b"\n", 0, end - 1) + 1
    return head[: end or last]


def _whole_elements(head: bytes) -> bytes:
    """The elements of an array that end within ``head``, as an array."""
    text = head.decode("utf-8-sig", errors="ignore")
    decoder = json.JSONDecoder()
    start = end = text.index("[") + 1
    while True:
        at = _BETWEEN.match(text, end).end()  # type: ignore[union-attr]  # it matches no characters, too
        try:
            end = decoder.raw_decode(text, at)[1]
        except (ValueError, RecursionError):
            return f"[{text[start:end]}]".encode()


def _sniff(part: Part, options: FileOptions) -> tuple[FileColumns, bool]:
    """(the columns of a file of separated fields, whether its header or lack of one is a guess)."""
    if part.compression is None:
        scan.check_form(part.path, part.label)
    lines = list(_first_lines(part))
    if not any(line.strip() for line in lines):
        raise InputError("has no rows")
    if any("\0" in line for line in lines):
        raise InputError("is no text; write the table as Parquet, CSV or JSON lines")
    for quoted in (True, False):
        rows_of = {mark: _rows(lines, mark, quoted=quoted) for mark in SEPARATORS}
        mark = max(rows_of, key=lambda mark: _regularity(rows_of[mark]))
        rows = rows_of[mark]
        if _regularity(rows) < 2 and "::" in lines[0]:
            raise InputError("fields are separated by '::', which is not read; replace it (sed 's/::/\\t/g')")
        if _regularity(rows) < 2 and folders.FORMS.get(Path(part.label).suffix.lower()) != "separated":
            raise InputError("has no commas, tabs, semicolons or pipes that separate columns")
        has_header, is_guessed = _has_header(rows)
        header = () if has_header else _invented_header(len(rows[0]))
        known = {plain_name(field): TEXT for field in header or rows[0]}
        columns = FileColumns(table="the log", known=known, others=True, header=header, quoted=quoted)
        try:
            raw.read(part, columns, options)
        except InputError:
            if not quoted or '"' not in "".join(lines):
                raise
        else:
            return columns, is_guessed
    raise AssertionError("the second pass returns or raises")


def _invented_header(width: int) -> tuple[str, ...]:
    return tuple(f"column_{n + 1}" for n in range(width))


def _array_width(part: Part) -> int:
    """The number of values of the first row of JSON lines, if it is an array; 0 for other rows."""
    try:
        row = json.loads(next(_first_lines(part), ""))
    except (ValueError, RecursionError):
        return 0
    if isinstance(row, list) and row and all(isinstance(entry, list) for entry in row):
        row = row[0]
    is_row = isinstance(row, list) and not all(isinstance(value, dict) for value in row)
    return len(row) if is_row else 0


def _first_lines(part: Part) -> Iterator[str]:
    """The first lines of a copy, which is small."""
    data = part.path.read_bytes()
    if part.compression is not None:
        data = pa.CompressedInputStream(pa.BufferReader(data), part.compression).read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        scan.invalid_utf8(part.label, row, "unknown")
    yield from text.splitlines()[:_SNIFF_LINES]


def _rows(lines: list[str], mark: str, *, quoted: bool) -> list[list[str]]:
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    return [row for row in csv.reader(lines, delimiter=mark, quoting=quoting) if row]


def _regularity(rows: list[list[str]]) -> float:
    """The number of fields of the first row, less the share of rows with another number; 0 without rows."""
    if not rows:
        return 0.0
    width = len(rows[0])
    return width * sum(len(row) == width for row in rows) / len(rows)


def _has_header(rows: list[list[str]]) -> tuple[bool, bool]:
    """(whether the first row names the columns, whether that is a guess: no column below it is of numbers)."""
    first = rows[0]
    if any(not field.strip() or _NUMBER.fullmatch(field.strip()) for field in first) or len(set(first)) < len(first):
        is_index = not first[0].strip() and not any(_NUMBER.fullmatch(field.strip()) for field in first)
        return is_index and len(first) > 1, False
    columns = list(zip(*[row for row in rows[1:] if len(row) == len(first)], strict=True))
    return True, not any(all(_NUMBER.fullmatch(cell.strip()) for cell in column) for column in columns)
