"""Scan a text file in blocks of constant size, before a parser reads it.

An error then names row and column of a field of a gigabyte or of invalid UTF-8, and memory stays bounded.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from leadre.errors import InputError

BLOCK_BYTES = 1 << 20


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


def check_encoding(path: Path, label: str) -> None:
    """Raise InputError for a text file in UTF-16 or UTF-32, with or without a byte-order mark."""
    with path.open("rb") as file:
        start = file.read(400)
    has_mark = start.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff"))
    # A header is mostly ASCII, of which every second byte is NUL in UTF-16 without a mark.
    is_wide = len(start) >= 8 and max(start[0::2].count(0), start[1::2].count(0)) > len(start) // 4
    if not (has_mark or is_wide):
        return
    order = (
        "LE"
        if start.startswith(b"\xff\xfe") or (not has_mark and start[1::2].count(0) > start[0::2].count(0))
        else "BE"
    )
    encoding = "UTF-16" if has_mark else f"UTF-16{order}"
    raise InputError(f"{label}: is UTF-16; write it as UTF-8 again (iconv -f {encoding} -t UTF-8)")


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
