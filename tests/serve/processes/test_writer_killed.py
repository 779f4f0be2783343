"""SIGKILL of the writer at each step of a batch: what it acknowledged is booked, what is sent again is booked once."""

import asyncio
import itertools
import multiprocessing
import os
import signal
from collections import Counter
from contextlib import closing

import pytest

from leadre.auction.budget.ledger import Ledger
from leadre.clock import SystemClock
from leadre.errors import PeerError
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.events import event_log
from leadre.serve.events.records import EventRecord
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import EventReply, EventRequest, WriterReply
from leadre.serve.ipc.socket import Client
from leadre.serve.paths import StatePaths
from leadre.serve.plan import Plan, Timing
from leadre.serve.processes import roles
from leadre.serve.processes.writer_state import WriterState
from leadre.serve.settings import Settings

from ..conftest import make_ad, make_campaign, make_token

NANOS = 1_500_000
WAVES = 8
EVENTS = 25  # of a wave: several share a batch
GENEROUS_S = 60.0  # guards against a hang


def run_dying_writer(plan, step, count):
    """Run the writer until the ``count``-th time that it comes to ``step`` of a batch of events."""
    calls = itertools.count(1)

    def die():
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(function):
        def call(*values):
            die()
            return function(*values)

        return call

    def after(function):
        def call(*values):
            result = function(*values)
            if values[0]:  # records or reports
                die()
            return result

        return call

    def break_state(state, *values, **options):
        open_state(state, *values, **options)
        posting = state._posting
        if step == "written":
            state.log._sync = before(state.log._sync)
        elif step == "synced":
            state.log.append = after(state.log.append)
        elif step == "committed":
            posting._processor.process = after(posting._processor.process)
        else:
            assert step == "read"
            posting.post_batch = before(posting.post_batch)

    open_state = WriterState.__init__
    WriterState.__init__ = break_state
    roles.run_writer(plan)


def started(target, *values):
    process = multiprocessing.get_context("spawn").Process(target=target, args=values)
    process.start()
    return process


async def sent(client, events):
    """The outcome of each event; "" if it was not acknowledged."""

    async def send(event):
        try:
            reply = await client.request(event, timeout_s=GENEROUS_S)
        except PeerError:
            return ""
        return reply.outcome if isinstance(reply, EventReply) else ""

    return await asyncio.gather(*map(send, events))


@pytest.fixture
def plan(tmp_path):
    paths = StatePaths(folder=tmp_path / "state", store=f"lmdb:{tmp_path / 'state' / 'lists'}")
    with closing(ManageDatabase(paths.manage_database)) as catalogue:
        CampaignStore(catalogue).add([make_campaign(total_nanos=1 << 40)], [make_ad()])
    return Plan(
        paths=paths,
        settings=Settings(public_url="https://ads.test"),
        host="127.0.0.1",
        port=0,
        manage_port=0,
        workers=0,
        timing=Timing(),
        tables=paths.tables,
        codebook=paths.folder,
        model=None,
        beam=1,
        retain_days=90,
    )


async def sent_in_waves(path, waves):
    """The outcome of each event of all waves, which are sent one after the other."""
    client = Client(path, WriterReply)
    while (await sent(client, waves[0][:1])) == [""]:  # the writer starts
        await asyncio.sleep(0.05)
    outcomes = [outcome for wave in waves for outcome in await sent(client, wave)]
    await client.close()
    return outcomes


@pytest.mark.parametrize("step", ["read", "written", "synced", "committed"])
def test_acknowledged_event_is_booked_and_one_sent_again_is_booked_once(plan, step):
    paths = plan.paths
    keys = TokenKeys.open(paths.token_keys)
    now_us = SystemClock().now_us()
    tokens = [keys.encrypt(make_token(now_us, NANOS), "bill") for _ in range(WAVES * EVENTS)]
    bills = [EventRequest(kind="bill", token=token, at_us=now_us, price_nanos=1_500_000) for token in tokens]
    dying = started(run_dying_writer, plan, step, 5)
    waves = [bills[start : start + EVENTS] for start in range(0, len(bills), EVENTS)]
    first = asyncio.run(sent_in_waves(paths.writer_socket, waves))
    dying.join(GENEROUS_S)
    assert dying.exitcode == -signal.SIGKILL
    assert first.count("") and first.count("new"), "the kill came while events were sent"
    writer = started(roles.run_writer, plan)
    again = asyncio.run(sent_in_waves(paths.writer_socket, [bills]))
    writer.terminate()
    writer.join(GENEROUS_S)
    assert all(later == "known" for earlier, later in zip(first, again, strict=True) if earlier), "booked already"
    assert set(again) <= {"new", "known"}
    records = [entry.record for entry in event_log.read(paths.events)]
    logged = Counter(record.key for record in records if isinstance(record, EventRecord))
    assert set(logged.values()) == {1} and len(logged) == len(bills)
    with closing(Ledger(paths.ledger)) as ledger:
        assert ledger.verify() == [] and ledger.spent("c1") == len(bills) * NANOS
        assert ledger.connection.execute("SELECT count(*) FROM entries").fetchone() == (len(bills),)
