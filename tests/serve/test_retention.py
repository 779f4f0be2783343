"""Retention by a clock of its own: what names a user is gone after its days, and nothing younger is."""

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
from leadre.serve.processes.writer_state import WriterState
from leadre.store.contract import EVERYBODY, Cap, StoredList
from leadre.units import US_PER_DAY

from .conftest import make_token

DAYS, SERVED = 4, 9
START_US = round(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000


class Market:
    """A bidder's writer and its management; on each day one user, of that day, browses and clicks."""

    def __init__(self, paths):
        self.paths, self.desk, self.office = (
            paths,
            WriterState(paths, retain_days=DAYS),
            ManagementBackend(paths, paths.folder, SystemClock()),
        )
        self.sign = TokenKeys.open(paths.token_keys).sign
        self.store = self.office.store
        self.store.put_lists("v", {EVERYBODY: StoredList("v", 1, ("a1",), (0.0,))})
        self.store.switch("v")
        self.desk.maintain(START_US - US_PER_DAY)  # which notes what is live, and writes nothing later on

    def serve(self, day):
        now_us, user = START_US + day * US_PER_DAY, user_of(day)
        self.store.put_lists("v", {user: StoredList("v", now_us, ("a1",), (0.0,))})
        caps = [Cap("c1", now_us // US_PER_DAY, 9)]
        self.store.reserve(user, caps, now_us=now_us, until_us=now_us + 60_000_000)
        token = self.sign(make_token(now_us, 1, request_id=f"r-{user}", user_id=user))
        answered = RequestRecord(request_id=f"r-{user}", at_us=now_us, user_id=user)
        events = [EventRequest(kind=kind, token=token, at_us=now_us) for kind in ("imp", "click")]
        self.desk.handle([AppendRequest([answered]), *events], now_us)

    def tend(self, day):
        """What the processes do by themselves a few times a day."""
        now_us = START_US + day * US_PER_DAY
        self.desk.maintain(now_us)
        self.office.retain(DAYS, now_us)

    def users(self):
        """Whoever is named, by place."""
        everyone = [user_of(day) for day in range(SERVED)]
        records = [entry.record for entry in event_log.read(self.paths.events)]
        frames = [pl.read_parquet(path) for path in self.paths.tables.rglob("*/*.parquet")]
        requests = {user: self.desk.handle([RecordRequest(f"r-{user}")], START_US)[0] for user in everyone}
        return {
            "requests in the log": {each.user_id for each in records if isinstance(each, RequestRecord)},
            "events in the log": {each.outcome.user_id for each in records if isinstance(each, EventRecord)},
            "tables": {user for frame in frames for user in frame["user_id"].to_list()},
            "explained": {user for user, found in requests.items() if isinstance(found, RecordReply) and found.record},
            "lists": {user for user, _ in self.store.scan("v")} - {EVERYBODY},
            "profiles": {user for user in everyone if (found := self.store.read_profile(user)) and found.recent},
        }

    def named(self, day):
        """Whether any file but the compressed tables has the bytes of a day's user."""
        files = [path for path in self.paths.folder.rglob("*") if path.is_file()]
        return any(user_of(day).encode() in path.read_bytes() for path in files)

    def close(self):
        self.desk.close()
        self.store.close()


def user_of(day):
    return f"user-of-day-{day:02d}"


@pytest.fixture
def market(tmp_path, campaign, ad):
    paths = StatePaths(folder=tmp_path / "state", store=f"lmdb:{tmp_path / 'state' / 'lists'}")
    records = ManageDatabase(paths.manage_database)
    CampaignStore(records).add([campaign()], [ad()])
    records.close()
    made = Market(paths)
    yield made
    made.close()


def test_each_day_ends_what_is_too_old_everywhere_and_nothing_younger(market):
    for day in range(SERVED):
        market.serve(day)
        market.tend(day)
        kept = {user_of(each) for each in range(max(0, day - DAYS), day + 1)}
        assert market.users() == dict.fromkeys(market.users(), kept), f"day {day}"
    assert [market.named(day) for day in range(SERVED)] == [day >= SERVED - 1 - DAYS for day in range(SERVED)]
    assert market.store.read_list(EVERYBODY) is not None


def test_it_ends_also_when_nobody_comes_any_more_and_the_numbers_of_the_log_go_on(market):
    market.serve(0)
    market.tend(DAYS)
    assert market.named(0), "not before its days"
    last = market.desk.log.last
    market.tend(DAYS + 1)
    assert not any(market.users().values()) and not market.named(0)
    market.serve(DAYS + 2)
    assert market.desk.log.last == last + 3 == next(reversed(list(event_log.read(market.paths.events)))).number
