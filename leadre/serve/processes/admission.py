"""Requests in the order of their arrival, one in a pass of the event loop.

An event loop that is given a hundred requests at once answers all of them before it looks at its sockets again: then
nobody knows how long the next ones have waited, and new connections, of which libuv accepts one a pass, do not get in.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque


class AdmissionQueue:
    """Turns of one event loop. Who has waited for longer than ``most_s`` when the turn comes is told to give up."""

    def __init__(self, most_s: float) -> None:
        self.most_s = most_s
        self._waiting: deque[tuple[float, asyncio.Future[bool]]] = deque()
        self._is_taken = False  # somebody had this pass

    async def turn(self, arrived_s: float) -> bool:
        """Wait for the turn of a request that arrived at a time of `time.monotonic`. False: it is too late for it."""
        loop = asyncio.get_running_loop()
        if not self._is_taken:
            self._is_taken = True
            loop.call_soon(self._next)
            return time.monotonic() - arrived_s <= self.most_s
        future: asyncio.Future[bool] = loop.create_future()
        self._waiting.append((arrived_s, future))
        return await future

    def _next(self) -> None:
        """Call all who are too late, for whom a word is enough, and the first who is not."""
        oldest_s = time.monotonic() - self.most_s
        self._is_taken = False
        while self._waiting and not self._is_taken:
            arrived_s, future = self._waiting.popleft()
            if not future.done():  # else its caller hung up
                self._is_taken = arrived_s >= oldest_s
                future.set_result(self._is_taken)
        if self._is_taken:
            asyncio.get_running_loop().call_soon(self._next)
