"""Wall time and monotonic time from one injected object, so that serving can be replayed and tested at any moment.

Every part of serving that reads the time takes a `Clock`; a process creates one `SystemClock` when it starts. Wall time
dates records, leases and budgets. Monotonic time measures waits and deadlines; processes of one machine share it. Boot
time, which cannot be set, shows whether wall time was set: `leadre.serve.processes.steady_clock` compares the two.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from leadre.errors import InputError
from leadre.units import US_PER_S

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
BOOT_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # macOS has the second, which counts sleep too
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """Two readings of the time: of the calendar, and of a stopwatch that never runs backwards."""

    def now_us(self) -> int:
        """Wall time: microseconds since 1970-01-01 UTC. It jumps when the machine's clock is set."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary moment, the same moment for all processes of one machine."""
        ...

    def certain_us(self) -> int:
        """Wall time that is beyond doubt, at most `now_us`: what has not expired by it must not be forgotten."""
        ...


class MachineClock(Clock, Protocol):
    """A clock with the time since the machine's boot."""

    def boot_us(self) -> int:
        """Microseconds since an arbitrary moment, the same moment until the machine's next boot; sleep counts."""
        ...

    def boot_id(self) -> str:
        """The name of the machine's present boot; "any" if the system names none."""
        ...


@dataclass(frozen=True)
class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_s(self) -> float:
        return time.monotonic()

    def certain_us(self) -> int:
        return self.now_us()

    def boot_us(self) -> int:
        return time.clock_gettime_ns(BOOT_CLOCK) // 1000

    def boot_id(self) -> str:
        return boot_id()


@dataclass
class ManualClock:
    """A clock that stays at the time that its owner sets: for replays, simulations and tests."""

    wall_us: int = 0
    elapsed_s: float = 0.0
    boot: str = "manual"

    def now_us(self) -> int:
        return self.wall_us

    def monotonic_s(self) -> float:
        return self.elapsed_s

    def certain_us(self) -> int:
        return self.wall_us

    def boot_us(self) -> int:
        return round(self.elapsed_s * US_PER_S)

    def boot_id(self) -> str:
        return self.boot

    def advance(self, seconds: float) -> None:
        """Move wall time and monotonic time forward together."""
        self.wall_us += round(seconds * US_PER_S)
        self.elapsed_s += seconds


def boot_id() -> str:
    """The name of the machine's present boot; "any" if the system names none."""
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else "any"


def time_us(value: datetime | str | int, name: str) -> int:
    """Microseconds since 1970 UTC of a datetime, an ISO text or that number itself; UTC unless it has an offset.

    Raises InputError, which begins with ``name``, for other values and for times outside the years 1970 to 9999.
    """
    remedy = "must be an ISO time such as 2026-03-01T08:30:00Z, a datetime or whole microseconds since 1970"
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(moment, int):
            moment = EPOCH + timedelta(microseconds=moment)
        # local times would differ between machines
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        at_us = (moment - EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError, AttributeError, TypeError) as error:
        raise InputError(f"{name} {value!r}: {remedy}") from error
    if at_us < 0:
        raise InputError(f"{name} {value!r}: is before 1970; {remedy}")
    return at_us
