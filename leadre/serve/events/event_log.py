"""The event log on disk: append-only segments of framed records, and their reader.

A segment begins with MAGIC. A record is a frame of 24 bytes (length and CRC-32 as u32, number as u64, time of writing
in microseconds as i64, little-endian) and its msgpack; the CRC covers every byte behind itself. Numbers increase by one
through all segments; a segment is named by the number of its first record. Ledger and Parquet files can be rebuilt from
the log. `leadre.serve.events.log_writer` writes it; any process may read it meanwhile.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from leadre.errors import StorageError
from leadre.serve.events import records
from leadre.serve.events.records import Record

MAGIC = b"leadre1\n"
_FRAME = struct.Struct("<IIQq")
_CHECKED_FROM = 8  # the first byte of a frame that its CRC covers


class LogEntry(NamedTuple):
    """A record with its number and the time at which it was written."""

    number: int
    written_at_us: int
    record: Record


def read(folder: Path, after: int = 0) -> Iterator[LogEntry]:
    """Every record with a number above ``after``, in order. A write in progress is not returned.

    StorageError if a finished segment is damaged.
    """
    paths = segments(folder)
    for path, following in zip(paths, [*paths[1:], None], strict=True):
        if following is not None and first_number(following) <= after + 1:
            continue
        with suppress(FileNotFoundError):  # deleted by retention since the folder was listed
            yield from (entry for entry in entries_of(path, is_open=following is None) if entry.number > after)


def entries_of(path: Path, is_open: bool = False) -> Iterator[LogEntry]:
    """The records of one segment; ``is_open``: the writer may be appending. StorageError if it is damaged."""
    data = path.read_bytes()
    end = len(MAGIC)
    if data.startswith(MAGIC):
        for entry, entry_end in scan(data, first_number(path)):
            yield entry
            end = entry_end
    if not is_open and (end < len(data) or not data.startswith(MAGIC)):
        raise StorageError(
            f"{path}: damaged at byte {end}; restore it from a backup, or delete it and lose its records"
        )


def scan(data: bytes, number: int) -> Iterator[tuple[LogEntry, int]]:
    """(record, byte behind it) of a segment's bytes up to the first incomplete or damaged frame."""
    start = len(MAGIC)
    while start + _FRAME.size <= len(data):
        length, crc, framed_number, written_at_us = _FRAME.unpack_from(data, start)
        end = start + _FRAME.size + length
        if end > len(data) or framed_number != number or crc != zlib.crc32(data[start + _CHECKED_FROM : end]):
            return
        yield LogEntry(number, written_at_us, records.decode(data[start + _FRAME.size : end])), end
        start = end
        number += 1


def frame(number: int, written_at_us: int, record: Record) -> bytes:
    """The bytes of a record in a segment."""
    body = records.encode(record)
    crc = zlib.crc32(_FRAME.pack(0, 0, number, written_at_us)[_CHECKED_FROM:] + body)
    return _FRAME.pack(len(body), crc, number, written_at_us) + body


def ended_us(path: Path) -> int:
    """The time at which the last record of a segment was written, damaged or not; 0 for a segment without records."""
    data = path.read_bytes()
    start = len(MAGIC)
    written_at_us = 0
    while start + _FRAME.size <= len(data):
        length, _, _, written_at_us = _FRAME.unpack_from(data, start)
        start += _FRAME.size + length
    return written_at_us


def segments(folder: Path) -> list[Path]:
    """The files of a log, oldest first."""
    return sorted(folder.glob("[0-9]*.log"))


def first_number(path: Path) -> int:
    """The number of a segment's first record."""
    return int(path.stem)


def lock_of(folder: Path) -> Path:
    """The file that the log's writer keeps locked."""
    return folder / ".lock"
