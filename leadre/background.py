"""Background tasks: work that a process repeats beside its requests. An unexpected error ends no task and no process.

A failure is counted by the name of its task (`telemetry.TASK_FAILURES`), reported on stderr with its traceback, at most
once every `REPORT_S`, and tried again after a delay that doubles up to `MAX_DELAY_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from leadre import progress, telemetry
from leadre.clock import Clock
from leadre.errors import FaultError

REPORT_S = 60.0  # between two reports of one task
MAX_DELAY_S = 30.0
STOP_S = 0.5  # after which a task that still runs is cancelled again
FAILING_AFTER = 3  # failures in a row after which a task counts as failing

T = TypeVar("T")
Expected = tuple[type[Exception], ...]


class TaskHealth:
    """Failures of one task. ``expected``: errors of its surroundings, such as a peer that is away; no failures."""

    def __init__(self, name: str, clock: Clock, expected: Expected = ()) -> None:
        self.name = name
        self.expected = expected
        self._clock = clock
        self._failures = 0  # since the last success
        self._report_at_s = -math.inf

    @property
    def is_failing(self) -> bool:
        """Whether the last `FAILING_AFTER` calls all failed."""
        return self._failures >= FAILING_AFTER

    def attempt(self, call: Callable[[], T]) -> T:
        """The result of ``call()``. Expected errors pass; any other is counted, reported and raised as FaultError."""
        with self._observed():
            return call()

    async def attempt_async(self, call: Callable[[], Awaitable[T]]) -> T:
        """`attempt` for a coroutine; a cancellation passes."""
        with self._observed():
            return await call()

    def delay_s(self, interval_s: float) -> float:
        """Seconds until the next attempt: the interval after a success, twice as long after each further failure."""
        if not self._failures:
            return interval_s
        return max(interval_s, min(interval_s * 2.0 ** min(self._failures, 20), MAX_DELAY_S))

    @contextlib.contextmanager
    def _observed(self) -> Iterator[None]:
        try:
            yield
        except self.expected:
            raise
        except Exception as error:
            raise self._fault(error) from error
        self._set_failures(0)

    def _fault(self, error: Exception) -> FaultError:
        """Count and report an unexpected error."""
        telemetry.TASK_FAILURES.labels(self.name).inc()
        self._set_failures(self._failures + 1)
        now_s = self._clock.monotonic_s()
        if now_s >= self._report_at_s:
            self._report_at_s = now_s + REPORT_S
            trace = "".join(traceback.format_exception(error)).rstrip()
            with contextlib.suppress(OSError):  # stderr may be a file on a full disk
                progress.say(f"serve: {self.name} failed, {self._failures} in a row, and is tried again: {trace}")
        return FaultError(f"{self.name}: {type(error).__name__}: {error}")

    def _set_failures(self, failures: int) -> None:
        was_failing = self.is_failing
        self._failures = failures
        if self.is_failing != was_failing:
            telemetry.FAILING_TASKS.labels(self.name).set(self.is_failing)


class Tasks:
    """The background tasks of one process; ``expected`` as in `TaskHealth`, of all of them."""

    def __init__(self, clock: Clock, expected: Expected = ()) -> None:
        self._clock = clock
        self._expected = expected
        self._healths: dict[str, TaskHealth] = {}
        self._running: list[asyncio.Task[None]] = []

    def failing(self) -> list[str]:
        """Names of the tasks that keep failing."""
        return [health.name for health in list(self._healths.values()) if health.is_failing]

    def attempt(self, name: str, call: Callable[[], object]) -> None:
        """Call once. Expected errors pass; any other is counted and reported, and the caller continues."""
        with contextlib.suppress(FaultError):
            self._health(name).attempt(call)

    def start(self, name: str, interval_s: float, call: Callable[[], Awaitable[object]]) -> None:
        """Repeat a coroutine in the running event loop, now and after each interval, until `stop`."""
        self._running.append(asyncio.create_task(self._repeat(self._health(name), interval_s, call), name=name))

    def start_thread(self, name: str, interval_s: float, call: Callable[[], object], *, nice: int = 0) -> None:
        """Repeat a function in a daemon thread, now and after each interval, for as long as the process runs.

        ``nice`` is added to the thread's niceness where the system has one for each thread, as Linux.
        """
        health = self._health(name)

        def repeat() -> None:
            if nice and sys.platform == "linux":
                os.nice(nice)
            while True:
                with contextlib.suppress(FaultError, *self._expected):
                    health.attempt(call)
                time.sleep(health.delay_s(interval_s))

        threading.Thread(target=repeat, name=f"leadre-{name}", daemon=True).start()

    async def stop(self) -> None:
        """Cancel the coroutines and wait until they have ended."""
        running = set(self._running)
        while running:
            for task in running:
                task.cancel()  # again, if a library of a task's call has swallowed it
            _, running = await asyncio.wait(running, timeout=STOP_S)
        self._running.clear()

    async def _repeat(self, health: TaskHealth, interval_s: float, call: Callable[[], Awaitable[object]]) -> None:
        while True:
            with contextlib.suppress(FaultError, *self._expected):
                await health.attempt_async(call)
            await asyncio.sleep(health.delay_s(interval_s))

    def _health(self, name: str) -> TaskHealth:
        return self._healths.setdefault(name, TaskHealth(name, self._clock, self._expected))
