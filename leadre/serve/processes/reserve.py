"""A file that reserves room on the disk of a bidder's state, so that a bidder starts although the disk is full.

SQLite opens no database without room for its index, and a bidder that cannot start cannot bid. A start that finds less
than `ROOM_BYTES` free deletes the file. A running bidder makes it again when there is room for it and for `ROOM_BYTES`
more.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from leadre import progress

RESERVE_BYTES = 8 << 20  # the indexes of two databases, 768 KiB of metrics for each process, some seconds of the log
ROOM_BYTES = 4 << 20
FILL_S = 60.0  # between two attempts to make the file


def free(path: Path) -> None:
    """Delete the file if the disk has less than `ROOM_BYTES` of room, and report it."""
    if path.exists() and not _take(path.with_suffix(".probe"), ROOM_BYTES, 0):
        with suppress(OSError):
            path.unlink()
        progress.say(
            f"serve: {path.parent.parent}: the disk is full; this start takes the {RESERVE_BYTES >> 20} MiB that were"
            " reserved for it, and the next one would have none: free the disk"
        )


def fill(path: Path) -> None:
    """Make the file if it is missing and there is room."""
    if not path.exists():
        _take(path, RESERVE_BYTES + ROOM_BYTES, RESERVE_BYTES)


def _take(path: Path, wanted_bytes: int, kept_bytes: int) -> bool:
    """Whether the disk has room for a file of ``wanted_bytes``; if so, ``path`` is a file of ``kept_bytes``, if any."""
    if not hasattr(os, "posix_fallocate"):  # macOS has none
        return True
    unfinished = path.with_name(f".{path.name}.new")
    has_room = False
    with suppress(OSError):
        file = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.posix_fallocate(file, 0, wanted_bytes)
            has_room = True
            os.ftruncate(file, kept_bytes)
            if kept_bytes:
                unfinished.replace(path)
        finally:
            os.close(file)
            unfinished.unlink(missing_ok=True)
    return has_room
