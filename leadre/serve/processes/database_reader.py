"""Reads of the management database in a thread of their own: neither bids nor bookings wait for disk or lock."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from leadre import database

READ_S = 2.0  # longest wait of a caller

T = TypeVar("T")


class DatabaseReader:
    """A read-only connection that one thread opens, uses and closes. InputError if there is no such database.

    SQLite frees a connection that is closed while another thread reads from it, and the process dies.
    """

    def __init__(self, path: Path, migrations: Sequence[str]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="leadre-database")
        self._connection = self._thread.submit(database.connect, path, migrations, read_only=True).result()
        self._thread.submit(self._connection.execute, "PRAGMA busy_timeout=0")  # a read that finds a lock is repeated

    async def read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """``read(connection)``. sqlite3.DatabaseError if the database is locked."""
        reading = asyncio.get_running_loop().run_in_executor(self._thread, read, self._connection)
        try:
            async with asyncio.timeout(READ_S):  # Python 3.11's wait_for would lose the cancellation of a task
                return await reading
        except TimeoutError as error:
            raise sqlite3.OperationalError(f"database is locked for more than {READ_S:.0f} s") from error

    def submit(self, read: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """The future of ``read(connection)``, for a caller without an event loop."""
        return self._thread.submit(read, self._connection)

    def close(self) -> None:
        """Close the connection behind the reads that have begun, without waiting for them."""
        self._thread.submit(self._connection.close)
        self._thread.shutdown(wait=False)
