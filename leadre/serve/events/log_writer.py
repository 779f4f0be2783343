"""The writer of an event log: appends with one sync for a batch, starts and deletes segments.

A record is on the disk before its event is acknowledged. If a crash leaves part of a write behind, which was never
acknowledged, the next opening of the log cuts it off.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from leadre.errors import StorageError
from leadre.serve.events import durable
from leadre.serve.events.event_log import (
    MAGIC,
    REMEDY,
    ended_us,
    first_number,
    framed,
    lock_of,
    refuse_damage,
    scan,
    segments,
)
from leadre.serve.events.records import Record
from leadre.units import S_PER_HOUR, US_PER_S


class EventLog:
    """The writer of the log in a folder.

    ``last`` is the number of the newest record, ``cut_bytes`` the length of an incomplete write that opening cut off.
    ``sync`` writes an open file to the disk. InputError if another process has the log open. StorageError, and no file
    is changed, if whole records follow a damaged one, or if the log ends before record ``known``, which the caller has
    seen in it: a torn write was never acknowledged, so it is neither.
    """

    def __init__(
        self,
        folder: Path,
        *,
        known: int = 0,
        segment_bytes: int = 64 << 20,
        segment_s: float = S_PER_HOUR,
        sync: durable.Sync = os.fsync,
    ) -> None:
        self.folder = folder
        self._max_bytes = segment_bytes
        self._max_age_us = round(segment_s * US_PER_S)
        self._sync = sync
        self._fault = ""
        self._lock = locked(folder)
        durable.tidy(folder)
        paths = segments(folder)
        self.last = first_number(paths[-1]) - 1 if paths else 0
        self.cut_bytes = 0
        self._size = 0
        self._began_us = 0  # time of the first record of the newest segment
        self._written_us = 0  # time of the last one
        try:
            if paths:
                self._resume(paths[-1], known)
            else:
                self._start()
        except StorageError:
            os.close(self._lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def fault(self) -> str:
        """The reason for which the log refuses writes until it is opened again; "" if it accepts them."""
        return self._fault

    def close(self) -> None:
        os.close(self._file)
        os.close(self._lock)

    def append(self, records: Sequence[Record], now_us: int) -> int:
        """Write records with one sync. When the number of the last one is returned, all are on the disk.

        StorageError: none of the records is in the log. After a failed sync the content of the disk is unknown; then,
        and if the file cannot be truncated, the log refuses every further write until it is opened again.
        """
        if self._fault:
            raise StorageError(self._fault)
        if not records:
            return self.last
        data = b"".join(framed(number, now_us, record) for number, record in enumerate(records, self.last + 1))
        is_old = self._size > len(MAGIC) and now_us - self._began_us >= self._max_age_us
        if is_old or (self._size > len(MAGIC) and self._size + len(data) > self._max_bytes):
            self.rotate()
        try:
            _write(self._file, data)
        except OSError as error:
            self._truncate(error)
            raise durable.failed(self._path, error) from error
        try:
            self._sync(self._file)
        except OSError as error:
            self._truncate(error)
            self._fault = f"{self._path}: could not be synced ({error.strerror or error}); open the log again"
            raise StorageError(self._fault) from error
        if self._size == len(MAGIC):
            self._began_us = now_us
        self._size += len(data)
        self._written_us = now_us
        self.last += len(records)
        return self.last

    def rotate(self) -> None:
        """Start a new segment unless this one is empty. StorageError: the log continues in this one."""
        if self._size > len(MAGIC):
            old = self._file
            self._start()
            os.close(old)

    def rotate_before(self, after_us: int) -> None:
        """Start a new segment if the last record was written before a time, so that `retain` can delete its segment."""
        if self._written_us < after_us:
            self.rotate()

    def _start(self) -> None:
        path = self.folder / f"{self.last + 1:020d}.log"
        self._file = _create_segment(path, self._sync)
        self._path = path
        self._size = len(MAGIC)

    def _resume(self, path: Path, known: int) -> None:
        """Continue the newest segment behind its last complete record."""
        self.last, end, self._began_us, self._written_us = _end_of(path, known)
        self.cut_bytes = path.stat().st_size - end
        if not end:  # killed while the segment was started
            path.unlink()
            self._start()
            return
        self._path = path
        self._size = end
        self._file = os.open(path, os.O_RDWR | os.O_APPEND)
        if self.cut_bytes:
            os.ftruncate(self._file, end)
            self._sync(self._file)

    def _truncate(self, cause: OSError) -> None:
        """Cut the file behind the last acknowledged record."""
        try:
            os.ftruncate(self._file, self._size)
        except OSError:
            self._fault = f"{self._path}: could not be written ({cause.strerror or cause}) nor cut; open the log again"


def _end_of(path: Path, known: int) -> tuple[int, int, int, int]:
    """(number of the last whole record, byte behind it, times of the first and the last) of the newest segment.

    StorageError if the rest is no torn write: whole records follow it, or record ``known`` is in it.
    """
    data = path.read_bytes()
    first = first_number(path)
    frames = list(scan(data, first))
    end = frames[-1].end if frames else len(MAGIC) if data.startswith(MAGIC) else 0
    due = first + len(frames)
    refuse_damage(path, data, end, due, is_open=True)
    if due - 1 < known:
        raise StorageError(
            f"{path}: ends at byte {end} with record {due - 1}, and ledger or tables know record {known};"
            f" nothing was changed: {REMEDY}"
        )
    return due - 1, end, frames[0].written_at_us if frames else 0, frames[-1].written_at_us if frames else 0


def locked(folder: Path) -> int:
    """The log's lock file, open and locked; made with the folder if they are missing."""
    return durable.lock(lock_of(folder), "another process writes this log; stop it first")


def retain(folder: Path, after_us: int, sync: durable.Sync = os.fsync) -> int:
    """Delete closed segments whose last record was written before a time; the number of files. Numbers continue."""
    count = 0
    for path in segments(folder)[:-1]:
        if ended_us(path) >= after_us:
            break
        path.unlink()
        count += 1
    if count:
        durable.sync_folder(folder, sync)
    return count


def _create_segment(path: Path, sync: durable.Sync) -> int:
    """An empty segment, on the disk, open for appending. StorageError: there is no such file afterwards."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        try:
            _write(file, MAGIC)
            sync(file)
            durable.sync_folder(path.parent, sync)
        except OSError:
            os.close(file)
            path.unlink()
            raise
    except OSError as error:
        raise durable.failed(path, error) from error
    return file


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
