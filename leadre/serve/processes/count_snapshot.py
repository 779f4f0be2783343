"""Snapshot of the counts that follow from the event log, so that a start reads the records behind it alone.

The file is a CRC-32 in hex, a line break, and the msgpack of `CountSnapshot`. A missing, damaged or newer file is no
error: the log has the same counts, except those of segments that retention has deleted.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import msgspec

from leadre.serve.events import durable

FORMAT = 1


class CountSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of all log records up to number ``last``. They name no user, so erasure and retention leave them."""

    format: int = FORMAT
    last: int
    by_ad: dict[str, tuple[int, int, int]]  # ad ID -> (impressions, clicks, conversions)
    by_day: list[tuple[str, str, tuple[int, int, int, int]]]  # campaign ID, day, the three and nanos charged
    live: list[str]  # ads that are live according to the log
    pacing: bytes = b""  # `PacingState.snapshot`
    shading: bytes = b""  # `ShadingState.snapshot`


def write(path: Path, snapshot: CountSnapshot) -> None:
    """Replace the file. StorageError if the disk refuses."""
    body = msgspec.msgpack.encode(snapshot)
    durable.replace(path, f"{zlib.crc32(body):08x}\n".encode() + body)


def read(path: Path, log_last: int) -> CountSnapshot | None:
    """The snapshot; None if it is missing, damaged or of another format, or counts records behind ``log_last``."""
    if not path.exists():
        return None
    crc, _, body = path.read_bytes().partition(b"\n")
    if crc != f"{zlib.crc32(body):08x}".encode():
        return None
    try:
        snapshot = msgspec.msgpack.decode(body, type=CountSnapshot)
    except msgspec.DecodeError:  # of another release
        return None
    return snapshot if snapshot.format == FORMAT and snapshot.last <= log_last else None
