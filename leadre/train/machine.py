"""The memory of this machine and of this process, and a sign of life of a long command."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import psutil

from leadre import progress
from leadre.errors import InputError

MB = 2**20
SAMPLE_S = 0.02
INTERRUPT_EVERY_S = 1.0
_INTERRUPT = signal.SIGUSR1  # shells start background commands with SIGINT ignored
_PROC_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


class _CgroupFiles(NamedTuple):
    """Files of a version of control groups with the memory of a group."""

    root: str
    limit: str
    used: str
    inactive: str  # field of memory.stat


_VERSION_1 = _CgroupFiles("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _CgroupFiles("", "memory.max", "memory.current", "inactive_file")


def free_mb() -> float:
    """The memory that a new process could take without swapping, within the limits of its container."""
    return min(float(psutil.virtual_memory().available), _free_in_cgroups()) / MB


def _free_in_cgroups() -> float:
    """Bytes that the control groups of this process leave, the outer ones too; infinite without a limit.

    The page cache of files counts as used there. The kernel frees its inactive part before it stops a process.
    """
    free = math.inf
    with suppress(OSError):
        for line in _PROC_CGROUP.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number != "0" and "memory" not in controllers.split(","):
                continue
            files = _VERSION_2 if number == "0" else _VERSION_1
            root = _CGROUPS / files.root
            group = root / path.lstrip("/")  # within a container, the root is the container's own group
            for folder in {root, group, *(parent for parent in group.parents if parent.is_relative_to(root))}:
                free = min(free, _free_in_cgroup(folder, files))
    return free


def _free_in_cgroup(folder: Path, files: _CgroupFiles) -> float:
    try:
        limit = int((folder / files.limit).read_text())
        used = int((folder / files.used).read_text())
        stat = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines())
        return limit - used + int(stat.get(files.inactive, 0))
    except (OSError, ValueError):  # no such group, or "max"
        return math.inf


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


class _ExceededError(BaseException):
    """Ends a stage that took too much memory. No Exception, as a stage may catch these."""


@contextmanager
def watch(limit_mb: float) -> Iterator[Peak]:
    """Measure the memory of this process meanwhile, and print a line when nothing else has for ten seconds.

    Ends what runs by an InputError if the process takes more than ``limit_mb``: other processes need the rest. A stage
    that continues is interrupted again. Only the main thread can be watched.
    """
    peak = Peak()
    done = threading.Event()
    exceeded_mb = 0.0
    main = threading.get_ident()

    def look() -> None:
        nonlocal exceeded_mb
        while not done.wait(INTERRUPT_EVERY_S if exceeded_mb else SAMPLE_S):
            now_mb = peak.sample()
            if exceeded_mb or now_mb > limit_mb:
                exceeded_mb = exceeded_mb or now_mb
                signal.pthread_kill(main, _INTERRUPT)  # also ends a system call
            progress.sign_of_life(f"train: running, {now_mb:,.0f} MB")

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if not done.is_set():
            raise _ExceededError

    thread = threading.Thread(target=look, name="watch", daemon=True)
    handler = signal.signal(_INTERRUPT, interrupt)
    thread.start()
    try:
        try:
            yield peak
        finally:
            done.set()
            thread.join()
            signal.signal(_INTERRUPT, handler)
    except (_ExceededError, KeyboardInterrupt):
        if not exceeded_mb:
            raise
        raise InputError(
            f"memory: the command took {exceeded_mb:,.0f} MB of {limit_mb:,.0f} MB that may be taken; finished stages "
            "are kept: free some memory, or lower --memory-gb, and run the command again, which continues"
        ) from None
