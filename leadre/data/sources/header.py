"""The first row of a file of separated fields: the names of its columns and the separator, or why it has none."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Literal, NoReturn

from leadre.data.sources import scan
from leadre.data.tables import FileColumns, check_reserved, plain_name
from leadre.errors import InputError

# Hive and Spark separate fields by the control character 1 unless they are configured otherwise.
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "pipes", "\x01": "the control character 1"}
_FIRST_LINES = 10  # among which a header is looked for
_QUOTES = "'`\u2018\u2019\u201c\u201d"  # around names; fields have double quotes


def read(path: Path, columns: FileColumns, label: str, max_field_bytes: int) -> tuple[list[str], str]:
    """(the names of the columns, the separator). Raises InputError if the first row names no column of the table."""
    limit = min(max_field_bytes, scan.BLOCK_BYTES)
    with path.open("rb") as file:
        line = file.readline(limit + 1)
        below = [file.readline(limit) for _ in range(_FIRST_LINES)]
    if not line.endswith(b"\n") and len(line) > limit:
        scan.too_long(label, 1, "the header", max_field_bytes)
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        scan.invalid_utf8(label, 1, "the header")
    if "\r" in text:
        raise InputError(f"{label}, row 1: lines end with CR alone; write the file with LF (tr '\\r' '\\n')")
    split = {separator: _split(text, separator, label, columns.quoted) for separator in SEPARATORS}
    separator = max(SEPARATORS, key=lambda mark: _fit(split[mark], columns))
    names = split[separator]
    if not text and any(block.strip() for block in scan.blocks(path)):
        raise InputError(
            f"{label}, row 1: is blank; the first row has the names of the columns, so delete blank lines above"
        )
    if columns.header:
        return _declared(names, separator, columns.header, label)
    if not _fit(names, columns):
        _check_first_row(text, max(split.values(), key=len), below, columns, label)
    check_reserved(names, label)
    repeated = sorted({name for name in names if name.strip() and names.count(name) > 1})
    if repeated:
        raise InputError(
            f"{label}, row 1: column {repeated[0]!r} occurs {names.count(repeated[0])} times; keep one of them"
        )
    return names, separator


def quoting(quoted: bool) -> Literal[0, 3]:
    return csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE


def _fit(names: list[str], columns: FileColumns) -> int:
    """How well the fields of the first row fit: known names or, in a file without a header, the number of fields."""
    if columns.header:
        return len(names) == len(columns.header)
    return sum(plain_name(name) in columns.known for name in names)


def _declared(first_row: list[str], separator: str, header: tuple[str, ...], label: str) -> tuple[list[str], str]:
    if len(first_row) != len(header):
        raise InputError(f"{label}, row 1: {len(first_row)} fields, but the mapping's header has {len(header)} names")
    return list(header), separator


def _check_first_row(text: str, fields: list[str], below: list[bytes], columns: FileColumns, label: str) -> None:
    """Raise InputError if the reason is known for which the first row, ``text``, names no column of the table.

    ``fields``: of the row, by the separator that makes most of them. ``below``: the rows that follow.
    """
    if text.lstrip().startswith(("{", "[")):
        _refuse(label, "looks like JSON", "give the file the ending .jsonl, or .json if it is one array")
    if any(plain_name(name.strip(f" {_QUOTES}")) in columns.known for name in fields):
        _refuse(label, f"has {fields[0]!r} as a name", 'quote fields with double quotes (") or not at all')
    for row, line in enumerate(below, start=2):
        names = re.split(f"[{re.escape(''.join(SEPARATORS))}]", line.decode(errors="replace").strip().replace('"', ""))
        if _fit(names, columns) >= max(1, min(2, len(columns.known))):
            _refuse(label, f"is {text[:40]!r}, and row {row} has the names of the columns", "delete the rows above it")
    # Longer separators first, since "::" holds ":".
    for mark in sorted({*re.findall(r"[^\w\s\"']+| ", text)}, key=len, reverse=True):
        if _fit(text.split(mark), columns) > 1:
            escaped = re.sub(r"([\^$.*\[\]/\\])", r"\\\1", mark)
            cure = f"separate them by tabs or commas (sed 's/{escaped}/\\t/g', if no field holds it)"
            _refuse(label, f"has fields that {mark!r} separates, which is not read", cure)
    if any(not name.strip() or name.strip().lstrip("-")[:1].isdigit() for name in fields):
        first = ", ".join(repr(name) for name in fields[:4])
        what = f"has no name of a column of {columns.table} but {first}, which looks like data"
        _refuse(label, what, "write the names of the columns above it")


def _refuse(label: str, what: str, cure: str) -> NoReturn:
    raise InputError(f"{label}, row 1: {what}; {cure}")


def _split(line: str, separator: str, label: str, quoted: bool) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator, quoting=quoting(quoted)), [])
    except csv.Error as error:
        raise InputError(
            f"{label}, row 1: the header is not valid CSV ({error}); write the column names, separated by commas"
        ) from error
