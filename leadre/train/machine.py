"""The memory of this machine and of this process, and a sign of life of a long command."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from leadre import progress
from leadre.errors import InputError

MB = 2**20
SAMPLE_S = 0.02
CGROUP = Path("/sys/fs/cgroup")  # version 2; a container has its own limit there


def free_mb() -> float:
    """The memory that a new process could take without swapping, within the limit of a container."""
    free = float(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no container, or "max"
        limit = int((CGROUP / "memory.max").read_text())
        free = min(free, limit - int((CGROUP / "memory.current").read_text()))
    return free / MB


class Peak:
    """The highest resident memory of this process since the start, or since `restart`."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.restart()

    def restart(self) -> None:
        """Begin a new measurement."""
        self.mb = 0.0
        self.sample()

    def sample(self) -> float:
        """Take a sample and return it."""
        now_mb: float = self._process.memory_info().rss / MB
        self.mb = max(self.mb, now_mb)
        return now_mb


@contextmanager
def watch(limit_mb: float) -> Iterator[Peak]:
    """Measure the memory of this process meanwhile, and print a line when nothing else has for ten seconds.

    Ends what runs by an InputError if the process takes more than ``limit_mb``: other processes need the rest.
    """
    peak = Peak()
    done = threading.Event()
    exceeded: list[float] = []

    def look() -> None:
        while not done.wait(SAMPLE_S):
            now_mb = peak.sample()
            if now_mb > limit_mb:
                exceeded.append(now_mb)
                _thread.interrupt_main()
                return
            progress.sign_of_life(f"train: running, {now_mb:,.0f} MB")

    thread = threading.Thread(target=look, name="watch", daemon=True)
    thread.start()
    try:
        yield peak
    except KeyboardInterrupt:
        if not exceeded:
            raise
        raise InputError(
            f"memory: the command took {exceeded[0]:,.0f} MB of {limit_mb:,.0f} MB that may be taken; finished stages "
            "are kept: free some memory, or lower --memory-gb, and run the command again"
        ) from None
    finally:
        done.set()
        thread.join()
