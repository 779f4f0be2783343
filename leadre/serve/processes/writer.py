"""The writer: the one process that writes money and events, so that nothing it acknowledges can be lost.

Requests that arrive while the disk is busy form a batch: one ledger commit, one log sync, then all their replies. If
the disk refuses, every request of the batch gets an `ErrorReply`, and its sender repeats it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from leadre import progress
from leadre.clock import Clock
from leadre.errors import StorageError
from leadre.serve.ipc.messages import ErrorReply, WriterReply, WriterRequest
from leadre.serve.processes.writer_state import WriterState

MAINTAIN_S = 0.2  # longest time between two calls of `WriterState.maintain`


class Writer:
    """Handles requests of `leadre.serve.ipc.messages` in batches while `run` runs.

    ``open_state`` is called in the thread that writes; ``has_state``: it has returned.
    """

    def __init__(self, open_state: Callable[[], WriterState], clock: Clock) -> None:
        self._open_state = open_state
        self.has_state = False
        self._clock = clock
        self._pending: list[tuple[WriterRequest, asyncio.Future[WriterReply]]] = []
        self._has_requests = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._fault = ""  # the last refusal of the disk; "" while it accepts

    async def handle(self, request: WriterRequest) -> WriterReply:
        """The reply to a request, after its data is durable."""
        future: asyncio.Future[WriterReply] = asyncio.get_running_loop().create_future()
        self._pending.append((request, future))
        self._is_idle.clear()
        self._has_requests.set()
        return await future

    async def run(self) -> None:
        """Handle batch after batch until cancelled, in a thread, so that requests arrive meanwhile.

        StorageError if the log is damaged, or failed in a way that only opening it again repairs.
        """
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="leadre-writer") as thread:
            state = await loop.run_in_executor(thread, self._open_state)
            self.has_state = True
            try:
                while True:
                    await self._run_batch(lambda call, *values: loop.run_in_executor(thread, call, *values), state)
            finally:
                await loop.run_in_executor(thread, state.close)

    async def drain(self) -> None:
        """Wait until every request has its reply."""
        await self._is_idle.wait()

    async def _run_batch(self, in_thread: Callable[..., Awaitable[Any]], state: WriterState) -> None:
        """Handle the requests that arrive within `MAINTAIN_S`, if any, then do what is due."""
        if not self._pending:
            self._is_idle.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._has_requests.wait(), MAINTAIN_S)
        self._has_requests.clear()
        batch = self._pending
        self._pending = []
        replies: list[WriterReply] = []
        try:
            if batch:
                replies = await in_thread(state.handle, [request for request, _ in batch], self._clock.now_us())
            await in_thread(state.maintain, self._clock.now_us())
            self._report_fault("")
        except (StorageError, sqlite3.OperationalError) as error:
            replies += [ErrorReply(str(error))] * (len(batch) - len(replies))
            self._report_fault(str(error))
        for (_, future), reply in zip(batch, replies, strict=True):
            if not future.done():
                future.set_result(reply)
        if state.log.fault:
            raise StorageError(state.log.fault)  # the supervisor starts a new writer, which opens the log again

    def _report_fault(self, fault: str) -> None:
        """Report once when the disk starts to refuse, and once when it accepts again."""
        if bool(fault) != bool(self._fault):
            with contextlib.suppress(OSError):  # the report itself may be written to the same disk
                progress.say(f"serve: the writer waits for its disk: {fault}" if fault else "serve: it writes again")
        self._fault = fault
