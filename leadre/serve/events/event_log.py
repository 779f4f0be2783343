"""The log of what was answered and what came of it: append-only segments, on the disk before anybody is told.

A segment begins with MAGIC; a record is a frame of 24 bytes (length and CRC-32 as u32, number as u64, time of writing
in microseconds as i64, little-endian) and its msgpack; the CRC covers all behind itself. Numbers go up by one, through
all segments; a segment's name is the number of its first record. What a crash left of a last, never acknowledged write
is cut off when the log is opened again. The log is the truth that the ledger and the Parquet files can be made from.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from leadre.errors import InputError, StorageError
from leadre.serve.events import durable
from leadre.types import Bid, Candidate, Outcome
from leadre.units import S_PER_HOUR, US_PER_S

MAGIC = b"leadre1\n"
_FRAME = struct.Struct("<IIQq")
_CHECKED = 8  # bytes of a frame before what the CRC covers


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, tag="answered"):
    """A request and what we offered. ``request_id`` is ours and unique, as an exchange may use its own twice."""

    request_id: str
    at_us: int
    user_id: str = ""  # "" where nobody says or it may not be kept
    placements: dict[str, str] = {}  # imp -> the publisher's name for it
    candidates: tuple[Candidate, ...] = ()
    scores: tuple[float, ...] = ()  # of the candidates, what they were chosen by; empty without a ranker
    verdicts: dict[str, tuple[str, ...]] = {}  # imp -> what became of each candidate there: "bid", or why not
    bids: tuple[Bid, ...] = ()  # what was chosen, with propensity and price
    reason: str = ""  # why there is no bid
    asked_id: str = ""  # the caller's ID of the request
    asked: dict[str, Any] = {}  # the request as far as it decides; see `leadre.serve.bidding.record`
    is_known: bool = False  # what we know of its user was looked at
    is_degraded: bool = False  # the store was down
    is_cut: bool = False  # the language model's answer was cut short by the deadline
    versions: dict[str, str] = {}  # artifact -> version
    is_test: bool = False


class EventRecord(msgspec.Struct, frozen=True, kw_only=True, tag="happened"):
    """An event and what it did. ``key`` is what makes it the same event when it comes again."""

    key: str
    outcome: Outcome
    lease_id: int = 0
    owed_nanos: int = 0  # what the advertiser should pay; ``outcome.charge_nanos`` is what the budget allowed
    refund_nanos: int = 0  # what a lost bid gives back to its lease
    known_until_us: int = 0  # the same key is another event from then on
    is_test: bool = False
    is_training: bool = False  # may become a row to learn from


class StatusRecord(msgspec.Struct, frozen=True, kw_only=True, tag="switched"):
    """An ad began or ended to be shown: what was live follows from these."""

    at_us: int
    ad_id: str
    is_live: bool


Record = RequestRecord | EventRecord | StatusRecord
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


class LogEntry(NamedTuple):
    """A record with its number and the time at which it was written."""

    number: int
    written_at_us: int
    record: Record


class EventLog:
    """The writer, one for a folder. ``last``: number of the newest record; ``cut_bytes``: what opening cut off.

    ``sync`` pushes a file to the disk. InputError where another process has the log open.
    """

    def __init__(
        self,
        folder: Path,
        *,
        segment_bytes: int = 64 << 20,
        segment_s: float = S_PER_HOUR,
        sync: durable.Sync = os.fsync,
    ) -> None:
        self.folder = folder
        self._most_bytes, self._most_us, self._sync = segment_bytes, round(segment_s * US_PER_S), sync
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(lock_of(folder), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise InputError(f"{folder}: another process writes this log; stop it first") from error
        durable.tidy(folder)
        self._fault: str | None = None
        paths = segments(folder)
        self.last = _first(paths[-1]) - 1 if paths else 0
        self.cut_bytes, self._size, self._began_us = 0, 0, 0
        if paths:
            self._resume(paths[-1])
        else:
            self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def fault(self) -> str:
        """Why it takes nothing more until it is opened again; "" where it does."""
        return self._fault or ""

    def close(self) -> None:
        os.close(self._file)
        os.close(self._lock)

    def append(self, records: Sequence[Record], now_us: int) -> int:
        """Write records with one sync; they are on the disk when this returns the number of the last.

        StorageError: none of them is in the log. After a failed sync nobody knows what the disk holds, so then, and
        when the log could not be cut back, it takes nothing more until it is opened again.
        """
        if self._fault is not None:
            raise StorageError(self._fault)
        if not records:
            return self.last
        data = b"".join(_frame(number, now_us, record) for number, record in enumerate(records, self.last + 1))
        is_old = self._size > len(MAGIC) and now_us - self._began_us >= self._most_us
        if is_old or (self._size > len(MAGIC) and self._size + len(data) > self._most_bytes):
            self.rotate()
        try:
            _write(self._file, data)
        except OSError as error:
            self._cut(error)
            raise durable.failed(self._path, error) from error
        try:
            self._sync(self._file)
        except OSError as error:
            self._cut(error)
            self._fault = f"{self._path}: could not be synced ({error.strerror or error}); open the log again"
            raise StorageError(self._fault) from error
        if self._size == len(MAGIC):
            self._began_us = now_us
        self._size += len(data)
        self.last += len(records)
        return self.last

    def rotate(self) -> None:
        """Go on in a new segment, unless this one is empty. StorageError: the log goes on in this one."""
        if self._size > len(MAGIC):
            old = self._file
            self._start()
            os.close(old)

    def retain(self, after_us: int) -> int:
        """Delete segments whose last record was written before a time; how many. A new one takes up the count."""
        gone = 0
        if _ended_us(self._path) < after_us:
            self.rotate()
        for path in segments(self.folder)[:-1]:
            if _ended_us(path) >= after_us:
                break
            path.unlink()
            gone += 1
        durable.sync_folder(self.folder, self._sync)
        return gone

    def erase(self, user_id: str) -> int:
        """Take a user's ID out of every record; how many had it. Events stay, as events of nobody.

        When it returns, the ID is in no file of the log. A segment is replaced whole or, for a StorageError, not.
        """
        assert user_id
        if user_id.encode() in self._path.read_bytes():
            self.rotate()
        changed = 0
        for path in segments(self.folder)[:-1]:
            if user_id.encode() not in path.read_bytes():
                continue
            entries = list(_entries(path))
            kept = [_without(entry.record, user_id) for entry in entries]
            count = sum(new is not old.record for new, old in zip(kept, entries, strict=True))
            if count:
                frames = [_frame(old.number, old.written_at_us, new) for new, old in zip(kept, entries, strict=True)]
                durable.replace(path, MAGIC + b"".join(frames), sync=self._sync)
                changed += count
        return changed

    def _start(self) -> None:
        path = self.folder / f"{self.last + 1:020d}.log"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            try:
                _write(file, MAGIC)
                self._sync(file)
                durable.sync_folder(self.folder, self._sync)
            except OSError:
                os.close(file)
                path.unlink()
                raise
        except OSError as error:
            raise durable.failed(path, error) from error
        self._path, self._file, self._size = path, file, len(MAGIC)

    def _resume(self, path: Path) -> None:
        """Go on in the newest segment, cut behind its last whole record."""
        data = path.read_bytes()
        if not data.startswith(MAGIC):  # killed while it was begun
            path.unlink()
            self.cut_bytes = len(data)
            self._start()
            return
        end = len(MAGIC)
        for entry, stop in _scan(data, _first(path)):
            if end == len(MAGIC):
                self._began_us = entry.written_at_us
            self.last, end = entry.number, stop
        self.cut_bytes = len(data) - end
        self._path, self._size = path, end
        self._file = os.open(path, os.O_RDWR | os.O_APPEND)
        if self.cut_bytes:
            os.ftruncate(self._file, end)
            self._sync(self._file)

    def _cut(self, cause: OSError) -> None:
        """Back to the end of what was acknowledged."""
        try:
            os.ftruncate(self._file, self._size)
        except OSError:
            self._fault = f"{self._path}: could not be written ({cause.strerror or cause}) nor cut; open the log again"


def read(folder: Path, after: int = 0) -> Iterator[LogEntry]:
    """Every record behind number ``after``, in order, in any process; a write under way is not there yet.

    StorageError where a finished segment is damaged.
    """
    paths = segments(folder)
    for path, following in zip(paths, [*paths[1:], None], strict=True):
        if following is not None and _first(following) <= after + 1:
            continue
        with suppress(FileNotFoundError):  # retention was faster
            yield from (entry for entry in _entries(path, is_open=following is None) if entry.number > after)


def _entries(path: Path, is_open: bool = False) -> Iterator[LogEntry]:
    data, end = path.read_bytes(), len(MAGIC)
    if data.startswith(MAGIC):
        for entry, stop in _scan(data, _first(path)):
            yield entry
            end = stop
    if not is_open and (end < len(data) or not data.startswith(MAGIC)):
        raise StorageError(
            f"{path}: damaged at byte {end}; restore it from a backup, or delete it and lose its records"
        )


def _scan(data: bytes, number: int) -> Iterator[tuple[LogEntry, int]]:
    """(record, where it ends) while they are whole."""
    start = len(MAGIC)
    while start + _FRAME.size <= len(data):
        length, crc, found, written_at_us = _FRAME.unpack_from(data, start)
        end = start + _FRAME.size + length
        if end > len(data) or found != number or crc != zlib.crc32(data[start + _CHECKED : end]):
            return
        yield LogEntry(number, written_at_us, _DECODER.decode(data[start + _FRAME.size : end])), end
        start, number = end, number + 1


def _ended_us(path: Path) -> int:
    """When the last record of a segment was written, 0 where there is none; damaged records count too."""
    data, start, ended_us = path.read_bytes(), len(MAGIC), 0
    while start + _FRAME.size <= len(data):
        length, _, _, ended_us = _FRAME.unpack_from(data, start)
        start += _FRAME.size + length
    return ended_us


def _frame(number: int, written_at_us: int, record: Record) -> bytes:
    body = _ENCODER.encode(record)
    crc = zlib.crc32(_FRAME.pack(0, 0, number, written_at_us)[_CHECKED:] + body)
    return _FRAME.pack(len(body), crc, number, written_at_us) + body


def _without(record: Record, user_id: str) -> Record:
    if isinstance(record, RequestRecord) and record.user_id == user_id:
        return without_user(record)
    if isinstance(record, EventRecord) and record.outcome.user_id == user_id:
        return msgspec.structs.replace(
            record, outcome=dataclasses.replace(record.outcome, user_id=""), is_training=False
        )
    return record


def without_user(record: RequestRecord) -> RequestRecord:
    """The same request, asked by nobody."""
    asked = {name: value for name, value in record.asked.items() if name != "segments"}
    return msgspec.structs.replace(record, user_id="", asked=asked)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def lock_of(folder: Path) -> Path:
    """The file that whoever writes the log holds locked."""
    return folder / ".lock"


def segments(folder: Path) -> list[Path]:
    """The files of a log, oldest first."""
    return sorted(folder.glob("[0-9]*.log"))


def _first(path: Path) -> int:
    return int(path.stem)
