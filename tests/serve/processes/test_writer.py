"""The writer acknowledges durable data alone: log synced, then ledger committed, then the reply."""

import asyncio
import json
import os
import sqlite3
import threading
from contextlib import closing

import msgspec
import pytest

from leadre import database, telemetry
from leadre.auction.budget import schema
from leadre.background import REPORT_S
from leadre.clock import ManualClock, SystemClock
from leadre.errors import RefusedError, StorageError
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.events import event_log
from leadre.serve.events.log_writer import EventLog
from leadre.serve.events.records import EventRecord, RequestRecord, StatusRecord
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import AppendReply, AppendRequest, ErrorReply, EventReply, EventRequest
from leadre.serve.paths import StatePaths
from leadre.serve.processes.disk_reports import DiskReports
from leadre.serve.processes.table_writer import TableWriter
from leadre.serve.processes.writer import Writer
from leadre.serve.processes.writer_state import WriterState

from ..conftest import make_token

NANOS = 1_500_000
CLOCK = SystemClock()
GENEROUS_S = 60.0  # guards against a hang


@pytest.fixture
def paths(tmp_path, campaign, ad):
    paths = StatePaths(folder=tmp_path / "state", store=f"lmdb:{tmp_path / 'state' / 'lists'}")
    database = ManageDatabase(paths.manage_database)
    CampaignStore(database).add([campaign(total_nanos=1 << 40)], [ad()])
    database.close()
    return paths


def bill(paths):
    """The bill of a bid, as a worker sends it."""
    now_us = CLOCK.now_us()
    token = make_token(now_us, NANOS, may_profile=False)
    return EventRequest(
        kind="bill", token=TokenKeys.open(paths.token_keys).encrypt(token, "bill"), at_us=now_us, price_nanos=1_500_000
    )


def charged_nanos(paths):
    """Committed charges of all campaigns."""
    with closing(database.connect(paths.ledger, schema.MIGRATIONS, read_only=True)) as connection:
        return connection.execute("SELECT ifnull(sum(charged_nanos), 0) FROM budgets").fetchone()[0]


def logged(paths):
    return [entry.record for entry in event_log.read(paths.events)]


def writer_with(paths, sync):
    """A writer whose log calls ``sync(file)`` instead of `os.fsync`."""

    def open_state():
        state = WriterState(paths, retain_days=90, clock=CLOCK)
        state.maintain(CLOCK.now_us())  # logs which ads are live, before the test counts syncs
        state.log._sync = sync
        return state

    return Writer(open_state, CLOCK)


def run_with_writer(paths, sync, scenario):
    """The result of ``scenario(writer)``, which runs while the writer does."""

    async def main():
        writer = writer_with(paths, sync)
        running = asyncio.create_task(writer.run())
        try:
            return await scenario(writer)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    return asyncio.run(main())


def test_event_is_acknowledged_after_its_record_is_synced_and_its_charge_committed(paths):
    is_syncing = threading.Event()
    may_finish = threading.Event()

    def sync(file):
        is_syncing.set()
        assert may_finish.wait(GENEROUS_S)
        os.fsync(file)

    async def scenario(writer):
        reply = writer.handle(bill(paths))
        assert await asyncio.to_thread(is_syncing.wait, GENEROUS_S)
        await asyncio.sleep(0.2)
        assert not reply.done() and charged_nanos(paths) == 0, "the disk has not confirmed the record yet"
        may_finish.set()
        assert await reply == EventReply("new")
        return charged_nanos(paths), sum(isinstance(record, EventRecord) for record in logged(paths))

    assert run_with_writer(paths, sync, scenario) == (NANOS, 1)


def test_request_record_is_acknowledged_after_it_is_synced(paths):
    records_at_sync = []

    def sync(file):
        os.fsync(file)
        records_at_sync.append(sum(isinstance(record, RequestRecord) for record in logged(paths)))

    async def scenario(writer):
        assert await writer.handle(AppendRequest([RequestRecord(request_id="r", at_us=1)])) == AppendReply()
        return list(records_at_sync)

    assert run_with_writer(paths, sync, scenario) == [1]


def test_writer_ends_without_acknowledging_a_record_that_was_not_synced(paths):
    """After a failed sync the content of the disk is unknown: the next writer reads the log and posts its events."""

    def sync(file):
        raise OSError(5, "Input/output error")

    async def main():
        writer = writer_with(paths, sync)
        running = asyncio.create_task(writer.run())
        reply = await writer.handle(bill(paths))
        with pytest.raises(StorageError, match="could not be synced"):
            await running
        return reply

    assert isinstance(asyncio.run(main()), ErrorReply)
    with closing(WriterState(paths, retain_days=90, clock=CLOCK)) as state:
        charges = [record.outcome.charge_nanos for record in logged(paths) if isinstance(record, EventRecord)]
        assert state.ledger.verify() == []
        assert state.ledger.spent("c1") == sum(charges) == charged_nanos(paths)


def test_request_that_fails_alone_is_set_aside_and_the_others_of_its_batch_are_handled(paths):
    """No error of a request ends the writer: it would restart, get the same request again, and end again."""

    def break_state(state):
        append = state._derived.append
        post = state._posting.post_batch

        def append_unless_bad(records, now_us):
            assert not any(record.request_id == "bad" for record in records if isinstance(record, RequestRecord))
            append(records, now_us)

        def post_unless_bad(requests, now_us, certain_us):
            if any(isinstance(request, EventRequest) and request.price_nanos == 7 for request in requests):
                raise sqlite3.IntegrityError("cannot store REAL value in INTEGER column")
            return post(requests, now_us, certain_us)

        state._derived.append = append_unless_bad
        state._posting.post_batch = post_unless_bad

    async def scenario(writer):
        good = bill(paths)
        bad = msgspec.structs.replace(bill(paths), price_nanos=7)
        records = [RequestRecord(request_id=name, at_us=1, user_id="u1") for name in ("r1", "bad", "r2")]
        requests = [bad, good, AppendRequest(records)]
        return await asyncio.gather(*map(writer.handle, requests), return_exceptions=True)

    async def main():
        def open_state():
            state = WriterState(paths, retain_days=90, clock=CLOCK)
            break_state(state)
            return state

        writer = Writer(open_state, CLOCK)
        running = asyncio.create_task(writer.run())
        replies = await scenario(writer)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return replies

    refused, event, append = asyncio.run(main())
    assert isinstance(refused, RefusedError) and "IntegrityError" in str(refused)
    assert (event, append) == (EventReply("new"), AppendReply())
    assert charged_nanos(paths) == NANOS
    ids = [record.request_id for record in logged(paths) if isinstance(record, RequestRecord)]
    assert ids == ["r1", "r2"]
    lines = [json.loads(line) for line in paths.refused.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["EventRequest", "AppendRequest"]
    assert lines[0]["request"]["terms"]["campaign_id"] == "c1" and "u1" not in paths.refused.read_text()
    assert "IntegrityError" in lines[0]["why"] and "AssertionError" in lines[1]["why"]


def test_maintenance_that_fails_is_reported_and_requests_are_still_handled(paths):
    async def main():
        def open_state():
            state = WriterState(paths, retain_days=90, clock=CLOCK)
            state._derived.save = lambda: 1 // 0
            return state

        writer = Writer(open_state, CLOCK)
        running = asyncio.create_task(writer.run())
        reply = await writer.handle(bill(paths))
        running.cancel()
        ended = await asyncio.gather(running, return_exceptions=True)
        return reply, ended

    before = telemetry.TASK_FAILURES.labels("snapshot of counts")._value.get()
    reply, _ = asyncio.run(main())
    assert reply == EventReply("new")
    assert telemetry.TASK_FAILURES.labels("snapshot of counts")._value.get() > before


def test_disk_that_refuses_is_reported_once_a_minute_until_a_write_succeeds(capsys):
    clock = ManualClock()
    disk = DiskReports("the writer", clock)
    disk.accepted()
    for _ in range(3):
        disk.refused("full")
        clock.advance(1.0)
    disk.accepted()
    disk.accepted()
    disk.refused("full again")  # within the minute
    disk.accepted()
    clock.advance(REPORT_S)
    disk.refused("full for long")
    lines = [line.removeprefix("serve: the writer ") for line in capsys.readouterr().err.splitlines()]
    assert lines == ["waits for its disk: full", "goes on", "waits for its disk: full for long"]


def test_table_writer_reports_a_damaged_file_once_and_that_it_writes_again(paths, capsys):
    clock = ManualClock(wall_us=CLOCK.now_us())
    tables = TableWriter(paths, retain_days=90, clock=clock)
    stopped = threading.Event()
    stopped.set()  # a run is the last flush alone

    def flush_change():
        with closing(EventLog(paths.events)) as log:
            log.append([StatusRecord(at_us=log.last + 1, ad_id="a1", is_live=log.last % 2 == 0)], clock.wall_us)
        tables.run(stopped)

    flush_change()
    path = paths.tables / "inventory.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    for _ in range(3):
        flush_change()
    path.write_bytes(whole)
    flush_change()
    refusal, recovery = capsys.readouterr().err.splitlines()
    assert f"the table writer waits for its disk: {path}: damaged (its checksum differs)" in refusal
    assert f"delete {paths.tables}: the next start writes the tables again" in refusal
    assert "the table writer goes on" in recovery
