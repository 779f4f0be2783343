"""Erasure of users from closed log segments and tables, outside the process that books money.

The writer first adds a user to the erased users, so that no later record names the user, and closes its segment. The
management process then removes the users that wait from all files, in one pass. Meanwhile the table writer neither adds
nor removes files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

from leadre.serve.events import durable, repair, training, user_records
from leadre.serve.paths import StatePaths


def erase(paths: StatePaths, users: Collection[str]) -> Counter[str]:
    """Remove users from tables and log but for the newest segment; user -> number of records and rows that named it.

    Copies of damaged segments lose the bytes of the IDs.

    StorageError: some files may name the users still; each is whole, with its old or its new content.
    """
    with replacing(paths, wait=True), ThreadPoolExecutor(1) as beside:
        in_tables = beside.submit(training.erase, paths.tables, users)
        in_log = user_records.erase(paths.events, paths.erasing, users)
        repair.erase(paths.damaged, users)
        return in_log + in_tables.result()


def recover(paths: StatePaths) -> None:
    """Finish the erasure from the log that a crash interrupted. StorageError if the disk refuses."""
    if paths.erasing.exists():
        with replacing(paths, wait=True):
            user_records.recover(paths.events, paths.erasing)


def replacing(paths: StatePaths, *, wait: bool) -> AbstractContextManager[bool]:
    """Hold the lock of segments and tables that exist. False, without ``wait``, while another process holds it."""
    return durable.exclusive(paths.replacing, wait=wait)
