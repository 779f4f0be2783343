"""Requests of the writer in batches: a batch is what arrived while the one before was written, within bounds."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from leadre.serve.ipc.messages import AppendRequest, WriterReply, WriterRequest

# The requests behind a batch wait for all of it, so it is bounded in number, and by its `AppendRequest`s in bytes: each
# of them has at most `MAX_BATCH_BYTES` of records.
MAX_REQUESTS = 256
MAX_APPENDS = 4
GATHER_S = 0.002  # a batch of any length costs two syncs of the disk, so it waits this long for further requests

Pending = tuple[WriterRequest, asyncio.Future[WriterReply]]


class Batches:
    """Queue of requests and of the futures for their replies, in the order of arrival; for one event loop."""

    def __init__(self) -> None:
        self._queue: deque[Pending] = deque()
        self._has_requests = asyncio.Event()
        self._is_idle = asyncio.Event()

    def add(self, request: WriterRequest) -> asyncio.Future[WriterReply]:
        """Queue a request. The future is for its reply."""
        future: asyncio.Future[WriterReply] = asyncio.get_running_loop().create_future()
        self._queue.append((request, future))
        self._is_idle.clear()
        self._has_requests.set()
        return future

    async def next_batch(self, wait_s: float) -> list[Pending]:
        """The oldest requests; none if none arrives within ``wait_s``. Those of the batch before have their replies."""
        if not self._queue:
            self._is_idle.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._has_requests.wait()
        if 0 < len(self._queue) < MAX_REQUESTS:
            await asyncio.sleep(GATHER_S)
        return self._take()

    async def idle(self) -> None:
        """Wait until every request has its reply."""
        await self._is_idle.wait()

    def _take(self) -> list[Pending]:
        batch: list[Pending] = []
        appends = 0
        while self._queue and len(batch) < MAX_REQUESTS:
            appends += isinstance(self._queue[0][0], AppendRequest)
            if appends > MAX_APPENDS:
                break
            batch.append(self._queue.popleft())
        if not self._queue:
            self._has_requests.clear()
        return batch
