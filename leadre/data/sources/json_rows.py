"""JSON lines, and JSON arrays over any lines: one object for each row.

Every value of a column of the schema is converted to text (`_as_text`). Profile columns of users keep their types.
Other columns are not read, so a value of any type may be in them. Fields of an object within a row are columns
``column.field``. With a header, a row may be an array of values, and a line an array of such rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import polars as pl

from leadre.data import tables
from leadre.data.sources import scan
from leadre.data.tables import FILE, LIST_MARK, ROW, FileColumns, plain_name
from leadre.errors import InputError

_CHUNK_ROWS = 50_000
_BETWEEN = re.compile(r"[\s,]*")  # elements of an array


def read(
    path: Path,
    columns: FileColumns,
    label: str,
    max_field_bytes: int,
    *,
    may_be_array: bool,
    decimal_comma: bool = False,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(rows with the column ROW, rows that do not parse in the form of BAD_ROWS).

    ``may_be_array``: the file may hold one array of objects instead of an object on each line. ``decimal_comma``: the
    texts of amounts have one; numbers of JSON have a point, so they are converted to such texts. Raises InputError for
    invalid UTF-8 and for an object (in lines: a line) longer than ``max_field_bytes``.
    """
    scan.check_form(path, label)
    rows = _Rows(columns, label, columns.amounts if decimal_comma else ())
    is_array = _first_character(path) == "[" and (may_be_array or not columns.header)
    if is_array and not may_be_array:
        raise InputError(
            f"{label}: is one JSON array and not an object on each line; give it the ending .json, or a"
            " mapping with a header for arrays on each line"
        )
    if is_array:
        _check_utf8(path, label)
        _read_array(path, label, max_field_bytes, rows.add)
    else:
        scan_json_lines(path, label, max_field_bytes)
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows.add_text(line, number)
    frame, bad = rows.frames()
    if bad.height and not frame.height and (first := _first_character(path)) not in ("{", "["):
        raise InputError(
            f"{label}: begins with {first!r} and has no JSON; give separated fields the ending .csv or .tsv"
        )
    return frame, bad


class _CellError(ValueError):
    """A row that cannot be read, with the column of the fault."""

    def __init__(self, column: str, why: str) -> None:
        super().__init__(why)
        self.column = column


class _Rows:
    """Collects rows, chunk by chunk."""

    def __init__(self, columns: FileColumns, label: str, with_comma: tuple[str, ...]) -> None:
        self.columns = columns
        self.label = label
        self.with_comma = with_comma  # columns whose numbers get a decimal comma
        self._frames: list[pl.DataFrame] = []
        self._bad: list[tuple[str, str, int, str, str]] = []
        self._rows: list[dict[str, Any]] = []
        self._numbers: list[int] = []
        self._unread: dict[str, None] = {}

    def add_text(self, text: str, number: int) -> None:
        """Parse one object; ``number``: its row."""
        try:
            row = _DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            self._refuse(number, "", error)
            return
        self.add(row, number)

    def add(self, element: object, number: int) -> None:
        """Add one parsed element: a row, or an array of rows, of which all are good or the element is bad."""
        try:
            rows = [self._cells(row) for row in self._objects(element)]
        except _CellError as error:
            self._refuse(number, error.column, error)
            return
        self._rows += rows
        self._numbers += [number] * len(rows)
        if len(self._rows) >= _CHUNK_ROWS:
            self._flush()

    def _objects(self, element: object) -> list[dict[str, Any]]:
        """The rows of an element. Raises _CellError for an element that is neither an object nor fits the header."""
        header = self.columns.header
        if isinstance(element, dict):
            return [element]
        if not isinstance(element, list) or not header:
            raise _CellError("", f"is not an object but {type(element).__name__}")
        rows = element if element and all(isinstance(row, list) for row in element) else [element]
        for row in rows:
            if len(row) != len(header):
                raise _CellError("", f"{len(row)} values, but the mapping's header has {len(header)} names")
        return [dict(zip(header, row, strict=True)) for row in rows]

    def _cells(self, row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        """Column -> cell. ``prefix``: of the columns of an object within a row. Raises _CellError."""
        cells: dict[str, Any] = {}
        for key, value in row.items():
            column = prefix + key
            name = plain_name(column)
            if name in self.columns.parents:
                for field, cell in self._fields(column, value).items():
                    _set_once(cells, field, cell)
                continue
            try:
                if column in (ROW, FILE):
                    raise ValueError("is a name that is reserved for the place of a row; rename it")
                kind = self.columns.known.get(name)
                if kind is not None:
                    text = _as_text(name, value, kind)
                    has_point = isinstance(value, float) and name in self.with_comma
                    _set_once(cells, column, text.replace(".", ",") if has_point and text is not None else text)
                elif self.columns.others:
                    _set_once(cells, column, _checked_text(value) if isinstance(value, str) else value)
                else:
                    self._unread[column] = None
            except ValueError as error:
                raise _CellError(column, str(error)) from error
        return cells

    def _fields(self, column: str, value: object) -> dict[str, Any]:
        """The cells of an object, or one cell with those of a list of objects, which a mapping can explode."""
        prefix = f"{column}."
        if value is None:
            return {}
        if isinstance(value, dict):
            return self._cells(value, prefix)
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise _CellError(column, f"is a JSON {type(value).__name__}, and the mapping reads fields of objects")
        entries = [self._cells(entry, prefix) for entry in value]
        return {column: [{key.removeprefix(prefix): cell for key, cell in cells.items()} for cells in entries]}

    def frames(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """(rows, bad rows). A column that is not read is there without values, for its name."""
        self._flush()
        frame = pl.concat(self._frames, how="diagonal_relaxed")
        unread = [pl.lit(None).alias(name) for name in self._unread if name not in frame.columns]
        return frame.with_columns(unread), pl.DataFrame(self._bad, schema=tables.BAD_ROWS, orient="row")

    def _refuse(self, number: int, column: str, error: Exception) -> None:
        self._bad.append(
            (self.columns.table, self.label, number, column, f"cannot be read: {tables.shorten(error, 100)}")
        )

    def _flush(self) -> None:
        keys = list(dict.fromkeys(key for row in self._rows for key in row))
        columns = {key: self._series(key, [row.get(key) for row in self._rows]) for key in keys}
        self._frames.append(pl.DataFrame({ROW: pl.Series(self._numbers, dtype=pl.Int64), **columns}))
        self._rows.clear()
        self._numbers.clear()

    def _series(self, key: str, values: list[Any]) -> pl.Series:
        """Text for a column of the schema; a profile column keeps the one type of its values, or is JSON text."""
        types = {type(value) for value in values if value is not None}
        if plain_name(key) in self.columns.parents:
            fields = dict.fromkeys(field for entries in values for entry in entries or () for field in entry)
            return pl.Series(key, values, dtype=pl.List(pl.Struct(dict.fromkeys(fields, pl.String))))
        if plain_name(key) in self.columns.known or not types or types == {str}:
            return pl.Series(key, values, dtype=pl.String)
        if len(types) == 1 and types <= {bool, int, float}:
            try:
                return pl.Series(key, values)
            except (OverflowError, pl.exceptions.PolarsError):  # a number beyond 64 bits
                pass
        if types == {list} and all(_are_words(value) for value in values if value):
            lists = [value if value is None else [str(entry) for entry in value] for value in values]
            return pl.Series(key, lists, dtype=pl.List(pl.String))
        texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        return pl.Series(key, texts, dtype=pl.String)


def _set_once(cells: dict[str, Any], column: str, cell: object) -> None:
    """Raises _CellError for a second value: of the key "geo.country" beside an object geo with the field country."""
    if column in cells:
        raise _CellError(column, "has two values in the row: a key of this name, and a field of an object; rename one")
    cells[column] = cell


def scan_json_lines(path: Path, label: str, max_field_bytes: int) -> None:
    """Raise InputError for invalid UTF-8 or a line over the limit; constant memory."""
    row = 1
    line_start = 0
    offset = 0  # of the block in the file
    utf8 = scan.Utf8Checker()
    for block in scan.blocks(path):
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
        invalid_at = utf8.first_invalid_byte(block)
        if invalid_at is not None:
            before = ends[ends < invalid_at]
            start = offset + int(before[-1]) + 1 if len(before) else line_start
            length = min(offset + invalid_at - start, scan.BLOCK_BYTES)
            scan.invalid_utf8(label, row + len(before), _last_key(path, start, length))
        sizes = np.diff(np.concatenate([[line_start - offset - 1], ends, [len(block)]])) - 1
        if sizes.max() > max_field_bytes:
            number = int(sizes.argmax())
            start = line_start if number == 0 else offset + int(ends[number - 1]) + 1
            key = _last_key(path, start, min(max_field_bytes, scan.BLOCK_BYTES))
            scan.too_long(label, row + number, key, max_field_bytes)
        if len(ends):
            row += len(ends)
            line_start = offset + int(ends[-1]) + 1
        offset += len(block)
    if utf8.is_inside_character():
        raise InputError(f"{label}, row {row}: the file ends inside a character; the file is truncated")


def _check_utf8(path: Path, label: str) -> None:
    row = 1
    utf8 = scan.Utf8Checker()
    for block in scan.blocks(path):
        invalid_at = utf8.first_invalid_byte(block)
        if invalid_at is not None:
            scan.invalid_utf8(label, row + block.count(b"\n", 0, invalid_at), "unknown")
        row += block.count(b"\n")
    if utf8.is_inside_character():
        raise InputError(f"{label}, row {row}: the file ends inside a character; the file is truncated")


def _read_array(path: Path, label: str, max_field_bytes: int, add: Callable[[object, int], None]) -> None:
    """Call ``add(element, row)`` for each element of an array, with about one block in memory.

    The row is the line on which the element begins, or one more than that of the last element if they share a line.
    """
    with path.open(encoding="utf-8-sig") as file:
        text = file.read(scan.BLOCK_BYTES)
        at = text.index("[") + 1
        line = 1 + text.count("\n", 0, at)
        row = 0
        while True:
            start = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it matches no characters, too
            line += text.count("\n", at, start)
            at = start
            if text.startswith("]", at):
                if text[at + 1 :].strip() or file.read(scan.BLOCK_BYTES).strip():
                    raise InputError(
                        f"{label}, row {line}: text after the end of the array; an array or object on each line needs"
                        " the ending .jsonl"
                    )
                return
            try:
                element, end = _DECODER.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                more = "" if len(text) - at > max_field_bytes else file.read(scan.BLOCK_BYTES)
                if not more and len(text) - at > max_field_bytes:
                    scan.too_long(label, line, "unknown", max_field_bytes)
                if not more:
                    raise InputError(
                        f"{label}, row {line}: not valid JSON ({_without_place(error)}); write the array again, or"
                        " one object on each line"
                    ) from error
                text = text[at:] + more
                at = 0
                continue
            row = max(line, row + 1)
            add(element, row)
            line += text.count("\n", at, end)
            at = end


def _without_place(error: Exception) -> str:
    """The message of a parser, whose place is one in a block and not in the file."""
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _first_character(path: Path) -> str:
    """The first character that is no blank; "" for a file without one, or one that is not UTF-8 there."""
    with path.open("rb") as file:
        return file.read(scan.BLOCK_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()[:1].decode(errors="replace")


def _as_text(column: str, value: object, kind: pl.DataType) -> str | None:
    """A JSON value as the text of a CSV cell. Raises ValueError for a value that no cell can express."""
    if value is None:
        return None
    if isinstance(value, list) and kind == tables.TEXTS and _are_words(value):
        value = LIST_MARK + LIST_MARK.join(str(entry).replace(LIST_MARK, " ") for entry in value) if value else None
    elif isinstance(value, bool | list | dict) or (isinstance(value, float) and kind == tables.WHOLE):
        raise ValueError(f"{json.dumps(value)} is a JSON {type(value).__name__}, which does not fit")
    elif isinstance(value, float) and column.endswith("_id"):
        raise ValueError(f"{value!r} is a number with a fraction and no ID; write IDs as text")
    elif isinstance(value, float) and "e" in repr(value):
        value = format(Decimal(repr(value)), "f")  # 0.00005, for which writers of JSON have 5e-05
    return None if value is None else _checked_text(str(value))


def _are_words(values: list[Any]) -> bool:
    """Whether all entries of a list are texts or whole numbers, such as codes."""
    return all(isinstance(entry, str | int) and not isinstance(entry, bool) for entry in values)


def _checked_text(text: str) -> str:
    if not text.isascii():
        text.encode()  # JSON can spell a lone surrogate; UnicodeEncodeError is a ValueError
    return text


def _raise_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError for a key that it has twice: one of the values would be lost."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return values


def _last_key(path: Path, start: int, length: int) -> str:
    """The last ``"key":`` in ``length`` bytes from ``start``: the field that contains the fault of a JSON line."""
    with path.open("rb") as file:
        file.seek(start)
        keys = re.findall(rb'"([A-Za-z0-9_ -]{1,64})"\s*:', file.read(length))
    return keys[-1].decode() if keys else "unknown"


_DECODER = json.JSONDecoder(parse_constant=_raise_constant, object_pairs_hook=_object)
