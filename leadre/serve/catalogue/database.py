"""``manage.db``: campaigns, ads, accounts, API keys, origins, and the audit trail of their changes.

While a bidder runs, its management process writes it.

A row stores its campaign or ad as JSON (``body``); SQLite computes from it the columns that queries need. Every commit
increments the version number and writes it into the rows that it changes. So a reader compares one number to detect a
change, and finds the changed rows by an index. Campaigns and ads are never deleted: reports and late events refer to
them. ``place`` numbers the rows in order of insertion and never changes. `leadre.serve.catalogue.ownership` describes
the accounts of objects.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leadre import database
from leadre.serve.catalogue import ownership

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE version (number INTEGER NOT NULL);
    INSERT INTO version VALUES (0);
    CREATE TABLE campaigns (
        place INTEGER PRIMARY KEY,
        campaign_id TEXT NOT NULL UNIQUE,
        body TEXT NOT NULL,
        version INTEGER NOT NULL,
        advertiser_id TEXT NOT NULL AS (json_extract(body, '$.advertiser_id')) STORED,
        status TEXT NOT NULL AS (json_extract(body, '$.status')) STORED
    );
    CREATE INDEX campaigns_by_version ON campaigns (version);
    CREATE INDEX campaigns_by_advertiser ON campaigns (advertiser_id, campaign_id);
    CREATE TABLE ads (
        place INTEGER PRIMARY KEY,
        ad_id TEXT NOT NULL UNIQUE,
        body TEXT NOT NULL,
        version INTEGER NOT NULL,
        campaign_id TEXT NOT NULL AS (json_extract(body, '$.campaign_id')) STORED REFERENCES campaigns (campaign_id),
        advertiser_id TEXT NOT NULL AS (json_extract(body, '$.advertiser_id')) STORED,
        status TEXT NOT NULL AS (json_extract(body, '$.status')) STORED
    );
    CREATE INDEX ads_by_version ON ads (version);
    CREATE INDEX ads_by_advertiser ON ads (advertiser_id, ad_id);
    CREATE INDEX ads_by_campaign ON ads (campaign_id, ad_id);
    CREATE TABLE keys (
        key_id TEXT PRIMARY KEY,
        hash BLOB NOT NULL,
        name TEXT NOT NULL,
        advertiser_id TEXT NOT NULL,
        created_at_us INTEGER NOT NULL,
        revoked_at_us INTEGER NOT NULL
    );
    CREATE TABLE origins (origin TEXT PRIMARY KEY);
    """,
    """
    ALTER TABLE keys ADD COLUMN scopes TEXT NOT NULL DEFAULT '';
    UPDATE keys SET scopes = CASE advertiser_id
        WHEN '' THEN 'metrics explain recommend campaigns convert erase keys' ELSE 'campaigns' END;
    CREATE TABLE audit (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        at_us INTEGER NOT NULL,
        key_id TEXT NOT NULL,
        by_account TEXT NOT NULL,
        kind TEXT NOT NULL,
        item_id TEXT NOT NULL,
        advertiser_id TEXT NOT NULL,
        before TEXT NOT NULL,
        after TEXT NOT NULL
    );
    CREATE INDEX audit_by_advertiser ON audit (advertiser_id, number);
    CREATE INDEX audit_by_item ON audit (item_id, number);
    CREATE TRIGGER audit_stays BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit trail only grows'); END;
    CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit trail only grows'); END;
    """,
    ownership.MIGRATION,
    """
    CREATE TABLE accounts (advertiser_id TEXT PRIMARY KEY, limits TEXT NOT NULL);
    CREATE TABLE pages (page TEXT PRIMARY KEY, reason TEXT NOT NULL);
    ALTER TABLE ads ADD COLUMN review TEXT NOT NULL
        AS (coalesce(json_extract(body, '$.review'), 'approved')) VIRTUAL;
    CREATE INDEX ads_by_review ON ads (review, ad_id);
    """,
)

LOCK_MS = 1000  # wait for another program's lock; SQLite itself may wait 10 s for one that hinders all readers
THREAD_S = 3.0  # wait for the other threads of the process: they may wait for that lock, or import ads


class _ThreadLock:
    """A reentrant lock that a thread waits `THREAD_S` for. OperationalError: others hold it for longer."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=THREAD_S):
            raise sqlite3.OperationalError(f"other requests have it locked for more than {THREAD_S:.0f} s")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class ManageDatabase:
    """A connection that may write, shared by the threads of a process. A thread holds ``lock`` while it uses it."""

    def __init__(self, path: Path) -> None:
        self.connection = database.connect(path, MIGRATIONS, any_thread=True, functions={"folded": ownership.folded})
        self.connection.execute(f"PRAGMA busy_timeout={LOCK_MS}")
        self.lock = _ThreadLock()

    @contextmanager
    def writing(self) -> Iterator[int]:
        """A transaction, committed as a whole or not at all. Yields the version number to write into changed rows."""
        with self.lock, database.transaction(self.connection):
            self.connection.execute("UPDATE version SET number = number + 1")
            (number,) = self.connection.execute("SELECT number FROM version").fetchone()
            yield number

    def close(self) -> None:
        with self.lock:
            self.connection.close()
