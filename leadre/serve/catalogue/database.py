"""``manage.db``: campaigns, ads, API keys and origins. While a bidder runs, its management process writes it.

A row stores its campaign or ad as JSON (``body``); SQLite computes from it the columns that queries need. Every commit
increments the version number and writes it into the rows that it changes. So a reader compares one number to detect a
change, and finds the changed rows by an index. Campaigns and ads are never deleted: reports and late events refer to
them. ``place`` numbers the rows in order of insertion and never changes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leadre import database

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
)


class ManageDatabase:
    """A connection that may write, shared by the threads of a process. A thread holds ``lock`` while it uses it."""

    def __init__(self, path: Path) -> None:
        self.connection = database.connect(path, MIGRATIONS, any_thread=True)
        self.lock = threading.RLock()

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
