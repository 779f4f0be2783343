"""Retention: after its days no record, row, list or profile names a user; younger ones stay."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

from leadre.clock import SystemClock
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.events import event_log
from leadre.serve.events.records import EventRecord, RequestRecord
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import AppendRequest, EventRequest, RecordReply, RecordRequest
from leadre.serve.paths import StatePaths
from leadre.serve.processes.management import ManagementBackend
from leadre.serve.processes.table_writer import TableWriter
from leadre.serve.processes.writer_state import WriterState
from leadre.store.contract import EVERYBODY, Cap, StoredList
from leadre.units import US_PER_DAY

from .conftest import make_token

DAYS, SERVED = 4, 9
START_US = round(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000


class Market:
    """A bidder's writer, table writer and management; each day one user of that day sees an ad and clicks."""

    def __init__(self, paths):
        self.paths = paths
        self.writer = WriterState(paths, retain_days=DAYS, clock=SystemClock())
        self.backend = ManagementBackend(paths, paths.folder, SystemClock())
        self.tables = TableWriter(paths, retain_days=DAYS, clock=SystemClock())
        self.encrypt = TokenKeys.open(paths.token_keys).encrypt
        self.store = self.backend.store
        self.store.put_lists("v", {EVERYBODY: StoredList("v", 1, ("a1",), (0.0,))})
        self.store.switch("v")
        self.writer.maintain(START_US - US_PER_DAY)  # logs the live ads, so that no later call does

    def serve(self, day):
        now_us = START_US + day * US_PER_DAY
        user = user_of(day)
        self.store.put_lists("v", {user: StoredList("v", now_us, ("a1",), (0.0,))})
        caps = [Cap("c1", now_us // US_PER_DAY, 9)]
        self.store.reserve(user, caps, now_us=now_us, until_us=now_us + 60_000_000)
        token = make_token(now_us, 1, request_id=f"r-{user}", user_id=user)
        record = RequestRecord(request_id=f"r-{user}", at_us=now_us, user_id=user)
        events = [EventRequest(kind=kind, token=self.encrypt(token, kind), at_us=now_us) for kind in ("imp", "click")]
        self.writer.handle([AppendRequest([record]), *events], now_us)

    def maintain(self, day):
        """Run the periodic work of these processes."""
        now_us = START_US + day * US_PER_DAY
        self.writer.maintain(now_us)
        self.tables.flush()
        self.tables.retain(now_us)
        self.backend.retain(DAYS, now_us)

    def users(self):
        """The users named by each part of the state."""
        everyone = [user_of(day) for day in range(SERVED)]
        records = [entry.record for entry in event_log.read(self.paths.events)]
        frames = [pl.read_parquet(path) for path in self.paths.tables.rglob("*/*.parquet")]
        requests = {user: self.writer.handle([RecordRequest(f"r-{user}")], START_US)[0] for user in everyone}
        return {
            "requests in the log": {record.user_id for record in records if isinstance(record, RequestRecord)},
            "events in the log": {record.outcome.user_id for record in records if isinstance(record, EventRecord)},
            "tables": {user for frame in frames for user in frame["user_id"].to_list()},
            "explained": {user for user, reply in requests.items() if isinstance(reply, RecordReply) and reply.record},
            "lists": {user for user, _ in self.store.scan("v")} - {EVERYBODY},
            "profiles": {user for user in everyone if (profile := self.store.read_profile(user)) and profile.recent},
        }

    def named(self, day):
        """Whether a file, other than the compressed tables, has the bytes of a day's user ID."""
        files = [path for path in self.paths.folder.rglob("*") if path.is_file()]
        return any(user_of(day).encode() in path.read_bytes() for path in files)

    def close(self):
        self.writer.close()
        self.store.close()


def user_of(day):
    return f"user-of-day-{day:02d}"


@pytest.fixture
def market(tmp_path, campaign, ad):
    paths = StatePaths(folder=tmp_path / "state", store=f"lmdb:{tmp_path / 'state' / 'lists'}")
    records = ManageDatabase(paths.manage_database)
    CampaignStore(records).add([campaign()], [ad()])
    records.close()
    market = Market(paths)
    yield market
    market.close()


def test_users_older_than_the_retention_are_removed_everywhere_each_day(market):
    for day in range(SERVED):
        market.serve(day)
        market.maintain(day)
        kept = {user_of(kept_day) for kept_day in range(max(0, day - DAYS), day + 1)}
        assert market.users() == dict.fromkeys(market.users(), kept), f"day {day}"
    assert [market.named(day) for day in range(SERVED)] == [day >= SERVED - 1 - DAYS for day in range(SERVED)]
    assert market.store.read_list(EVERYBODY) is not None


def test_retention_needs_no_traffic_and_log_numbers_continue(market):
    market.serve(0)
    market.maintain(DAYS)
    assert market.named(0), "not before the retention ends"
    last = market.writer.log.last
    market.maintain(DAYS + 1)
    assert not any(market.users().values()) and not market.named(0)
    market.serve(DAYS + 2)
    assert market.writer.log.last == last + 3 == next(reversed(list(event_log.read(market.paths.events)))).number
