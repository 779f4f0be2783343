"""Wall time and monotonic time from one injected object, so that serving can be replayed and tested at any moment.

Every part of serving that reads the time takes a `Clock`; a process creates one `SystemClock` when it starts. Wall time
dates records, leases and budgets. Monotonic time measures waits and deadlines; processes of one machine share it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from leadre.units import US_PER_S


class Clock(Protocol):
    """Two readings of the time: of the calendar, and of a stopwatch that never runs backwards."""

    def now_us(self) -> int:
        """Wall time: microseconds since 1970-01-01 UTC. It jumps when the machine's clock is set."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary moment, the same moment for all processes of one machine."""
        ...


@dataclass(frozen=True)
class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_s(self) -> float:
        return time.monotonic()


@dataclass
class ManualClock:
    """A clock that stays at the time that its owner sets: for replays, simulations and tests."""

    wall_us: int = 0
    elapsed_s: float = 0.0

    def now_us(self) -> int:
        return self.wall_us

    def monotonic_s(self) -> float:
        return self.elapsed_s

    def advance(self, seconds: float) -> None:
        """Move wall time and monotonic time forward together."""
        self.wall_us += round(seconds * US_PER_S)
        self.elapsed_s += seconds
