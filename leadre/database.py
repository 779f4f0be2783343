"""SQLite for durable state: write-ahead log, an fsync for every commit, schema migrations that only move forward.

A commit waits for the disk (``synchronous=FULL``), so acknowledged data survives a power cut. One process writes;
readers in other processes see the last commit and block no writer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType

from leadre.errors import InputError, StorageError

DISK_ERRORS = (StorageError, sqlite3.OperationalError)  # the disk refuses, or another program has a database locked
BUSY_MS = 5_000


def connect(
    path: Path,
    migrations: Sequence[str],
    *,
    read_only: bool = False,
    any_thread: bool = False,
    functions: Mapping[str, Callable[[str], str]] = MappingProxyType({}),
) -> sqlite3.Connection:
    """Open a database and migrate it to the newest schema; transactions are explicit (`transaction`).

    ``migrations`` are SQL scripts in order; the file stores how many have run, so the list may only grow at its end.
    ``any_thread``: several threads use the connection, and the caller holds a lock while one of them does.
    ``functions``: SQL functions of one text, by name, that a migration uses.
    InputError for a file of a newer release, or a file that is not a database.
    """
    if not read_only:
        path.parent.mkdir(parents=True, exist_ok=True)
    address = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    connection = None
    try:
        connection = sqlite3.connect(
            address, uri=True, isolation_level=None, timeout=BUSY_MS / 1000, check_same_thread=not any_thread
        )
        if not read_only:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA secure_delete=ON")  # deleted rows leave no bytes
        connection.execute("PRAGMA foreign_keys=ON")
        for name, function in functions.items():
            connection.create_function(name, 1, function, deterministic=True)
        (done,) = connection.execute("PRAGMA user_version").fetchone()
        _migrate(connection, migrations, done, path, read_only)
    except (sqlite3.Error, InputError) as error:
        if connection is not None:
            connection.close()
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be opened as a database ({error})") from error
    return connection


def _migrate(connection: sqlite3.Connection, migrations: Sequence[str], done: int, path: Path, read_only: bool) -> None:
    if done > len(migrations):
        raise InputError(f"{path}: is of schema {done}, this release knows {len(migrations)}; install a newer leadre")
    if read_only and done < len(migrations):
        raise InputError(
            f"{path}: is of schema {done}, wants {len(migrations)}; start `leadre serve`, which moves it on"
        )
    while done < len(migrations):
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{migrations[done]};\nPRAGMA user_version={done + 1};\nCOMMIT;")
        except sqlite3.OperationalError:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            (now,) = connection.execute("PRAGMA user_version").fetchone()
            if now == done:  # otherwise another process ran this migration
                raise
            done = now - 1
        done += 1


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit everything inside the block, or nothing. Takes the write lock at once, so it cannot fail for it later."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def truncate_wal(connection: sqlite3.Connection) -> None:
    """Move all commits into the database file, and empty the WAL file, whose old pages keep what was deleted since.

    It waits for readers for `BUSY_MS` at most; the WAL file stays then.
    """
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def backup(connection: sqlite3.Connection, path: Path) -> None:
    """Copy the database to ``path``, consistent while others write; an older file there is replaced."""
    with closing(sqlite3.connect(path)) as copy:
        connection.backup(copy)
