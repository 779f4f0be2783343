"""``manage.db``: campaigns, ads, keys and origins, with one writer, the management process.

A row is its JSON (``body``); the columns that queries need are computed from it. Every commit takes the next version
number and writes it into the rows that it changes, so a reader learns from one row whether anything is new, and from
an index what. No campaign and no ad is ever deleted: reports and late events name them. ``place`` is their order of
arrival, and never changes.
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
    """The writer's connection, for any thread of its process. ``lock`` is held while a thread reads or writes."""

    def __init__(self, path: Path) -> None:
        self.connection = database.connect(path, MIGRATIONS, any_thread=True)
        self.lock = threading.RLock()

    @contextmanager
    def writing(self) -> Iterator[int]:
        """A transaction, all or nothing; yields its version number."""
        with self.lock, database.transaction(self.connection):
            self.connection.execute("UPDATE version SET number = number + 1")
            (number,) = self.connection.execute("SELECT number FROM version").fetchone()
            yield number

    def close(self) -> None:
        with self.lock:
            self.connection.close()
