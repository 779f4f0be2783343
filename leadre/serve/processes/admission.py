"""Admission queue: FIFO, one request per event-loop iteration, shed after ``max_wait_s``.

Without it, an event loop that receives a hundred requests at once answers all of them before it polls its sockets
again: the wait of the next requests stays unmeasured, and libuv, which accepts one connection per iteration, accepts
no new ones.
"""

from __future__ import annotations

import asyncio
from collections import deque

from leadre.clock import Clock


class AdmissionQueue:
    """Queue of one event loop. A request that has waited longer than ``max_wait_s`` at its turn is refused."""

    def __init__(self, max_wait_s: float, clock: Clock) -> None:
        self.max_wait_s = max_wait_s
        self._clock = clock
        self._queue: deque[tuple[float, asyncio.Future[bool]]] = deque()
        self._is_taken = False  # a request was admitted in this iteration

    async def admit(self, arrived_s: float) -> bool:
        """Wait for the turn of a request that arrived at ``arrived_s`` (monotonic). False: shed it, it is too late."""
        loop = asyncio.get_running_loop()
        if not self._is_taken:
            self._is_taken = True
            loop.call_soon(self._admit_next)
            return self._clock.monotonic_s() - arrived_s <= self.max_wait_s
        future: asyncio.Future[bool] = loop.create_future()
        self._queue.append((arrived_s, future))
        return await future

    def _admit_next(self) -> None:
        """Shed all requests that are too late, as that is cheap, and admit the first that is not."""
        oldest_s = self._clock.monotonic_s() - self.max_wait_s
        self._is_taken = False
        while self._queue and not self._is_taken:
            arrived_s, future = self._queue.popleft()
            if not future.done():  # done: its client hung up
                self._is_taken = arrived_s >= oldest_s
                future.set_result(self._is_taken)
        if self._is_taken:
            asyncio.get_running_loop().call_soon(self._admit_next)
