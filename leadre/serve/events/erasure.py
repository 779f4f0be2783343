"""Erasure of a user from closed log segments and tables, outside the process that books money.

The writer first adds the user to the erased users, so that no later record names the user, and closes its segment. The
management process then replaces the files that name the user. Meanwhile the writer neither compacts nor removes files.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leadre.serve.events import event_log, log_writer, training


def erase(log: Path, tables: Path, lock: Path, user_id: str) -> int:
    """Remove a user from all files but the newest segment; the number of records and rows that named the user.

    StorageError: some files may not be replaced yet; each is whole, with its old or its new content.
    """
    with replacing(lock, wait=True):
        segments = event_log.segments(log)[:-1]
        return sum(log_writer.erase(path, user_id) for path in segments) + training.erase(tables, user_id)


@contextmanager
def replacing(lock: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of segments and tables that exist. False, without ``wait``, while another process holds it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        yield False
        return
    try:
        yield True
    finally:
        os.close(file)
