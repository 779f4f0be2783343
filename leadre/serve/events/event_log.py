"""The event log on disk: append-only segments of framed records, and their reader.

A segment begins with MAGIC. A record is a frame of 24 bytes (length and CRC-32 as u32, number as u64, time of writing
in microseconds as i64, little-endian) and its msgpack; the CRC covers every byte behind itself. Numbers increase by one
through all segments; a segment is named by the number of its first record. Ledger and Parquet files can be rebuilt from
the log. `leadre.serve.events.log_writer` writes it; any process may read it meanwhile.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from leadre.errors import StorageError
from leadre.serve.events import records
from leadre.serve.events.records import Record

MAGIC = b"leadre1\n"
_FRAME = struct.Struct("<IIQq")
_LENGTH = struct.Struct("<I")
_CHECKED_FROM = 8  # the first byte of a frame that its CRC covers, and the first of its number
REMEDY = "stop the bidder and run `leadre serve repair`, which keeps the file aside and saves every whole record"


class LogEntry(NamedTuple):
    """A record with its number and the time at which it was written."""

    number: int
    written_at_us: int
    record: Record


class Frame(NamedTuple):
    """A whole frame of a segment: its bytes are [``start``, ``end``), and its checksum holds."""

    start: int
    end: int
    number: int
    written_at_us: int


class Place(NamedTuple):
    """The place of record ``number``: byte ``start`` of the segment whose first record is ``segment``.

    An erasure rewrites closed segments, so a place is checked before it is used.
    """

    number: int
    segment: int
    start: int


def read(folder: Path, after: int = 0) -> Iterator[LogEntry]:
    """Every record with a number above ``after``, in order. A write in progress is not returned.

    StorageError at the first damage: no record behind it is returned as if nothing were missing.
    """
    return (entry for entry, _ in read_placed(folder, after))


def read_placed(folder: Path, after: int = 0, place: Place | None = None) -> Iterator[tuple[LogEntry, Place]]:
    """`read`, with the place of each record. ``place``: of record ``after``, so that no byte before it is read."""
    for path, is_open in segments_behind(folder, after):
        first = first_number(path)
        start = place.start if place is not None and (place.number, place.segment) == (after, first) else 0
        with suppress(FileNotFoundError):  # deleted by retention since the folder was listed
            for frame, body in _frames_of(path, is_open, after, start):
                if frame.number > after:
                    yield _entry(frame, body), Place(frame.number, first, frame.start)


def entries_of(path: Path, is_open: bool = False) -> Iterator[LogEntry]:
    """The records of one segment; ``is_open``: the writer may be appending. StorageError if it is damaged."""
    return (_entry(frame, body) for frame, body in _frames_of(path, is_open))


def bodies_of(path: Path, is_open: bool = False) -> Iterator[tuple[int, bytes]]:
    """(number, msgpack) of each record of a segment, as `entries_of`."""
    return ((frame.number, body) for frame, body in _frames_of(path, is_open))


def _entry(frame: Frame, body: bytes) -> LogEntry:
    return LogEntry(frame.number, frame.written_at_us, records.decode(body))


def _frames_of(path: Path, is_open: bool, number: int = 0, start: int = 0) -> Iterator[tuple[Frame, bytes]]:
    """The frames of a segment with their msgpack: from record ``number`` on if it begins at byte ``start``, else all.

    StorageError if the segment is damaged.
    """
    data = b""
    if start:
        with path.open("rb") as file:
            file.seek(start)
            data = MAGIC + file.read()
    skipped = start - len(MAGIC)  # bytes of the file that ``data`` lacks
    if not start or next(scan(data, number), None) is None:
        data = path.read_bytes()
        number = first_number(path)
        skipped = 0
    end = len(MAGIC) if data.startswith(MAGIC) else 0
    for frame in scan(data, number):
        yield frame._replace(start=frame.start + skipped, end=frame.end + skipped), body_of(data, frame)
        end = frame.end
        number = frame.number + 1
    refuse_damage(path, data, end, number, is_open, skipped)


def refuse_damage(path: Path, data: bytes, end: int, number: int, is_open: bool = False, skipped: int = 0) -> None:
    """StorageError if ``data``, the bytes of a segment, is damaged at byte ``end``, where record ``number`` is due.

    ``skipped``: bytes of the file between its MAGIC and the rest of ``data``.

    The end of an open segment may be part of a write, in progress or torn. So only a record that is whole and lies
    behind the fault proves damage there.
    """
    if end == len(data) and data:
        return
    later = next_frame(data, end, number)
    if later is None and is_open:
        return
    if is_open and path.read_bytes()[len(MAGIC) + skipped :][: len(data) - len(MAGIC)] != data[len(MAGIC) :]:
        return  # the writer has cut a failed write and written on, while these bytes were read
    follow = f", and record {later.number} follows at byte {later.start + skipped}" if later else ""
    raise StorageError(
        f"{path}: damaged at byte {end + skipped}, record {number}{follow}; nothing was changed: {REMEDY}"
    )


def first_fault(data: bytes, number: int) -> tuple[int, int]:
    """(byte, number of the record that is due there) at which a segment's bytes stop to be whole records."""
    end = len(MAGIC) if data.startswith(MAGIC) else 0
    for frame in scan(data, number):
        end = frame.end
        number = frame.number + 1
    return end, number


def scan(data: bytes, number: int) -> Iterator[Frame]:
    """The frames of a segment's bytes up to the first incomplete or damaged one; ``number``: of the first record."""
    if not data.startswith(MAGIC):
        return
    frame = frame_at(data, len(MAGIC), number)
    while frame is not None:
        yield frame
        frame = frame_at(data, frame.end, frame.number + 1)


def next_frame(data: bytes, start: int, number: int) -> Frame | None:
    """The first whole frame from byte ``start`` on whose number is ``number`` or a later one; None if there is none.

    Its number is above ``number`` by less than the frames that fit into ``data``. The checksum is computed only where
    eight bytes are such a number.
    """
    highest = number + len(data) // _FRAME.size
    starts: list[int] = []
    for first in range(start + _CHECKED_FROM, min(start + _CHECKED_FROM + 8, len(data) - 7)):
        numbers = np.frombuffer(data, "<u8", count=(len(data) - first) // 8, offset=first)
        rows = np.flatnonzero((numbers >= number) & (numbers <= highest))
        starts += (first - _CHECKED_FROM + 8 * rows).tolist()
    for candidate in sorted(starts):
        frame = frame_at(data, candidate, int.from_bytes(data[candidate + 8 : candidate + 16], "little"))
        if frame is not None:
            return frame
    return None


def whole_frames(data: bytes, number: int) -> Iterator[Frame]:
    """Every whole frame of a segment's bytes, also those behind damage."""
    end = 0
    for frame in scan(data, number):
        yield frame
        end = frame.end
        number = frame.number + 1
    later = next_frame(data, end, number)
    while later is not None:
        yield later
        end = later.end
        number = later.number + 1
        later = frame_at(data, end, number) or next_frame(data, end, number)


def body_of(data: bytes | mmap.mmap, frame: Frame) -> bytes:
    """The msgpack of the record in a frame."""
    return data[frame.start + _FRAME.size : frame.end]


def frame_at(data: bytes | mmap.mmap, start: int, number: int) -> Frame | None:
    """The frame of a record at a byte; None if the bytes are no whole frame with this number."""
    if start + _FRAME.size > len(data):
        return None
    length, crc, framed_number, written_at_us = _FRAME.unpack_from(data, start)
    end = start + _FRAME.size + length
    if end > len(data) or framed_number != number or crc != zlib.crc32(data[start + _CHECKED_FROM : end]):
        return None
    return Frame(start, end, number, written_at_us)


def frame_starts(data: bytes | mmap.mmap, until: int) -> list[int]:
    """The first bytes, before byte ``until``, of the frames of a segment: by their lengths alone, without checksums."""
    starts = []
    start = len(MAGIC)
    end = min(until, len(data) - _FRAME.size + 1)
    length_at = _LENGTH.unpack_from
    while start < end:
        starts.append(start)
        start += _FRAME.size + length_at(data, start)[0]
    return starts


def framed(number: int, written_at_us: int, record: Record) -> bytes:
    """The bytes of a record in a segment."""
    return framed_body(number, written_at_us, records.encode(record))


def framed_body(number: int, written_at_us: int, body: bytes) -> bytes:
    """The bytes of a record in a segment; ``body``: its msgpack."""
    crc = zlib.crc32(_FRAME.pack(0, 0, number, written_at_us)[_CHECKED_FROM:] + body)
    return _FRAME.pack(len(body), crc, number, written_at_us) + body


def ended_us(path: Path) -> int:
    """The time at which the last whole record of a segment was written; 0 for a segment without records."""
    return max((frame.written_at_us for frame in whole_frames(path.read_bytes(), first_number(path))), default=0)


def last_written_us(folder: Path) -> int:
    """The time at which the log's last record was written; 0 for a log without records."""
    return next((at_us for path in reversed(segments(folder)) if (at_us := ended_us(path))), 0)


def segments_behind(folder: Path, after: int) -> Iterator[tuple[Path, bool]]:
    """(segment, whether it is the newest) of those that may have records behind number ``after``, oldest first."""
    paths = segments(folder)
    for path, following in zip(paths, [*paths[1:], None], strict=True):
        if following is None or first_number(following) > after + 1:
            yield path, following is None


def segments(folder: Path) -> list[Path]:
    """The files of a log, oldest first."""
    return sorted(folder.glob("[0-9]*.log"))


def first_number(path: Path) -> int:
    """The number of a segment's first record."""
    return int(path.stem)


def lock_of(folder: Path) -> Path:
    """The file that the log's writer keeps locked."""
    return folder / ".lock"
