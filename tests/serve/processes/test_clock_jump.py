"""A machine's clock is set ahead and back while a bidder runs: nothing is forgotten, and nothing is charged twice."""

from __future__ import annotations

from contextlib import closing

import pytest

from leadre.auction.budget.messages import LeaseRequest
from leadre.clock import ManualClock
from leadre.serve.events import event_log
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import ConfirmClockRequest, EventRequest
from leadre.serve.paths import StatePaths
from leadre.serve.processes.table_writer import TableWriter
from leadre.serve.processes.writer_state import WriterState
from leadre.units import US_PER_DAY, US_PER_S

from ..conftest import make_token

START_US = 1_700_000_000 * US_PER_S


@pytest.fixture
def clock():
    return ManualClock(wall_us=START_US)


@pytest.fixture
def writer(tmp_path, manage_database, clock):
    with closing(opened(tmp_path, clock)) as state:
        yield state


@pytest.fixture
def tables(writer, tmp_path, clock):
    return TableWriter(paths_in(tmp_path), retain_days=90, clock=clock)


def paths_in(tmp_path):
    folder = tmp_path / "state"
    return StatePaths(folder=folder, store=f"lmdb:{folder / 'lists'}")


def opened(tmp_path, clock):
    return WriterState(paths_in(tmp_path), retain_days=90, clock=clock)


def bill(writer, clock, token):
    (reply,) = writer.handle(
        [EventRequest(kind="bill", token=token, at_us=clock.now_us(), price_nanos=2_000_000)], clock.now_us()
    )
    return reply.outcome


@pytest.mark.parametrize("days", [8, 99, -8])
def test_jump_forgets_nothing_and_is_reported_until_the_clock_is_right(writer, tables, clock, tmp_path, days):
    token = TokenKeys.open(tmp_path / "state" / "token.keys").encrypt(make_token(START_US, 2_000_000), "bill")
    assert bill(writer, clock, token) == "new"
    count = writer.log.last
    clock.wall_us += days * US_PER_DAY
    for _ in range(4):
        clock.advance(1)
        writer.maintain(writer.clock.now_us())
        tables.retain(clock.now_us())
    assert writer.clock.state().doubt == "jump"
    clock.wall_us -= days * US_PER_DAY
    clock.advance(1)
    writer.maintain(clock.now_us())
    assert bill(writer, clock, token) == "known", "charged once"
    assert writer.clock.doubt() == ""
    assert [entry.number for entry in event_log.read(tmp_path / "state" / "events")] == list(range(1, count + 1))


def test_time_that_passes_lets_records_grow_old(writer, tables, clock, tmp_path):
    token = TokenKeys.open(tmp_path / "state" / "token.keys").encrypt(make_token(START_US, 2_000_000), "bill")
    assert bill(writer, clock, token) == "new"
    clock.advance(99 * 86_400 + 59)
    writer.maintain(clock.now_us())
    tables.retain(clock.now_us())
    assert list(event_log.read(tmp_path / "state" / "events")) == [] and writer.clock.doubt() == ""


def test_gap_expires_leases_of_its_own_time_alone(tmp_path, manage_database, campaign_store, campaign, clock):
    """Reservations of bids before the gap wait for its confirmation; those of later bids return as always."""
    campaign_store.put_campaign(campaign(total_nanos=10**9))
    request = LeaseRequest(worker="w", campaign_id="c1", max_nanos=1000)
    with closing(opened(tmp_path, clock)) as writer:
        writer.maintain(clock.now_us())
        writer.ledger.apply([request], clock.now_us())
    clock.boot = "another"
    clock.wall_us += 3 * US_PER_DAY
    with closing(opened(tmp_path, clock)) as writer:
        writer.ledger.apply([request], clock.now_us())
        clock.advance(3600)
        writer.maintain(clock.now_us())
        assert writer.ledger.reserved("c1") == 1000
        writer.handle([ConfirmClockRequest("Ada")], clock.now_us())
        writer.maintain(clock.now_us())
        assert writer.ledger.reserved("c1") == 0


def test_clock_that_is_set_back_does_not_stop_the_periodic_work(writer, clock, tmp_path):
    keys = TokenKeys.open(tmp_path / "state" / "token.keys")
    counts = tmp_path / "state" / "counts"

    def counts_after_a_bill():
        assert bill(writer, clock, keys.encrypt(make_token(clock.now_us(), 2_000_000), "bill")) == "new"
        clock.advance(1)
        writer.maintain(clock.now_us())
        return counts.read_bytes()

    before = counts_after_a_bill()
    clock.wall_us -= 8 * US_PER_DAY
    writer.clock.confirm("Ada")
    assert counts_after_a_bill() != before
