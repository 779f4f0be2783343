"""State files of the first schema, written by hand: today's code reads them, and refuses those of tomorrow.

The SQL below is what the first release wrote. It stays as it is when schemas move on.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Charge, ChargeResult, Lease, LeaseRequest
from leadre.errors import InputError
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.manage import auth
from leadre.serve.manage.auth import ApiKeys

NOW_US = 1_790_000_000_000_000  # 2026-09-21

LEDGER_1 = """
    CREATE TABLE budgets (
        campaign_id TEXT PRIMARY KEY, zone TEXT NOT NULL, hold_us INTEGER NOT NULL, daily_nanos INTEGER NOT NULL,
        cap_nanos INTEGER NOT NULL, charged_nanos INTEGER NOT NULL DEFAULT 0, held_nanos INTEGER NOT NULL DEFAULT 0,
        written_off_nanos INTEGER NOT NULL DEFAULT 0,
        CHECK (charged_nanos >= 0 AND held_nanos >= 0 AND charged_nanos + held_nanos <= cap_nanos)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE days (
        campaign_id TEXT NOT NULL REFERENCES budgets, day TEXT NOT NULL,
        cap_nanos INTEGER NOT NULL, charged_nanos INTEGER NOT NULL DEFAULT 0, held_nanos INTEGER NOT NULL DEFAULT 0,
        written_off_nanos INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (campaign_id, day),
        CHECK (charged_nanos >= 0 AND held_nanos >= 0 AND charged_nanos + held_nanos <= cap_nanos)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE leases (
        lease_id INTEGER PRIMARY KEY AUTOINCREMENT, worker TEXT NOT NULL, campaign_id TEXT NOT NULL, day TEXT NOT NULL,
        granted_nanos INTEGER NOT NULL, held_nanos INTEGER NOT NULL, returns_at_us INTEGER NOT NULL,
        CHECK (held_nanos BETWEEN 0 AND granted_nanos),
        FOREIGN KEY (campaign_id, day) REFERENCES days
    ) STRICT;
    CREATE INDEX open_leases ON leases (campaign_id, day) WHERE held_nanos > 0;
    CREATE INDEX leases_by_return ON leases (returns_at_us);
    CREATE TABLE entries (
        event_id TEXT PRIMARY KEY, campaign_id TEXT NOT NULL, day TEXT NOT NULL, known_until_us INTEGER NOT NULL,
        charged_nanos INTEGER NOT NULL, written_off_nanos INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX entries_by_time ON entries (known_until_us);
    CREATE TABLE log (number INTEGER NOT NULL) STRICT;
    INSERT INTO log VALUES (7);
    INSERT INTO budgets VALUES ('c', 'UTC', 600000000, 4611686018427387904, 1000, 300, 200, 40);
    INSERT INTO days VALUES ('c', '2026-09-20', 4611686018427387904, 100, 0, 0);
    INSERT INTO days VALUES ('c', '2026-09-21', 4611686018427387904, 200, 200, 40);
    INSERT INTO leases VALUES (5, 'w', 'c', '2026-09-21', 400, 200, 1790000600000000);
    INSERT INTO entries VALUES ('e1', 'c', '2026-09-20', 1800000000000000, 100, 0);
    INSERT INTO entries VALUES ('e2', 'c', '2026-09-21', 1800000000000000, 200, 40);
    PRAGMA user_version = 1;
"""

MANAGE_1 = """
    CREATE TABLE version (number INTEGER NOT NULL);
    INSERT INTO version VALUES (9);
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
    INSERT INTO origins VALUES ('https://news.example');
    INSERT INTO campaigns (place, campaign_id, body, version) VALUES (1, 'c1', '{"campaign_id":"c1",
        "advertiser_id":"acme","name":"Autumn","status":"active","bid_type":"cpc","bid_nanos":5000,"daily_nanos":70000,
        "zone":"Europe/Rome","targeting":{"countries":["DEU"]}}', 3);
    INSERT INTO ads (place, ad_id, body, version) VALUES (1, 'a1', '{"ad_id":"a1","object_id":"o1","campaign_id":"c1",
        "advertiser_id":"acme","title":"Shoes","landing_url":"https://acme.test/shoes","adomain":"acme.test",
        "status":"paused","sizes":[[300,250]]}', 9);
    PRAGMA user_version = 1;
"""


def written(path: Path, script: str) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    return path


def schema(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """(name, SQL without its blanks) of every table and index."""
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
    return [(name, "".join(sql.split())) for name, sql in rows]


def test_a_ledger_of_the_first_schema_keeps_its_books_and_charges_on(tmp_path: Path) -> None:
    with Ledger(written(tmp_path / "old.db", LEDGER_1)) as books, Ledger(tmp_path / "new.db") as new:
        assert schema(books.connection) == schema(new.connection)
        assert books.verify() == [] and books.log_number == 7
        assert (books.spent("c"), books.held("c"), books.written_off("c")) == (300, 200, 40)
        assert books.left("c", NOW_US) == 500 and books.knows("e1", NOW_US)
        orders = [Charge(event_id=name, campaign_id="c", nanos=150, at_us=NOW_US, lease_id=5) for name in ("e2", "e3")]
        known, fresh = books.apply(orders, NOW_US)
        assert known == ChargeResult(nanos=200, written_off_nanos=40, is_new=False)
        assert fresh == ChargeResult(nanos=150, written_off_nanos=0, is_new=True)
        (lease,) = books.apply([LeaseRequest(worker="w", campaign_id="c", want_nanos=10)], NOW_US)
        assert isinstance(lease, Lease) and lease.lease_id == 6
        assert books.verify() == []


def test_a_book_of_the_first_schema_keeps_campaigns_ads_and_origins(tmp_path: Path) -> None:
    records, new = ManageDatabase(written(tmp_path / "old.db", MANAGE_1)), ManageDatabase(tmp_path / "new.db")
    try:
        assert schema(records.connection) == schema(new.connection)
        book = CampaignStore(records)
        (campaign,), (ad,) = book.campaigns(), book.ads()
        assert (campaign.bid_type, campaign.daily_nanos, campaign.zone) == ("cpc", 70_000, "Europe/Rome")
        assert campaign.targeting.countries == {"DEU"} and (ad.status, ad.sizes) == ("paused", ((300, 250),))
        assert auth.read_origins(records.connection) == {"https://news.example"}
        assert ApiKeys(records).find(ApiKeys(records).create("Ada", NOW_US)[1]).name == "Ada"
        book.set_ad_status("a1", "active")
        assert records.connection.execute("SELECT version FROM ads").fetchone() == (11,), "after the key's"
    finally:
        records.close()
        new.close()


@pytest.mark.parametrize(("opening", "script"), [(Ledger, LEDGER_1), (ManageDatabase, MANAGE_1)])
def test_a_file_of_a_newer_release_is_refused_and_stays_as_it_is(tmp_path: Path, opening: type, script: str) -> None:
    path = written(tmp_path / "state.db", f"{script}; PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"state\.db: is of schema 99, this release knows \d+; install a newer leadre"):
        opening(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (99,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert len(path.read_bytes()) == len(before)
