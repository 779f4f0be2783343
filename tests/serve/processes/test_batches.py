"""Batches of the writer: in the order of arrival, bounded in number and in records."""

import asyncio

from leadre.serve.ipc.messages import AppendRequest, CountsRequest, RecordRequest
from leadre.serve.processes import batches
from leadre.serve.processes.batches import MAX_APPENDS, MAX_REQUESTS, Batches


def events(count):
    return [CountsRequest(number) for number in range(count)]


def drained(requests):
    """All batches of requests that arrived together."""

    async def main():
        queue = Batches()
        for request in requests:
            queue.add(request)
        drawn = []
        while batch := await queue.next_batch(0.0):
            drawn.append([request for request, _ in batch])
        await queue.idle()
        return drawn

    return asyncio.run(main())


def test_batches_have_the_order_of_arrival_and_a_bounded_number():
    requests = events(2 * MAX_REQUESTS + 3)
    drawn = drained(requests)
    assert [len(batch) for batch in drawn] == [MAX_REQUESTS, MAX_REQUESTS, 3]
    assert [request for batch in drawn for request in batch] == requests


def test_records_of_a_batch_are_bounded():
    """Each `AppendRequest` may have a megabyte of records; events do not wait for all of them."""
    requests = [RecordRequest("first"), *(AppendRequest([]) for _ in range(2 * MAX_APPENDS)), RecordRequest("last")]
    drawn = drained(requests)
    assert [request for batch in drawn for request in batch] == requests
    assert [sum(isinstance(request, AppendRequest) for request in batch) for batch in drawn] == [MAX_APPENDS] * 2


def test_requests_that_arrive_within_the_gathering_time_are_one_batch(monkeypatch):
    """A batch of any length has two syncs of the disk."""
    monkeypatch.setattr(batches, "GATHER_S", 0.5)

    async def main():
        queue = Batches()
        queue.add(CountsRequest(0))
        asyncio.get_running_loop().call_later(0.05, queue.add, CountsRequest(1))
        first = await queue.next_batch(60.0)
        queue.add(CountsRequest(2))
        return [len(first), len(await queue.next_batch(60.0)), len(await queue.next_batch(0.0))]

    assert asyncio.run(main()) == [2, 1, 0]


def test_queue_is_idle_when_the_last_batch_has_its_replies():
    async def main():
        queue = Batches()
        queue.add(CountsRequest())
        idle = asyncio.create_task(queue.idle())
        await queue.next_batch(60.0)
        assert not idle.done(), "the batch is still handled"
        await queue.next_batch(0.0)
        await idle

    asyncio.run(main())
