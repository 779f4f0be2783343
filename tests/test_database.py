"""SQLite as leadre opens it: schemas move forward only, transactions are whole, a killed writer loses nothing."""

from __future__ import annotations

import ast
import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from leadre import database
from leadre.errors import InputError

FIRST = "CREATE TABLE spend (day TEXT PRIMARY KEY, nanos INTEGER NOT NULL)"
SECOND = "ALTER TABLE spend ADD COLUMN zone TEXT NOT NULL DEFAULT 'UTC'; CREATE INDEX by_zone ON spend (zone)"


def rows(path: Path) -> list[tuple[object, ...]]:
    with closing(database.connect(path, (FIRST,), read_only=True)) as connection:
        return connection.execute("SELECT * FROM spend ORDER BY day").fetchall()


def put(connection: sqlite3.Connection, day: str, nanos: int = 1) -> None:
    connection.execute("INSERT INTO spend (day, nanos) VALUES (?, ?)", (day, nanos))


def test_commit_is_synced_and_readers_do_not_block(tmp_path: Path) -> None:
    path = tmp_path / "state" / "ledger.db"  # the folder is made
    with closing(database.connect(path, (FIRST,))) as writer:
        assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        with database.transaction(writer):
            put(writer, "2026-03-01")
            assert rows(path) == []
        assert rows(path) == [("2026-03-01", 1)]


def test_migration_keeps_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(database.connect(path, (FIRST,))) as connection:
        put(connection, "2026-03-01")
    for _ in range(2):  # the second time there is nothing to do
        with closing(database.connect(path, (FIRST, SECOND))) as connection:
            assert connection.execute("SELECT * FROM spend").fetchall() == [("2026-03-01", 1, "UTC")]
    with pytest.raises(InputError, match=r"is of schema 2, this release knows 1; install a newer leadre"):
        database.connect(path, (FIRST,))


def test_failed_migration_leaves_the_old_schema(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with pytest.raises(InputError, match=r"cannot be opened as a database .*no such table: gone"):
        database.connect(path, (FIRST, "CREATE TABLE half (a); DROP TABLE gone"))
    with closing(database.connect(path, (FIRST, SECOND))) as connection:  # not locked, and no half
        names = connection.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall()
    assert [name for (name,) in names if not name.startswith("sqlite_")] == ["by_zone", "spend"]


def test_migration_killed_half_way_leaves_the_old_schema(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(database.connect(path, (FIRST,))) as connection:
        put(connection, "2026-03-01")
    endless = """
    ALTER TABLE spend ADD COLUMN half TEXT;
    CREATE TABLE half (n INTEGER);
    INSERT INTO half WITH RECURSIVE up (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up) SELECT n FROM up
    """
    opening = f"database.connect(pathlib.Path({str(path)!r}), {(FIRST, endless)!r})"
    code = f"import pathlib; from leadre import database; {opening}"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        log = path.with_name("ledger.db-wal")
        while not (log.exists() and log.stat().st_size > 1 << 22):  # more than its cache holds
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert rows(path) == [("2026-03-01", 1)]
    with closing(database.connect(path, (FIRST, SECOND))) as connection:
        assert connection.execute("SELECT * FROM spend").fetchall() == [("2026-03-01", 1, "UTC")]


def test_concurrent_migrations_run_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    steps = (FIRST, SECOND, *(f"CREATE TABLE t{n} (a)" for n in range(40)))
    with ThreadPoolExecutor(4) as threads:
        opened = [threads.submit(database.connect, path, steps, any_thread=True) for _ in range(4)]
        versions = [future.result().execute("PRAGMA user_version").fetchone() for future in opened]
        for future in opened:
            future.result().close()
    assert versions == [(42,)] * 4


def test_read_only_connection_cannot_write_or_migrate(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with pytest.raises(InputError, match="cannot be opened"):
        database.connect(path, (FIRST,), read_only=True)
    assert not path.exists()
    database.connect(path, (FIRST,)).close()
    with pytest.raises(InputError, match=r"is of schema 1, wants 2; start `leadre serve`"):
        database.connect(path, (FIRST, SECOND), read_only=True)
    with (
        closing(database.connect(path, (FIRST,), read_only=True)) as reader,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        put(reader, "2026-03-01")


def test_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_text("day,nanos\n" * 200)
    with pytest.raises(InputError, match=r"ledger\.db: cannot be opened as a database \(file is not a database\)"):
        database.connect(path, (FIRST,))
    assert path.read_text().startswith("day,nanos")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_transaction_is_rolled_back_on_any_exception(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "ledger.db"
    with closing(database.connect(path, (FIRST,))) as connection:
        with pytest.raises(error), database.transaction(connection):
            put(connection, "2026-03-01")
            raise error
        with pytest.raises(sqlite3.IntegrityError), database.transaction(connection):
            put(connection, "2026-03-02")
            put(connection, "2026-03-02")
        with database.transaction(connection):  # the lock was given back
            put(connection, "2026-03-03")
    assert rows(path) == [("2026-03-03", 1)]


def test_backup_is_consistent_and_replaces_an_older_file(tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    with closing(database.connect(tmp_path / "ledger.db", (FIRST,))) as connection:
        for day in ("2026-03-01", "2026-03-02"):
            put(connection, day)
            database.backup(connection, copy)
            assert rows(copy)[-1] == (day, 1)


def test_killed_writer_loses_only_uncommitted_rows(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    code = f"""
    import pathlib, time
    from leadre import database
    connection = database.connect(pathlib.Path({str(path)!r}), ({FIRST!r},))
    with database.transaction(connection):
        connection.execute("INSERT INTO spend VALUES ('2026-03-01', 1)")
    with database.transaction(connection):
        connection.execute("INSERT INTO spend VALUES ('2026-03-02', 1)")
        print("inside", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "inside\n"
        os.kill(process.pid, signal.SIGKILL)
    database.connect(path, (FIRST,)).close()
    assert rows(path) == [("2026-03-01", 1)]


def test_no_statement_numbers_its_placeholders():
    """Python 3.12.0 to 3.12.3 warn of ``?1`` with a sequence of values, and 3.14 raises an error."""
    numbered = []
    for path in sorted(Path(database.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"[ (,]\?\d", node.value):
                numbered.append(f"{path}:{node.lineno}")
    assert numbered == []
