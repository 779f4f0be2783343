"""Parquet files with a checksum of all their bytes: a flipped bit is an error, and neither wrong rows nor a crash.

The page checksums of the format cover neither page headers nor the footer. This checksum (CRC-32, eight hexadecimal
digits) is an entry of the footer's metadata, computed with zeros in its place. Other readers ignore it.
"""

from __future__ import annotations

import io
import re
import zlib
from pathlib import Path
from typing import BinaryIO

import polars as pl

KEY = "leadre_crc32"
_ZEROS = b"0" * 8
_ENTRY = re.compile(rb"\x18\x0c" + KEY.encode() + rb"\x18\x08[0-9a-f]{8}")  # two texts, each behind its length
_TAIL_BYTES = 64 << 10  # at the end of a file; the entry is in them, as the schema alone follows it
_BLOCK_BYTES = 1 << 20


def to_bytes(frame: pl.DataFrame) -> bytes:
    """The content of a file with these rows and a checksum."""
    content = io.BytesIO()
    frame.write_parquet(content, metadata={KEY: _ZEROS.decode()})
    place = _place(content)
    assert place is not None
    digits = _crc32(content, place)
    content.seek(place)
    content.write(digits)
    return content.getvalue()


def is_intact(path: Path) -> bool:
    """Whether the bytes of a file are those that were written. True for a file without a checksum."""
    with path.open("rb") as file:
        place = _place(file)
        if place is None:
            return True
        file.seek(place)
        stored = file.read(len(_ZEROS))
        return stored == _crc32(file, place)


def _place(file: BinaryIO) -> int | None:
    """The first byte of the checksum; None in a file without one. Nothing is parsed: the file may be damaged."""
    start = max(0, file.seek(0, io.SEEK_END) - _TAIL_BYTES)
    file.seek(start)
    entries = list(_ENTRY.finditer(file.read()))
    return start + entries[-1].end() - len(_ZEROS) if entries else None


def _crc32(file: BinaryIO, place: int) -> bytes:
    """The checksum of a file of which the checksum is at ``place``."""
    file.seek(0)
    crc = _crc32_of_next(file, place, 0)
    crc = zlib.crc32(_ZEROS, crc)
    file.seek(place + len(_ZEROS))
    return f"{_crc32_of_next(file, None, crc):08x}".encode()


def _crc32_of_next(file: BinaryIO, count: int | None, crc: int) -> int:
    """``crc`` continued over the next ``count`` bytes, or over the rest."""
    while block := file.read(_BLOCK_BYTES if count is None else min(count, _BLOCK_BYTES)):
        crc = zlib.crc32(block, crc)
        count = None if count is None else count - len(block)
    return crc
