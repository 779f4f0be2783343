"""Wall time and monotonic time from one injected object, so that serving can be replayed and tested at any moment.

Every part of serving that reads the time takes a `Clock`; a process creates one `SystemClock` when it starts. Wall time
dates records, leases and budgets. Monotonic time measures waits and deadlines; processes of one machine share it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from leadre.errors import ClockError, InputError
from leadre.units import US_PER_S

MAX_JUMP_S = 60.0  # larger than the corrections of a time service, and than a leap second
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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


class ClockWatch:
    """Compares wall time with monotonic time since the watch began: a clock that was set is no reason to delete.

    After a jump ahead, records look old that are not; after the jump back, repetitions of what was deleted look new.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wall_us = clock.now_us()
        self._monotonic_s = clock.monotonic_s()

    def check(self) -> None:
        """ClockError while wall time differs by more than `MAX_JUMP_S` from the time that has passed."""
        passed_s = self._clock.monotonic_s() - self._monotonic_s
        jump_s = (self._clock.now_us() - self._wall_us) / US_PER_S - passed_s
        if abs(jump_s) > MAX_JUMP_S:
            direction = "ahead" if jump_s > 0 else "back"
            raise ClockError(
                f"the machine's clock was set {abs(jump_s):,.0f} s {direction}; nothing expires or is deleted until it"
                " is set right, or the bidder is restarted to confirm the new time"
            )


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
