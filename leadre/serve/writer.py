"""The one process that writes money and events, so that what it acknowledges cannot be lost.

Questions that come while the disk is busy are answered together: one commit of the books, one sync of the log, then all
their answers. If the disk refuses, nothing of the batch is written and whoever asked is told.
"""

from __future__ import annotations

import asyncio
import time

from leadre.errors import StorageError
from leadre.serve.desk import Desk
from leadre.serve.messages import Failed, Question, Reply


class Writer:
    """Answers `serve.messages` in batches, while `run` runs."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._waiting: list[tuple[Question, asyncio.Future[Reply]]] = []
        self._arrived, self._idle = asyncio.Event(), asyncio.Event()

    async def answer(self, question: Question) -> Reply:
        """What the writer says, when it is on the disk."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        self._idle.clear()
        self._arrived.set()
        return await future

    async def run(self) -> None:
        """Batch after batch, each in a thread, so that questions can come in meanwhile."""
        while True:
            if not self._waiting:
                self._idle.set()
            await self._arrived.wait()
            self._arrived.clear()
            batch, self._waiting = self._waiting, []
            questions = [question for question, _ in batch]
            try:
                replies = await asyncio.to_thread(self._desk.settle, questions, time.time_ns() // 1000)
            except StorageError as error:
                replies = [Failed(str(error))] * len(batch)
            for (_, future), reply in zip(batch, replies, strict=True):
                if not future.done():
                    future.set_result(reply)

    async def drain(self) -> None:
        """Wait until all that was asked has its answer."""
        await self._idle.wait()
