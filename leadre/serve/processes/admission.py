"""Admission queue: FIFO, one request per event-loop iteration, shed after ``max_wait_s``.

Without the queue, an event loop that receives a hundred requests at once answers all of them before it polls its
sockets again. Until then nothing measures the wait of later requests, and libuv, which accepts one connection per
iteration, accepts none.
"""

from __future__ import annotations

import asyncio
from collections import deque

from leadre.clock import Clock


class AdmissionQueue:
    """Queue of one event loop. It sheds a request that has waited longer than ``max_wait_s`` at its turn."""

    def __init__(self, max_wait_s: float, clock: Clock) -> None:
        self.max_wait_s = max_wait_s
        self._clock = clock
        self._queue: deque[tuple[float, asyncio.Future[bool]]] = deque()
        self._is_taken = False  # whether this iteration has admitted a request

    async def admit(self, arrived_s: float) -> bool:
        """Wait for the turn of a request that arrived at ``arrived_s`` (monotonic). False: too late, shed it."""
        loop = asyncio.get_running_loop()
        if not self._is_taken:
            self._is_taken = True
            loop.call_soon(self._admit_next)
            return self._clock.monotonic_s() - arrived_s <= self.max_wait_s
        future: asyncio.Future[bool] = loop.create_future()
        self._queue.append((arrived_s, future))
        return await future

    def _admit_next(self) -> None:
        """Shed requests that are too late, which is cheap, up to the first that is not; admit that one."""
        earliest_s = self._clock.monotonic_s() - self.max_wait_s
        self._is_taken = False
        while self._queue and not self._is_taken:
            arrived_s, future = self._queue.popleft()
            if not future.done():  # done: its client has disconnected
                self._is_taken = arrived_s >= earliest_s
                future.set_result(self._is_taken)
        if self._is_taken:
            asyncio.get_running_loop().call_soon(self._admit_next)
