"""Faults of the soak: a schedule that a seed draws, in which faults overlap, and their injection."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..disk import fill, fill_again
from .agenda import Agenda
from .hostile import Hostile
from .kept_bidder import KeptBidder, ShiftedClock
from .memory import Memory

PERIODS_S = {  # kind -> mean time from one fault to the next
    "kill writer": 75,
    "kill worker": 65,
    "kill tables": 95,
    "kill management": 90,
    "kill model": 100,
    "kill supervisor": 140,
    "stop writer": 40,
    "stop worker": 45,
    "stop tables": 80,
    "stop management": 90,
    "disk full": 80,
    "clock": 70,
    "large requests": 35,
    "hostile": 20,
}
FULL_S = 20.0
MINUTE, HOUR, DAY = 60, 3600, 86_400
JUMPS = (-2 * MINUTE, 2 * MINUTE, -HOUR, HOUR, -8 * DAY, 8 * DAY, 99 * DAY)


@dataclass
class Fault:
    """A fault of the schedule. ``seed`` draws its details; ``end_s`` is monotonic, and None while it lasts."""

    kind: str
    at_s: float  # from the start of the run
    seed: int
    start_s: float | None = None
    end_s: float | None = None
    was_possible: bool = True


def schedule(seed: int, seconds: float) -> list[Fault]:
    """The faults of a run, in order: each kind at about its period, from the first tenth of a minute on."""
    rng = random.Random(seed)
    faults = []
    for kind, period_s in PERIODS_S.items():
        at_s = 6 + rng.uniform(0.2, 0.9) * min(period_s, seconds / 2)
        while at_s < seconds - 6:
            faults.append(Fault(kind, at_s, rng.randrange(2**32)))
            at_s += rng.uniform(0.7, 1.3) * period_s
    return sorted(faults, key=lambda fault: fault.at_s)


@dataclass
class Faults:
    """Injects faults. ``injected`` has those that began, in order."""

    bidder: KeptBidder
    clock: ShiftedClock
    disk: Path
    hostile: Hostile
    memory: Memory
    injected: list[Fault] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def plan(self, agenda: Agenda, faults: list[Fault]) -> None:
        for fault in faults:
            agenda.add(partial(self._inject, fault), fault.at_s)

    def counts(self) -> dict[str, int]:
        """Kind -> number of faults that were injected."""
        return dict(Counter(fault.kind for fault in self.injected if fault.was_possible))

    def kinds_between(self, start_s: float, end_s: float) -> set[str]:
        """Kinds of the faults that lasted at some moment between two monotonic times."""
        return {
            fault.kind
            for fault in self.injected
            if (fault.start_s or 0) < end_s and (fault.end_s is None or fault.end_s > start_s)
        }

    def _inject(self, fault: Fault) -> None:
        if self.is_over.is_set():
            return
        rng = random.Random(fault.seed)
        fault.start_s = time.monotonic()
        self.injected.append(fault)
        action, _, role = fault.kind.partition(" ")
        if fault.kind == "kill supervisor":
            self.bidder.kill_supervisor()
        elif action == "kill":
            fault.was_possible = self._signal(role, signal.SIGKILL, rng) is not None
        elif action == "stop":
            self._stop(role, rng)
        elif fault.kind == "disk full":
            self._fill_disk()
        elif fault.kind == "clock":
            self.clock.shift(rng.choice(JUMPS))
            self.is_over.wait(rng.uniform(5, 40))
            self.clock.shift(0)
        elif fault.kind == "large requests":
            self.hostile.large(rng)
        else:
            for name in rng.sample(sorted(self.hostile.bursts), 2):
                self.hostile.bursts[name](rng)
        fault.end_s = time.monotonic()

    def _signal(self, role: str, number: signal.Signals, rng: random.Random) -> int | None:
        """Signal one process of a role; its ID, or None while there is none."""
        pids = self.bidder.pids(role)
        if not pids:
            return None
        pid = rng.choice(pids)
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid

    def _stop(self, role: str, rng: random.Random) -> None:
        """Stop a process for some seconds."""
        pid = self._signal(role, signal.SIGSTOP, rng)
        self.is_over.wait(rng.uniform(2, 5))
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _fill_disk(self) -> None:
        """Fill the disk to its last byte, and keep it full."""
        filler = fill(self.disk)
        until_s = time.monotonic() + FULL_S
        while time.monotonic() < until_s and not self.is_over.wait(0.2):
            fill_again(filler)
        filler.unlink()
