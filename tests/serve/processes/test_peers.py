"""The queues of records and clicks for the writer: cut by bytes, kept until acknowledged; each loss is counted."""

import asyncio

import msgspec
import pytest

from leadre import telemetry
from leadre.errors import PeerError, RefusedError
from leadre.serve.events.records import RequestRecord
from leadre.serve.ipc.connection import MAX_FRAME_BYTES
from leadre.serve.ipc.messages import MAX_BATCH_BYTES, AppendReply, AppendRequest, EventReply, EventRequest
from leadre.serve.processes import peers
from leadre.serve.processes.peers import ClickQueue, RecordQueue


class Receiver:
    """A writer that keeps the records of the requests that it accepts."""

    def __init__(self, bad=()):
        self.bad = set(bad)
        self.is_away = False
        self.sizes = []
        self.records = []

    async def request(self, request):
        if self.is_away:
            raise PeerError("away")
        packed = msgspec.msgpack.encode(request)
        records = msgspec.msgpack.decode(packed, type=AppendRequest).records
        if self.bad & {record.request_id for record in records}:
            raise RefusedError("bad")
        self.sizes.append(len(packed))
        self.records += [record.request_id for record in records]
        return AppendReply()


def record(name, size=100):
    return RequestRecord(request_id=str(name), at_us=1, request={"page": "x" * size})


def dropped(reason):
    return telemetry.RECORDS_DROPPED.labels(reason)._value.get()


def test_large_records_are_sent_in_batches_cut_by_bytes():
    receiver = Receiver()
    queue = RecordQueue(receiver)
    for number in range(480):
        queue.add(record(number, 44_000))
    receiver.is_away = True
    with pytest.raises(PeerError):
        asyncio.run(queue.flush())
    assert len(queue) == 480
    receiver.is_away = False
    asyncio.run(queue.flush())
    assert receiver.records == [str(number) for number in range(480)] and len(queue) == 0
    assert max(receiver.sizes) <= MAX_BATCH_BYTES + 100 < MAX_FRAME_BYTES


def test_full_queue_drops_new_records_and_counts_them(monkeypatch):
    monkeypatch.setattr(peers, "MAX_QUEUED_RECORDS", 3)
    before = dropped("queue full")
    queue = RecordQueue(Receiver())
    for number in range(5):
        queue.add(record(number))
    assert len(queue) == 3 and dropped("queue full") - before == 2
    monkeypatch.setattr(peers, "MAX_QUEUED_RECORDS", 100)
    monkeypatch.setattr(peers, "MAX_QUEUED_BYTES", 5_000)
    queue.add(record("large", 6_000))
    assert len(queue) == 3 and dropped("queue full") - before == 3


def test_record_that_the_writer_refuses_is_dropped_alone_and_counted():
    receiver = Receiver(bad={"3"})
    before = dropped("refused")
    queue = RecordQueue(receiver)
    for number in range(10):
        queue.add(record(number))
    asyncio.run(queue.flush())
    assert receiver.records == [str(number) for number in range(10) if number != 3]
    assert dropped("refused") - before == 1 and len(queue) == 0


class Poster:
    """A writer that takes clicks unless it is away for them, and refuses those of ``bad`` tokens."""

    def __init__(self, away=(), bad=()):
        self.away = set(away)
        self.bad = set(bad)
        self.tokens = []

    async def request(self, click):
        if click.token in self.away:
            raise PeerError("away")
        if click.token in self.bad:
            raise RefusedError("bad")
        self.tokens.append(click.token)
        return EventReply("new")


def test_click_is_queued_until_the_writer_takes_or_refuses_it(monkeypatch):
    monkeypatch.setattr(peers, "MAX_QUEUED_CLICKS", 4)
    poster = Poster(away={"2"}, bad={"3"})
    before = dropped("click queue full")
    queue = ClickQueue(poster)
    for token in ("1", "1", "2", "3", "4", "5"):
        queue.add(EventRequest(kind="click", token=token, at_us=1))
    assert len(queue) == 4 and dropped("click queue full") - before == 1
    with pytest.raises(PeerError, match="away"):
        asyncio.run(queue.flush())
    assert poster.tokens == ["1", "4"] and len(queue) == 1
    poster.away.clear()
    asyncio.run(queue.flush())
    assert poster.tokens == ["1", "4", "2"] and len(queue) == 0
