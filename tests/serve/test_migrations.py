"""State of earlier releases opens with the code of now; state of a later release is refused.

The SQL below is the first release's schema. `golden/state_2026_11.tar.gz` is the state folder of a bidder of November
2026 (commit 5853169), copied while it ran, its writer killed between the sync of the log and the commit of the ledger.
The archive holds `make.py`, the script that wrote it with the code of that commit, and `expected.json`, the numbers
that this code returned. Neither the SQL nor the archive changes when a schema, a record or a name does.
"""

from __future__ import annotations

import json
import re
import sqlite3
import tarfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Charge, ChargeResult, Lease, LeaseRequest
from leadre.errors import InputError
from leadre.serve.bidding.exploration import ExplorationDraws
from leadre.serve.bidding.record import request_of
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.events import event_log, table_position, training
from leadre.serve.events import records as event_records
from leadre.serve.events.erased import ErasedUsers
from leadre.serve.events.event_log import LogEntry
from leadre.serve.events.records import EventRecord, RequestRecord, StatusRecord
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import CountsRequest, EventRequest, RecordRequest
from leadre.serve.manage import auth
from leadre.serve.manage.auth import ApiKeys
from leadre.serve.paths import StatePaths
from leadre.types import OLD_VERDICTS, Verdict

from .alone import Alone, banner_request, chosen, urls_of
from .bidder import Bidder, event_urls, until

ARCHIVE = Path(__file__).parent / "golden" / "state_2026_11.tar.gz"
CAMPAIGNS = ("daily", "click", "sale", "poor", "ended")

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


def test_ledger_of_the_first_schema_keeps_its_sums_and_charges_on(tmp_path: Path) -> None:
    with Ledger(written(tmp_path / "old.db", LEDGER_1)) as ledger, Ledger(tmp_path / "new.db") as new:
        assert schema(ledger.connection) == schema(new.connection)
        assert ledger.verify() == [] and ledger.log_number == 7
        assert (ledger.spent("c"), ledger.reserved("c"), ledger.written_off("c")) == (300, 200, 40)
        assert ledger.left("c", NOW_US) == 500 and ledger.knows("e1", NOW_US)
        orders = [Charge(event_id=name, campaign_id="c", nanos=150, at_us=NOW_US, lease_id=5) for name in ("e2", "e3")]
        repeated, first = ledger.apply(orders, NOW_US)
        assert repeated == ChargeResult(nanos=200, written_off_nanos=40, is_new=False)
        assert first == ChargeResult(nanos=150, written_off_nanos=0, is_new=True)
        (lease,) = ledger.apply([LeaseRequest(worker="w", campaign_id="c", max_nanos=10)], NOW_US)
        assert isinstance(lease, Lease) and lease.lease_id == 6
        assert ledger.verify() == []


def test_manage_db_of_the_first_schema_keeps_campaigns_ads_and_origins(tmp_path: Path) -> None:
    records = ManageDatabase(written(tmp_path / "old.db", MANAGE_1))
    new = ManageDatabase(tmp_path / "new.db")
    try:
        assert schema(records.connection) == schema(new.connection)
        store = CampaignStore(records)
        (campaign,) = store.campaigns()
        (ad,) = store.ads()
        assert (campaign.bid_type, campaign.daily_nanos, campaign.zone) == ("cpc", 70_000, "Europe/Rome")
        assert campaign.targeting.countries == {"DEU"} and (ad.status, ad.sizes) == ("paused", ((300, 250),))
        assert auth.read_origins(records.connection) == {"https://news.example"}
        key = ApiKeys(records).find(ApiKeys(records).create("Ada", NOW_US)[1])
        assert key is not None and key.name == "Ada"
        store.set_ad_status("a1", "active")
        assert records.connection.execute("SELECT version FROM ads").fetchone() == (11,), "after the key's"
    finally:
        records.close()
        new.close()


@pytest.mark.parametrize(("opening", "script"), [(Ledger, LEDGER_1), (ManageDatabase, MANAGE_1)])
def test_file_of_a_newer_schema_is_refused_unchanged(tmp_path: Path, opening: type, script: str) -> None:
    path = written(tmp_path / "state.db", f"{script}; PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"state\.db: is of schema 99, this release knows \d+; install a newer leadre"):
        opening(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (99,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert len(path.read_bytes()) == len(before)


@pytest.fixture
def state(tmp_path: Path) -> StatePaths:
    """A copy of the archived state folder."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "state", filter="data")
    return StatePaths(folder=tmp_path / "state", store=f"lmdb:{tmp_path / 'state' / 'lists'}")


@pytest.fixture
def expected(state: StatePaths) -> dict[str, Any]:
    """The numbers that the code of November 2026 returned."""
    numbers: dict[str, Any] = json.loads((state.folder / "expected.json").read_text())
    return numbers


def entries_of(state: StatePaths) -> list[LogEntry]:
    return list(event_log.read(state.events))


def test_ledger_of_november_2026_keeps_every_sum(state: StatePaths, expected: dict[str, Any]) -> None:
    with Ledger(state.ledger) as ledger:
        assert ledger.verify() == [] and ledger.log_number == expected["ledger_number"]
        now_us = expected["now_us"]
        sums = {
            "spent": {name: ledger.spent(name) for name in CAMPAIGNS},
            "held": {name: ledger.reserved(name) for name in CAMPAIGNS},
            "written_off": {name: ledger.written_off(name) for name in CAMPAIGNS},
            "left": {name: ledger.left(name, now_us) for name in CAMPAIGNS},
        }
        assert sums == {name: expected[name] for name in sums}
        assert sums["held"]["daily"] > 0 and sums["written_off"]["poor"] > 0, "the archive has leases and write-offs"


def test_log_of_november_2026_is_read_with_every_record(state: StatePaths, expected: dict[str, Any]) -> None:
    entries = entries_of(state)
    assert [entry.number for entry in entries] == list(range(1, expected["log_number"] + 1))
    types = {"Answered": RequestRecord, "Happened": EventRecord, "Switched": StatusRecord}
    counts = Counter(type(entry.record) for entry in entries)
    assert {name: counts[kind] for name, kind in types.items()} == expected["record_types"]
    requests = [entry.record for entry in entries if isinstance(entry.record, RequestRecord)]
    events = [entry.record for entry in entries if isinstance(entry.record, EventRecord)]
    verdicts = {verdict for record in requests for imp in record.verdicts.values() for verdict in imp}
    assert verdicts == {Verdict(word) for word in expected["verdicts"]}
    assert {Verdict(word) for word in ("bid", "cap", "below floor", "not drawn", "budget", "ineligible")} <= verdicts
    assert sorted({record.reason for record in requests}) == expected["reasons"]
    assert sorted({record.outcome.kind for record in events}) == expected["kinds"]
    charges: Counter[str] = Counter()
    for record in events:
        charges[record.outcome.campaign_id] += record.outcome.charge_nanos
    assert {name: charges[name] for name in CAMPAIGNS} == expected["logged_charges"]
    for record in requests:
        assert [imp.imp_id for imp in request_of(record).imps] == list(record.verdicts)


def test_log_of_november_2026_is_encoded_with_the_same_names_and_values(state: StatePaths) -> None:
    """The records' names in Python may change, their names on the disk may not; verdicts are written in new words."""
    for segment in event_log.segments(state.events):
        for _, body in event_log.bodies_of(segment):
            record = event_records.decode(body)
            written = event_records.encode(_with_old_words(record) if isinstance(record, RequestRecord) else record)
            old, new = map(msgspec.msgpack.decode, (body, written))
            assert _without_new_fields(new, old) == old


def _without_new_fields(new: Any, old: Any) -> Any:
    """A value without the fields, of it and of values within it, that the old one lacks."""
    if isinstance(old, dict):
        return {name: _without_new_fields(new[name], value) for name, value in old.items()}
    return list(map(_without_new_fields, new, old)) if isinstance(old, list) and len(new) == len(old) else new


def _with_old_words(record: RequestRecord) -> RequestRecord:
    """The record with the verdicts of the release of November 2026."""
    old_words = {verdict: verdict.value for verdict in Verdict} | {new: old for old, new in OLD_VERDICTS.items()}
    verdicts = {imp_id: tuple(old_words[verdict] for verdict in row) for imp_id, row in record.verdicts.items()}
    return msgspec.structs.replace(record, verdicts=verdicts)


def test_campaigns_keys_origins_and_erased_users_of_november_2026_are_read(
    state: StatePaths, expected: dict[str, Any]
) -> None:
    records = ManageDatabase(state.manage_database)
    try:
        store = CampaignStore(records)
        keys = ApiKeys(records)
        assert sorted(campaign.campaign_id for campaign in store.campaigns()) == sorted(CAMPAIGNS)
        campaign = store.campaign("daily")
        assert campaign is not None and (campaign.zone, campaign.cap_per_day) == ("Europe/Rome", 5)
        assert {ad.ad_id: ad.status for ad in store.ads()} == {
            "click-1": "active",
            "daily-1": "active",
            "ended-1": "active",
            "poor-1": "active",
            "sale-1": "active",
            "sale-2": "paused",
        }
        operator = keys.find(expected["operator"])
        account = keys.find(expected["account"])
        assert operator is not None and operator.is_operator and operator.scopes == auth.SCOPES
        assert account is not None and account.advertiser_id == "acme" and account.scopes == ("campaigns",)
        assert keys.find(expected["revoked"]) is None
        assert auth.read_origins(records.connection) == {"https://news.example", "https://blog.example"}
    finally:
        records.close()
    erased = ErasedUsers(state.erased)
    assert "user-gone" in erased and "user-1" not in erased
    assert list(ExplorationDraws.open(state.exploration_key).pair("x-1", "1")) == expected["draws"]


def test_tokens_signed_in_november_2026_are_valid_under_both_keys(state: StatePaths, expected: dict[str, Any]) -> None:
    keys = TokenKeys.open(state.token_keys)
    token = keys.check(expected["tokens"]["old key"], "bill", expected["now_us"])
    assert (token.bid_id, token.ad_id, token.user_id, token.nonce) == ("old-key", "daily-1", "user-1", b"o" * 12)
    assert keys.version == 2 and re.match(r"2\.", expected["tokens"]["click"])
    token = keys.check(expected["tokens"]["click"], "click", expected["now_us"])
    assert (token.campaign_id, token.charge_type) == ("daily", "cpm")
    assert token.lease_id and token.cap_id and token.may_profile


def test_bidder_continues_from_the_state_of_november_2026(state: StatePaths, expected: dict[str, Any]) -> None:
    with Alone(state.folder) as bidder:
        bidder.clock.wall_us = expected["now_us"]
        ledger = bidder.writer.ledger
        unposted = expected["unbooked"]
        assert unposted["daily"] > 0 and ledger.log_number == bidder.writer.log.last == expected["log_number"]
        assert {name: ledger.spent(name) for name in CAMPAIGNS} == expected["logged_charges"], (
            "the log is caught up with"
        )
        assert ledger.reserved("daily") == expected["held"]["daily"] - unposted["daily"] and ledger.verify() == []
        (counts,) = bidder.writer.handle([CountsRequest()], bidder.clock.wall_us)
        impressions, clicks, _ = counts.by_ad["daily-1"]
        (record,) = bidder.writer.handle([RecordRequest("x-1")], bidder.clock.wall_us)
        assert record.record is not None and record.record.caller_request_id == "x-1"
        profile = bidder.store.read_profile("user-1")
        assert [event.object_id for event in profile.recent][:2] == ["o-click-1", "o-sale-1"]
        assert profile.segments == ("sport",)

        bidder.renew()
        returned = {kind: expected["tokens"][kind] for kind in ("bill", "click")}
        events = [
            EventRequest(
                kind=kind, token=token, at_us=bidder.clock.wall_us, price_nanos=1_500_000 if kind == "bill" else 0
            )
            for kind, token in returned.items()
        ]
        for outcome in ("new", "known"):
            assert [reply.outcome for reply in bidder.writer.handle(events, bidder.clock.wall_us)] == [outcome] * 2
        bidder.respond(banner_request(id="n-1", user={"id": "user-4"}))
        bidder.renew()
        decision = bidder.bid_logged(id="n-2", user={"id": "user-4"})
        assert chosen(decision) == ["daily-1"]
        urls = urls_of(decision.rendered[0])
        assert bidder.post_events(("imp", urls["imp"]), ("click", urls["click"])) == ["new", "new"]
        (counts,) = bidder.writer.handle([CountsRequest()], bidder.clock.wall_us)
        assert counts.by_ad["daily-1"][:2] == (impressions + 1, clicks + 2)
        assert ledger.spent("daily") == expected["logged_charges"]["daily"] + 1_500_000 and ledger.verify() == []
        bidder.clock.wall_us += 3_600_000_000
        ledger.expire(bidder.clock.wall_us)
        assert not any(ledger.reserved(name) for name in CAMPAIGNS) and ledger.verify() == []


def test_tables_of_november_2026_grow_by_the_records_behind_their_position(
    state: StatePaths, expected: dict[str, Any]
) -> None:
    before = {path.relative_to(state.tables): pl.read_parquet(path) for path in state.tables.rglob("*/*.parquet")}
    records = ManageDatabase(state.manage_database)
    ads = CampaignStore(records).ads()
    records.close()
    assert table_position.read(state.tables) == expected["position"] < expected["log_number"]
    training.recover(state.tables)
    added = training.compact(state.events, state.tables, ads)
    assert (
        added
        == expected["log_number"] - expected["position"]
        == table_position.read(state.tables) - expected["position"]
    )
    for path, frame in before.items():
        assert pl.read_parquet(state.tables / path).equals(frame), "files of that release stay"
        assert pl.read_parquet(state.tables / path.parent / "*.parquet").height > frame.height, path
    requests = [entry.record for entry in entries_of(state) if isinstance(entry.record, RequestRecord)]
    answers = pl.read_parquet(state.tables / "answers" / "*.parquet").sort("number")
    assert answers["request_id"].to_list() == [record.request_id for record in requests if not record.is_test]
    assert training.erase(state.tables, ["user-1"]) and not training.erase(state.tables, ["user-gone"])


@pytest.mark.slow
def test_leadre_serve_starts_on_the_state_of_november_2026(
    work: Path, state: StatePaths, expected: dict[str, Any]
) -> None:
    """The keys, lists, budgets and log of the archive serve a bid and count its events."""
    with Bidder(work, state.folder, "--generate", "false", "--workers", "1", "--retain-days", "9999") as bidder:
        items = bidder.manage("GET", "/campaigns", key=expected["operator"])["items"]
        assert sorted(item["campaign_id"] for item in items) == sorted(CAMPAIGNS)
        until(lambda: bidder.bidding("user-3", "daily-1"), "bids from the stored list")  # tests reserve no cap
        bids: list[dict[str, Any]] = []
        until(
            lambda: bids.extend(bidder.bids(user={"id": "user-3"})) or "daily-1" in [bid["crid"] for bid in bids],
            "leased",
        )
        bid = next(bid for bid in bids if bid["crid"] == "daily-1")
        urls = event_urls(bid)
        for kind in ("imp", "bill", "click"):
            assert bidder.http.get(urls[kind]).status_code in (200, 204, 302, 303)
        records = [entry.record for entry in event_log.read(state.events, expected["log_number"])]
        outcomes = [record.outcome for record in records if isinstance(record, EventRecord)]
        assert [outcome.kind for outcome in outcomes] == ["imp", "bill", "click"]
        assert outcomes[1].charge_nanos == 2_000_000
