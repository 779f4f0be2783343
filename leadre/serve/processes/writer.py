"""The one process that writes money and events, so that what it acknowledges cannot be lost.

Questions that come while the disk is busy are answered together: one commit of the books, one sync of the log, then all
their answers. If the disk refuses, whoever asked is told, and asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from leadre import progress
from leadre.errors import StorageError
from leadre.serve.ipc.messages import ErrorReply, WriterReply, WriterRequest
from leadre.serve.processes.writer_state import WriterState

TEND_S = 0.2  # without questions


class Writer:
    """Answers `serve.messages` in batches, while `run` runs. ``make_desk`` is called in the thread that writes."""

    def __init__(self, make_desk: Callable[[], WriterState]) -> None:
        self._make_desk = make_desk
        self._waiting: list[tuple[WriterRequest, asyncio.Future[WriterReply]]] = []
        self._arrived, self._idle = asyncio.Event(), asyncio.Event()
        self._trouble = ""  # what the disk refused last

    async def answer(self, question: WriterRequest) -> WriterReply:
        """What the writer says, when it is on the disk."""
        future: asyncio.Future[WriterReply] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        self._idle.clear()
        self._arrived.set()
        return await future

    async def run(self) -> None:
        """Batch after batch, in a thread of its own, so that questions can come in meanwhile; until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="leadre-writer") as thread:
            desk = await loop.run_in_executor(thread, self._make_desk)
            try:
                while True:
                    await self._settle(lambda what, *given: loop.run_in_executor(thread, what, *given), desk)
            finally:
                await loop.run_in_executor(thread, desk.close)

    async def _settle(self, call: Callable[..., Awaitable[Any]], desk: WriterState) -> None:
        """One batch, or a moment without any, and what is due by then."""
        if not self._waiting:
            self._idle.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), TEND_S)
        self._arrived.clear()
        batch, self._waiting = self._waiting, []
        replies: list[WriterReply] = []
        try:
            if batch:
                replies = await call(desk.settle, [question for question, _ in batch], _now_us())
            await call(desk.tend, _now_us())
            self._say("")
        except (StorageError, sqlite3.OperationalError) as error:
            replies += [ErrorReply(str(error))] * (len(batch) - len(replies))
            self._say(str(error))
        for (_, future), reply in zip(batch, replies, strict=True):
            if not future.done():
                future.set_result(reply)
        if desk.log.fault:
            raise StorageError(desk.log.fault)  # whoever starts this process anew opens the log again

    def _say(self, trouble: str) -> None:
        """Tell the operator once when the disk begins to refuse, and once when it takes again."""
        if bool(trouble) != bool(self._trouble):
            with contextlib.suppress(OSError):  # what we say may go to a file on the same disk
                progress.say(
                    f"serve: the writer waits for its disk: {trouble}" if trouble else "serve: it writes again"
                )
        self._trouble = trouble

    async def drain(self) -> None:
        """Wait until all that was asked has its answer."""
        await self._idle.wait()


def _now_us() -> int:
    return time.time_ns() // 1000
