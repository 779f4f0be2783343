"""Erasure of a user from closed log segments and tables, outside the process that books money.

The writer first adds the user to the erased users, so that no later record names the user, and closes its segment. The
management process then replaces the files that name the user. Meanwhile the writer neither compacts nor removes files.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from leadre.serve.events import durable, event_log, log_writer, training


def erase(log: Path, tables: Path, lock: Path, user_id: str) -> int:
    """Remove a user from all files but the newest segment; the number of records and rows that named the user.

    StorageError: some files may not be replaced yet; each is whole, with its old or its new content.
    """
    with replacing(lock, wait=True):
        segments = event_log.segments(log)[:-1]
        return sum(log_writer.erase(path, user_id) for path in segments) + training.erase(tables, user_id)


def replacing(lock: Path, *, wait: bool) -> AbstractContextManager[bool]:
    """Hold the lock of segments and tables that exist. False, without ``wait``, while another process holds it."""
    return durable.exclusive(lock, wait=wait)
