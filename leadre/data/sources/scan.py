"""Scan a text file in blocks of constant size, before a parser reads it.

An error then names row and column of a field of a gigabyte or of invalid UTF-8, and memory stays bounded.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from leadre.errors import InputError

BLOCK_BYTES = 1 << 20
# First bytes of other forms -> (the form, the cure).
_COMPRESSED = "give it the ending {} after that of its form, or unpack it"
_MAGIC = {
    rb"\x1f\x8b": ("gzip", _COMPRESSED.format(".gz")),
    rb"BZh[1-9]1AY&SY": ("bzip2", _COMPRESSED.format(".bz2")),
    rb"\x28\xb5\x2f\xfd": ("zstd", _COMPRESSED.format(".zst")),
    rb"\xfd7zXZ": ("xz", "unpack it"),
    rb"PK\x03\x04": ("a ZIP archive or a spreadsheet", "unpack it, or write the table as CSV"),
    rb"PAR1[\0-\x1f]": ("Parquet", "give it the ending .parquet"),
}
# Encodings -> their byte-order mark, or the first characters without one. UTF-32 comes first, as its mark begins alike.
_WIDE = {
    "UTF-32": re.compile(rb"\xff\xfe\0\0|\0\0\xfe\xff"),
    "UTF-16": re.compile(rb"\xff\xfe|\xfe\xff"),
    "UTF-32LE": re.compile(rb"(?:[^\0]\0\0\0){2}"),
    "UTF-32BE": re.compile(rb"(?:\0\0\0[^\0]){2}"),
    "UTF-16LE": re.compile(rb"(?:[^\0]\0){4}"),
    "UTF-16BE": re.compile(rb"(?:\0[^\0]){4}"),
}


class Utf8Checker:
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


def blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file in blocks of `BLOCK_BYTES`."""
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def check_form(path: Path, label: str) -> None:
    """Raise InputError for a text file in UTF-16 or UTF-32, and for a file that is no text but has another form."""
    with path.open("rb") as file:
        start = file.read(16)
    for magic, (form, cure) in _MAGIC.items():
        if re.match(magic, start):
            raise InputError(f"{label}: is {form} by its first bytes; {cure}")
    # A header and the start of JSON are ASCII, whose other bytes are NUL in UTF-16 and UTF-32.
    encoding = next((name for name, pattern in _WIDE.items() if pattern.match(start)), None)
    if encoding is not None:
        raise InputError(f"{label}: is {encoding[:6]}; write it as UTF-8 again (iconv -f {encoding} -t UTF-8)")


def too_long(label: str, row: int, column: str, limit: int) -> NoReturn:
    """Raise InputError for a field longer than ``limit`` bytes."""
    raise InputError(
        f"{label}, row {row}, column {column!r}: longer than {limit:,} bytes; shorten it (or close its quote),"
        " or raise --max-field-bytes"
    )


def invalid_utf8(label: str, row: int, column: str) -> NoReturn:
    """Raise InputError for a field that is not UTF-8."""
    raise InputError(
        f"{label}, row {row}, column {column!r}: not valid UTF-8; write the file as UTF-8 again"
        " (a file in Latin-1: iconv -f LATIN1 -t UTF-8)"
    )


def first_line(error: Exception) -> str:
    """The start of a parser's message."""
    return str(error).strip().split("\n")[0][:200]
