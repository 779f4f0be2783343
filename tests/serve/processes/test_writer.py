"""What the writer acknowledges is on the disk: log synced, books committed, in this order, before the answer."""

import asyncio
import os
import threading
import time
from contextlib import closing

import pytest

from leadre import database
from leadre.auction.budget import schema
from leadre.errors import StorageError
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.events import event_log
from leadre.serve.events.records import EventRecord, RequestRecord
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import AppendReply, AppendRequest, ErrorReply, EventReply, EventRequest
from leadre.serve.paths import StatePaths
from leadre.serve.processes.writer import Writer
from leadre.serve.processes.writer_state import WriterState

from ..conftest import make_token

NANOS = 1_500_000


@pytest.fixture
def paths(tmp_path, campaign, ad):
    made = StatePaths(folder=tmp_path / "state", store=f"lmdb:{tmp_path / 'state' / 'lists'}")
    records = ManageDatabase(made.book)
    CampaignStore(records).add([campaign(total_nanos=1 << 40)], [ad()])
    records.close()
    return made


def bill(paths):
    """The bill of a bid, as a worker hands it over."""
    now_us = time.time_ns() // 1000
    token = make_token(now_us, NANOS, may_profile=False)
    return EventRequest(kind="bill", token=TokenKeys.open(paths.keys).sign(token), at_us=now_us, price="1.5")


def booked(paths):
    with closing(database.connect(paths.ledger, schema.MIGRATIONS, read_only=True)) as books:
        return books.execute("SELECT ifnull(sum(charged_nanos), 0) FROM budgets").fetchone()[0]


def logged(paths):
    return [entry.record for entry in event_log.read(paths.events)]


def writer_of(paths, sync):
    """A writer whose log is pushed to the disk by ``sync``."""

    def make_desk():
        desk = WriterState(paths, retain_days=90)
        desk.tend(time.time_ns() // 1000)  # which says what is live
        desk.log._sync = sync
        return desk

    return Writer(make_desk)


def answered_by(paths, sync, ask):
    """What ``ask(writer)`` returns while the writer runs."""

    async def main():
        writer = writer_of(paths, sync)
        running = asyncio.create_task(writer.run())
        try:
            return await ask(writer)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    return asyncio.run(main())


def test_an_event_is_acknowledged_after_its_record_is_synced_and_its_charge_committed(paths):
    syncing, may_go_on = threading.Event(), threading.Event()

    def sync(file):
        syncing.set()
        assert may_go_on.wait(30)
        os.fsync(file)

    async def ask(writer):
        told = asyncio.create_task(writer.answer(bill(paths)))
        await asyncio.to_thread(syncing.wait, 30)
        await asyncio.sleep(0.2)
        assert not told.done() and booked(paths) == 0, "the disk has not said yet that it has it"
        may_go_on.set()
        assert await told == EventReply("new")
        return booked(paths), sum(isinstance(record, EventRecord) for record in logged(paths))

    assert answered_by(paths, sync, ask) == (NANOS, 1)


def test_a_request_is_acknowledged_after_its_record_is_synced(paths):
    synced = []

    def sync(file):
        os.fsync(file)
        synced.append(sum(isinstance(record, RequestRecord) for record in logged(paths)))

    async def ask(writer):
        assert await writer.answer(AppendRequest([RequestRecord(request_id="r", at_us=1)])) == AppendReply()
        return list(synced)

    assert answered_by(paths, sync, ask) == [1]


def test_what_could_not_be_synced_is_not_acknowledged_and_the_writer_ends(paths):
    """Nobody knows what the disk holds then: whoever starts the writer anew reads it, and books what is there."""

    def sync(file):
        raise OSError(5, "Input/output error")

    async def main():
        writer = writer_of(paths, sync)
        running = asyncio.create_task(writer.run())
        told = await writer.answer(bill(paths))
        with pytest.raises(StorageError, match="could not be synced"):
            await running
        return told

    assert isinstance(asyncio.run(main()), ErrorReply)
    with closing(WriterState(paths, retain_days=90)) as desk:
        charged = sum(each.outcome.charge_nanos for each in logged(paths) if isinstance(each, EventRecord))
        assert desk.ledger.verify() == [] and desk.ledger.spent("c1") == charged == booked(paths)
