"""The writer: the one process that writes money and events, so that nothing it acknowledges can be lost.

Requests that arrive while the disk is busy form a batch: one log sync, one ledger commit, then all their replies. If
the disk refuses, every request of the batch gets an `ErrorReply`, and its sender repeats it. If a batch fails for any
other reason, its requests are handled one by one: those that fail alone are refused for good and set aside in
``refused.jsonl``, and the others are handled.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from leadre.background import TaskHealth
from leadre.clock import Clock
from leadre.database import DISK_ERRORS
from leadre.errors import FaultError, LeadreError, RefusedError, StorageError
from leadre.serve.ipc.messages import AppendReply, AppendRequest, ErrorReply, WriterReply, WriterRequest
from leadre.serve.processes.batches import Batches
from leadre.serve.processes.disk_reports import DiskReports
from leadre.serve.processes.writer_state import WriterState

MAINTAIN_S = 0.2  # between two calls of `WriterState.maintain`
Reply = WriterReply | LeadreError  # an error fails the request for good


class Writer:
    """Handles requests of `leadre.serve.ipc.messages` in batches while `run` runs.

    ``open_state`` is called in the thread that writes; ``has_state``: it has returned.
    """

    def __init__(self, open_state: Callable[[], WriterState], clock: Clock) -> None:
        self._open_state = open_state
        self.has_state = False
        self._clock = clock
        self._maintain_at_s = 0.0  # monotonic time
        self._queue = Batches()
        self._disk = DiskReports("the writer", clock)
        self._batches = TaskHealth("batches of the writer", clock, DISK_ERRORS)
        self._loop = TaskHealth("the writer", clock, (StorageError,))

    def handle(self, request: WriterRequest) -> asyncio.Future[WriterReply]:
        """The reply to a request, after its data is durable. RefusedError if the request itself cannot be handled."""
        return self._queue.add(request)

    async def run(self) -> None:
        """Handle batch after batch until cancelled, in a thread, so that requests arrive meanwhile.

        StorageError if the log is damaged, or failed in a way that only opening it again repairs.
        """
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="leadre-writer") as thread:

            def in_thread(call: Callable[..., Any], *values: Any) -> Awaitable[Any]:
                return loop.run_in_executor(thread, call, *values)

            state = await loop.run_in_executor(thread, self._open_state)
            self.has_state = True
            gc.collect()
            gc.freeze()  # catalogue and counts stay: a later collection, for which all requests wait, skips them
            try:
                while True:
                    with contextlib.suppress(FaultError):
                        await self._loop.attempt_async(lambda: self._run_batch(in_thread, state))
                    await asyncio.sleep(self._loop.delay_s(0.0))
            finally:
                await loop.run_in_executor(thread, state.close)

    async def drain(self) -> None:
        """Wait until every request has its reply."""
        await self._queue.idle()

    async def _run_batch(self, in_thread: Callable[..., Awaitable[Any]], state: WriterState) -> None:
        """Handle the next batch, if any arrives within `MAINTAIN_S`, then do what is due."""
        batch = await self._queue.next_batch(MAINTAIN_S)
        replies: list[Reply] = []
        why = "the writer failed; send the request again"
        last = state.log.last
        try:
            if batch:
                await in_thread(self._handle_batch, state, [request for request, _ in batch], replies)
            if self._clock.monotonic_s() >= self._maintain_at_s:
                self._maintain_at_s = self._clock.monotonic_s() + MAINTAIN_S
                await in_thread(state.maintain, state.clock.now_us())
        except DISK_ERRORS as error:
            why = str(error)
            self._disk.refused(why)
        else:
            if state.log.last > last:
                self._disk.accepted()
        finally:
            replies += [ErrorReply(why)] * (len(batch) - len(replies))
            for (_, future), reply in zip(batch, replies, strict=True):
                _reply(future, reply)
        if state.log.fault:
            raise StorageError(state.log.fault)  # the supervisor starts a new writer, which opens the log again

    def _handle_batch(self, state: WriterState, requests: Sequence[WriterRequest], replies: list[Reply]) -> None:
        """Add the replies to ``replies``; after an error of the disk, those to the requests that were handled."""
        now_us = state.clock.now_us()
        try:
            replies += self._batches.attempt(lambda: state.handle(requests, now_us))
        except FaultError as error:
            if len(requests) > 1:
                for request in requests:
                    self._handle_batch(state, [request], replies)
            else:
                replies.append(self._handle_parts(state, requests[0], error))

    def _handle_parts(self, state: WriterState, request: WriterRequest, error: FaultError) -> Reply:
        """Set a request aside that fails alone. The records of an `AppendRequest` are appended one by one."""
        if isinstance(request, AppendRequest) and len(request.records) > 1:
            for record in request.records:
                self._handle_batch(state, [AppendRequest([record])], [])
            return AppendReply()
        state.set_aside(request, str(error), state.clock.now_us())
        return RefusedError(str(error))


def _reply(future: asyncio.Future[WriterReply], reply: Reply) -> None:
    if future.done():  # its client has gone
        return
    if isinstance(reply, LeadreError):
        future.set_exception(reply)
    else:
        future.set_result(reply)
