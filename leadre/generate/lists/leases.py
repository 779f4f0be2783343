"""Batches of a version that worker processes lease from each other, in a SQLite file."""

from __future__ import annotations

from pathlib import Path

from leadre import database

MIGRATIONS = (
    """CREATE TABLE batches (version TEXT NOT NULL, batch INTEGER NOT NULL, owner TEXT, until_us INTEGER NOT NULL
    DEFAULT 0, done_at_us INTEGER, PRIMARY KEY (version, batch)) WITHOUT ROWID""",
)


class BatchLeases:
    """Batches of one version: free, leased until a time, or done. A batch is done once."""

    def __init__(self, path: Path, version: str) -> None:
        self.version = version
        self.connection = database.connect(path, MIGRATIONS)

    def start(self, count: int) -> None:
        """Add the missing batches and free all leases. The caller must know that no worker runs."""
        with database.transaction(self.connection):
            rows = [(self.version, number) for number in range(count)]
            self.connection.executemany("INSERT OR IGNORE INTO batches (version, batch) VALUES (?, ?)", rows)
            self.connection.execute("UPDATE batches SET until_us = 0 WHERE version = ?", (self.version,))

    def take(self, owner: str, now_us: int, until_us: int) -> int | None:
        """Lease the first batch that is neither done nor leased; None if there is none at the moment."""
        with database.transaction(self.connection):
            number = self._query(
                "SELECT min(batch) FROM batches WHERE version = ? AND done_at_us IS NULL AND until_us <= ?", now_us
            )
            self.connection.execute(
                "UPDATE batches SET owner = ?, until_us = ? WHERE version = ? AND batch = ?",
                (owner, until_us, self.version, number),
            )
        return number

    def finish(self, number: int, now_us: int) -> bool:
        """Record a batch as done; False if another worker was first."""
        with database.transaction(self.connection):
            changed = self.connection.execute(
                "UPDATE batches SET done_at_us = ? WHERE version = ? AND batch = ? AND done_at_us IS NULL",
                (now_us, self.version, number),
            )
        return changed.rowcount == 1

    def forget(self) -> None:
        """Remove all batches of the version."""
        with database.transaction(self.connection):
            self.connection.execute("DELETE FROM batches WHERE version = ?", (self.version,))

    def left(self) -> int:
        """How many batches are not done."""
        return self._query("SELECT count(*) FROM batches WHERE version = ? AND done_at_us IS NULL") or 0

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _query(self, query: str, *values: int) -> int | None:
        (value,) = self.connection.execute(query, (self.version, *values)).fetchone()
        return None if value is None else int(value)
