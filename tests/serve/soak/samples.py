"""Samples of the bidder's processes over time: resident memory and open descriptors, by role."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from leadre.serve.processes.recent_records import MAX_RECENT

from .kept_bidder import ROLES, KeptBidder
from .memory import Memory

# Of the median of a role, from the second quarter of the run to the last. A kill of the model server empties caches;
# the allocator of polars keeps memory of the largest table so far.
GROWTH_MB = {"worker": 15.0, "writer": 20.0, "tables": 80.0, "management": 50.0, "model": 60.0}
REQUEST_MB = 6 / 1024  # of the writer's memory, for each of the newest requests, which it explains
SETTLED_S = 25.0  # a younger process still loads its state, or its model
LARGE = 3.0  # bytes of memory for a byte of a large request among them


class Samples:
    """Call `take` about every two seconds."""

    def __init__(self, bidder: KeptBidder, memory: Memory) -> None:
        self._bidder = bidder
        self._memory = memory
        self._started_s = time.monotonic()
        self.memory_mb: dict[str, list[tuple[float, float]]] = defaultdict(list)  # role -> (time, MiB)
        self.descriptors: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._seen_s: dict[int, float] = {}  # process -> time of its first sample
        self._traffic: list[tuple[float, int, int]] = []  # (time, requests, bytes of large requests) until then

    def take(self) -> None:
        at_s = time.monotonic() - self._started_s
        self._traffic.append((at_s, self._memory.counts["requests"], self._memory.large_bytes))
        for role, pid in itertools.chain.from_iterable(((r, p) for p in self._bidder.pids(r)) for r in ROLES):
            if at_s - self._seen_s.setdefault(pid, at_s) < SETTLED_S and at_s > SETTLED_S:
                continue
            with suppress(OSError, IndexError):  # it has just been killed
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                self.memory_mb[role].append((at_s, pages * 4096 / 2**20))
                self.descriptors[role].append((at_s, float(len(os.listdir(f"/proc/{pid}/fd")))))

    def quarters(self, series: dict[str, list[tuple[float, float]]]) -> dict[str, tuple[float, float]]:
        """Role -> (median of the second quarter of the run, median of the last quarter)."""
        end_s = self._traffic[-1][0]
        pairs = {}
        for role, samples in series.items():
            second = [value for at_s, value in samples if end_s / 4 <= at_s < end_s / 2]
            last = [value for at_s, value in samples if at_s >= end_s * 3 / 4]
            if second and last:
                pairs[role] = statistics.median(second), statistics.median(last)
        return pairs

    def allowed_mb(self, role: str) -> float:
        """The growth that a role may have. The writer holds the newest requests, up to a number of them."""
        end_s = self._traffic[-1][0]
        held_mb = self._held_mb(end_s) - self._held_mb(end_s * 3 / 8)
        return GROWTH_MB[role] + (max(0.0, held_mb) if role == "writer" else 0.0)

    def _held_mb(self, at_s: float) -> float:
        """Memory for the newest requests at a time."""
        _, requests, size = [row for row in self._traffic if row[0] <= at_s][-1]
        before = [row for row in self._traffic if row[1] <= requests - MAX_RECENT]
        oldest = before[-1] if before else (0.0, 0, 0)
        return (requests - oldest[1]) * REQUEST_MB + (size - oldest[2]) * LARGE / 2**20

    def last_mb(self) -> dict[str, float]:
        """Role -> the newest sample, for a line of progress."""
        return {role: round(samples[-1][1]) for role, samples in list(self.memory_mb.items())}
