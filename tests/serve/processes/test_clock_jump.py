"""A machine's clock is set ahead and back while a bidder runs: nothing is forgotten, and nothing is charged twice."""

from __future__ import annotations

from contextlib import closing

import pytest

from leadre.clock import ManualClock
from leadre.serve.events import event_log
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import CountsRequest, EventRequest
from leadre.serve.paths import StatePaths
from leadre.serve.processes.writer_state import WriterState
from leadre.units import US_PER_DAY, US_PER_S

from ..conftest import make_token

START_US = 1_700_000_000 * US_PER_S


@pytest.fixture
def clock():
    return ManualClock(wall_us=START_US)


@pytest.fixture
def writer(tmp_path, manage_database, clock):
    folder = tmp_path / "state"
    with closing(
        WriterState(StatePaths(folder=folder, store=f"lmdb:{folder / 'lists'}"), retain_days=90, clock=clock)
    ) as state:
        yield state


def bill(writer, clock, token):
    (reply,) = writer.handle([EventRequest(kind="bill", token=token, at_us=clock.now_us(), price="2")], clock.now_us())
    return reply.outcome


def failing(writer, clock):
    (reply,) = writer.handle([CountsRequest()], clock.now_us())
    return list(reply.failing)


@pytest.mark.parametrize("days", [8, 99, -8])
def test_jump_forgets_nothing_and_is_reported_until_the_clock_is_right(writer, clock, tmp_path, days):
    token = TokenKeys.open(tmp_path / "state" / "token.keys").sign(make_token(START_US, 2_000_000))
    assert bill(writer, clock, token) == "new"
    count = writer.log.last
    clock.wall_us += days * US_PER_DAY
    for _ in range(4):
        clock.advance(1)
        writer.maintain(clock.now_us())
    assert failing(writer, clock) == ["clock"]
    clock.wall_us -= days * US_PER_DAY
    clock.advance(1)
    writer.maintain(clock.now_us())
    assert bill(writer, clock, token) == "known", "charged once"
    assert failing(writer, clock) == []
    assert [entry.number for entry in event_log.read(tmp_path / "state" / "events")] == list(range(1, count + 1))


def test_time_that_passes_lets_records_grow_old(writer, clock, tmp_path):
    token = TokenKeys.open(tmp_path / "state" / "token.keys").sign(make_token(START_US, 2_000_000))
    assert bill(writer, clock, token) == "new"
    clock.advance(99 * 86_400 + 59)
    writer.maintain(clock.now_us())
    assert list(event_log.read(tmp_path / "state" / "events")) == [] and failing(writer, clock) == []
