"""An agenda: jobs with a time each, run by threads as they become due."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
import traceback
from collections.abc import Callable


class Agenda:
    """For a ``with``, at whose end jobs that are not due yet are dropped. ``failures``: tracebacks of failed jobs."""

    def __init__(self, threads: int) -> None:
        self.failures: list[str] = []
        self._jobs: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._running = 0
        self._changed = threading.Condition()
        self._is_over = False
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Agenda:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def add(self, job: Callable[[], None], delay_s: float = 0.0) -> None:
        """Run a job after a delay."""
        with self._changed:
            heapq.heappush(self._jobs, (time.monotonic() + delay_s, next(self._numbers), job))
            self._changed.notify()

    def __len__(self) -> int:
        """The number of jobs that have not ended."""
        with self._changed:
            return len(self._jobs) + self._running

    def hurry(self) -> None:
        """Make every job due now."""
        with self._changed:
            self._jobs = [(0.0, number, job) for _, number, job in self._jobs]
            heapq.heapify(self._jobs)
            self._changed.notify_all()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                job()
            except Exception:
                self.failures.append(traceback.format_exc())
            with self._changed:
                self._running -= 1

    def _next(self) -> Callable[[], None] | None:
        """The next job when it is due; None at the end."""
        with self._changed:
            while not self._is_over:
                wait_s = self._jobs[0][0] - time.monotonic() if self._jobs else None
                if wait_s is not None and wait_s <= 0:
                    self._running += 1
                    return heapq.heappop(self._jobs)[2]
                self._changed.wait(wait_s)
            return None
