"""Records of a user in the log: found by the bytes of the user's ID, and erased in place.

The cost is one sequential read of the log: a segment of 64 MiB is not written again for one record. A record that is
erased keeps its length: it loses its user and gets `PADDING` in return. A record of another user, or of none, that has
the ID in a text of its caller gets a random text there. The new frames are in a journal on the disk
before the first is written, so that `recover` finishes what a crash interrupts, with the same bytes.
"""

from __future__ import annotations

import bisect
import mmap
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from leadre.errors import StorageError
from leadre.extended_ids import covers
from leadre.serve.events import durable, event_log, records, user_texts
from leadre.serve.events.event_log import (
    REMEDY,
    Frame,
    body_of,
    first_number,
    frame_at,
    frame_starts,
    framed_body,
    segments,
)
from leadre.serve.events.records import Record

PADDING = "erased"  # key of the bytes that replace a user in a record; decoders skip it
MAX_SEARCHED = 8  # users whose bytes are searched for; with more, each record is decoded instead
MAX_JOURNAL_BYTES = 32 << 20
READ_TRIES = 3  # of a frame: an erasure may write it meanwhile
RETRY_S = 0.01


class Patch(msgspec.Struct, frozen=True, array_like=True):
    """The new frame at byte ``start`` of the segment of this name. It names no user."""

    segment: str
    start: int
    frame: bytes


class _Journal(msgspec.Struct, frozen=True):
    patches: list[Patch]


def find(folder: Path, user: str) -> Iterator[Record]:
    """All records of the log that name a user, in order. StorageError if one is damaged."""
    *closed, newest = segments(folder)
    for path in closed:
        with suppress(FileNotFoundError):  # deleted by retention since the folder was listed
            yield from (record for record, _, _ in _records(path, [user]) if records.user_of(record) == user)
    entries = event_log.read(folder, first_number(newest) - 1)
    yield from (entry.record for entry in entries if records.user_of(entry.record) == user)


def erase(folder: Path, journal: Path, users: Collection[str]) -> Counter[str]:
    """Remove users from all segments but the newest; user -> number of records. The caller holds the lock.

    StorageError: some segments may name the users still; each is whole.
    """
    recover(folder, journal)
    counts: Counter[str] = Counter()
    patches: list[Patch] = []
    size = 0
    for path in segments(folder)[:-1]:
        for user, patch in _patches(path, users):
            counts[user] += user != ""
            patches.append(patch)
            size += len(patch.frame)
            if size > MAX_JOURNAL_BYTES:
                _write(folder, journal, patches)
                patches = []
                size = 0
    _write(folder, journal, patches)
    return counts


def recover(folder: Path, journal: Path) -> None:
    """Finish the erasure that a crash interrupted, if there is one. StorageError if the disk refuses."""
    if journal.exists():
        try:
            content = msgspec.msgpack.decode(journal.read_bytes(), type=_Journal)
        except msgspec.DecodeError as error:
            raise StorageError(f"{journal}: damaged ({error}); request the erasures of the last day again") from error
        _apply(folder, content.patches)
        journal.unlink()
        durable.sync_folder(journal.parent)


def _write(folder: Path, journal: Path, patches: list[Patch]) -> None:
    """Write the journal, then the frames, then delete the journal."""
    if patches:
        durable.replace(journal, msgspec.msgpack.encode(_Journal(patches)), mode=0o600)
        recover(folder, journal)


def _apply(folder: Path, patches: list[Patch]) -> None:
    by_segment: dict[str, list[Patch]] = {}
    for patch in patches:
        by_segment.setdefault(patch.segment, []).append(patch)
    for name, of_segment in by_segment.items():
        path = folder / name
        with suppress(FileNotFoundError):  # deleted by retention since then
            file = os.open(path, os.O_RDWR)
            try:
                for patch in of_segment:
                    if os.pwrite(file, patch.frame, patch.start) != len(patch.frame):
                        raise OSError("a short write")
                os.fsync(file)
            except OSError as error:
                raise durable.failed(path, error) from error
            finally:
                os.close(file)


def _patches(path: Path, users: Collection[str]) -> Iterator[tuple[str, Patch]]:
    """(user, patch) for each record of a closed segment that names one of the users. StorageError if it is damaged.

    The user is "" if the ID is in a text of a caller alone.
    """
    for record, frame, body in _records(path, users):
        user = covers(users, records.user_of(record))
        new = erased_body(body, users) if user else user_texts.scrubbed_body(body, users)
        if len(new) != len(body):
            raise StorageError(f"{path}: record {frame.number} of {len(body)} bytes cannot be erased; please report it")
        if new != body:
            yield user, Patch(path.name, frame.start, framed_body(frame.number, frame.written_at_us, new))


def _records(path: Path, users: Collection[str]) -> Iterator[tuple[Record, Frame, bytes]]:
    """The records of a closed segment that may name one of the users, each with its frame and its msgpack."""
    inside = [user.encode() for user in user_texts.long_enough(users)]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for frame in _frames(path, data, users):
            body = body_of(data, frame)
            record = records.decode(body)
            if covers(users, records.user_of(record)) or any(user in body for user in inside):
                yield record, frame, body
        if hasattr(os, "posix_fadvise"):  # the log is larger than memory; lists and ledger stay in the page cache
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _frames(path: Path, data: mmap.mmap, users: Collection[str]) -> Iterator[Frame]:
    """The frames that may name a user, in order; each is whole."""
    first = first_number(path)
    if len(users) > MAX_SEARCHED:
        positions = frame_starts(data, len(data))
        rows: Collection[int] = range(len(positions))
    else:
        hits = {hit for user in users for needle in _needles(user) for hit in _hits(data, needle)}
        if not hits:
            return
        positions = frame_starts(data, max(hits) + 1)
        rows = sorted({bisect.bisect_right(positions, hit) - 1 for hit in hits})
    for row in rows:
        frame = None
        for _ in range(READ_TRIES if row >= 0 else 0):
            frame = frame_at(data, positions[row], first + row)
            if frame is not None:
                break
            time.sleep(RETRY_S)
        if frame is None:
            raise StorageError(f"{path}: record {first + row} is damaged; {REMEDY}")
        yield frame


def _needles(user: str) -> tuple[bytes, ...]:
    """Bytes of which every record that an erasure of the user changes contains one."""
    text = user.encode()
    return (text,) if user_texts.long_enough([user]) else (msgspec.msgpack.encode(user), b":" + text)


def _hits(data: mmap.mmap, needle: bytes) -> Iterator[int]:
    at = data.find(needle)
    while at >= 0:
        yield at
        at = data.find(needle, at + 1)


def erased_body(body: bytes, users: Collection[str]) -> bytes:
    """The msgpack of a record without its user, of the same length: `records.without` for bytes.

    Texts of its caller that contain one of ``users`` are replaced.

    The fields are those of the bytes, not of this release's records, so the result is never longer.
    """
    fields: dict[str, Any] = msgspec.msgpack.decode(body)
    user_texts.scrub(fields, users)
    if "outcome" in fields:
        del fields["outcome"]["user_id"]
        fields["is_training"] = False
    else:
        del fields["user_id"]
        fields.get("asked", {}).pop("segments", None)
    for name in (PADDING, PADDING + "_", PADDING + "__"):  # the length of bytes has gaps of two where its prefix grows
        spare = len(body) - len(msgspec.msgpack.encode(fields | {name: b""}))
        for prefix in (0, 1, 3):
            padded: bytes = msgspec.msgpack.encode(fields | {name: bytes(max(0, spare - prefix))})
            if len(padded) == len(body):
                return padded
    raise StorageError(f"a record of {len(body)} bytes cannot be erased in place; please report it")
