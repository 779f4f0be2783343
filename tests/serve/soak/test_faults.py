"""An hour with all faults at once: what was acknowledged is booked, bids go on, and memory is flat.

`LEADRE_SOAK_S` is the length in seconds. `LEADRE_SOAK_SEED` draws the traffic and the faults. `LEADRE_SOAK_WITHOUT` is
a list of faults that are left out, such as `clock,disk full`, for the search of the one that causes a problem.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from ..bidder import PATIENCE_S, until
from ..disk import small_disk
from . import campaigns, recount
from .agenda import Agenda
from .faults import PERIODS_S, Faults, schedule
from .hostile import Hostile
from .kept_bidder import KeptBidder, ShiftedClock
from .memory import Memory
from .operations import Operations
from .samples import Samples
from .traffic import Traffic

RATE = 40.0  # requests a second
PROGRESS_S = 20.0
SAMPLE_S = 2.0
DESCRIPTORS = 16  # more of a process at the end than the most at the start, without a client
KILLED = -9
WITHOUT = os.environ.get("LEADRE_SOAK_WITHOUT", "").split(",")
TRACE = "Traceback (most recent call last):"


def test_schedule_of_a_run_has_every_fault_and_depends_on_the_seed_alone():
    for seconds in (300, 3600):
        faults = schedule(1, seconds)
        assert {fault.kind for fault in faults} == set(PERIODS_S)
        assert faults == schedule(1, seconds) != schedule(2, seconds)
        assert all(0 < fault.at_s < seconds for fault in faults)
    assert len(faults) > 300


class Soak:
    """One run. ``say`` prints a line of progress."""

    def __init__(self, bidder: KeptBidder, clock: ShiftedClock, disk: Path, seconds: float, seed: int, say) -> None:
        self.bidder = bidder
        self.seconds = seconds
        self.seed = seed
        self.clock = clock
        self.say = say
        self.groups = campaigns.create(bidder, seconds, RATE)
        self.memory = Memory()
        self.samples = Samples(bidder, self.memory)
        hostile = Hostile(bidder.port, bidder.manage_port, bidder.operator, self.memory)
        self.faults = Faults(bidder, clock, disk, hostile, self.memory)
        self.visits = Agenda(96)
        self.events = Agenda(48)
        self.slow = Agenda(40)
        self.traffic = Traffic(bidder.port, self.groups, self._bid_types(), self.memory, self.events, seed)
        self.operations = Operations(bidder, self.traffic, self.memory, self.slow, seed)

    def _bid_types(self) -> dict[str, str]:
        """Campaign -> bid type, of all campaigns."""
        page = self.bidder.manage("GET", "/campaigns", limit="1000")
        assert page["next"] is None
        return {campaign["campaign_id"]: campaign["bid_type"] for campaign in page["items"]}

    def run(self) -> None:
        """Traffic, operations and faults until the time is over; then calm, until all events are sent."""
        with ExitStack() as threads:
            for agenda in (self.visits, self.events, self.slow):
                threads.enter_context(agenda)
            for clients in (self.traffic, self.operations, self.faults.hostile):
                threads.callback(clients.close)  # before the threads end, so that those that wait return
            self.operations.begin(self.groups["paused"])
            self.faults.plan(
                self.slow, [fault for fault in schedule(self.seed, self.seconds) if fault.kind not in WITHOUT]
            )
            self._browse()
            self._calm()

    def _browse(self) -> None:
        """Requests at a steady rate."""
        start_s = time.monotonic()
        number = 0
        next_sample_s = next_line_s = start_s
        while (now_s := time.monotonic()) < start_s + self.seconds:
            while number / RATE < now_s - start_s:
                self.visits.add(self.traffic.visit)
                number += 1
            if now_s >= next_sample_s:
                self.samples.take()
                next_sample_s = now_s + SAMPLE_S
            if now_s >= next_line_s:
                self.say(self._progress(now_s - start_s))
                next_line_s = now_s + PROGRESS_S
            time.sleep(0.01)
        self.memory.end_gap()

    def _calm(self) -> None:
        """No more faults; wait until the bidder is whole again and every event is acknowledged or too late."""
        self.operations.is_over = True
        self.faults.is_over.set()
        until(lambda: all(fault.end_s for fault in self.faults.injected), "the last fault has ended")
        self.clock.shift(0)
        self.say("soak: no more faults")
        until(self.bidder.is_whole, "ready", lambda: self.bidder.said()[-3000:])
        self.bidder.manage("POST", "/clock/confirm")
        until(self.bidder.is_whole, "ready after the confirmation", lambda: self.bidder.said()[-3000:])
        deadline_s = time.monotonic() + PATIENCE_S
        while len(self.events) + len(self.visits) + len(self.slow) and time.monotonic() < deadline_s:
            self.events.hurry()
            self.slow.hurry()
            time.sleep(0.5)
        if left := len(self.events):
            self.memory.complain(f"{left} events are not acknowledged by a bidder that is ready")

    def _progress(self, at_s: float) -> str:
        counts = self.memory.counts
        longest_s = max((end - start for start, end in self.memory.gaps), default=0)
        return (
            f"soak: {at_s:.0f} of {self.seconds:.0f} s, {counts['bids']:,} bids, {counts['acknowledged']:,} events"
            f" acknowledged, {len(self.visits)} + {len(self.events)} due, faults {len(self.faults.injected)},"
            f" longest gap {longest_s:.1f} s, MiB {self.samples.last_mb()},"
            f" problems {dict(self.memory.problems)}"
        )

    def figures(self) -> dict[str, object]:
        """The figures of the run, for one line of JSON."""
        counts = self.memory.counts
        gaps = [(end - start, self.faults.kinds_between(start - 1, end)) for start, end in self.memory.gaps]
        kinds = sorted({kind for _, kinds in gaps for kind in kinds})
        by_fault = {kind: round(max(gap for gap, kinds in gaps if kind in kinds), 1) for kind in kinds}
        return {
            "seconds": self.seconds,
            "seed": self.seed,
            "bids": counts["bids"],
            "bids_by_group": {name: self.memory.bids_of[g.campaign_id] for name, g in self.groups.items()},
            "events_acknowledged": counts["acknowledged"],
            "events_sent_again": counts["sent again"],
            "clicks": sum(kind == "click" for _, kind in self.memory.events),
            "counts": dict(sorted(counts.items())),
            "erased": len(self.memory.erased),
            "faults": self.faults.counts(),
            "endings": {str(status): number for status, number in self.bidder.endings.items()},
            "largest_gap_s": round(max((gap for gap, _ in gaps), default=0.0), 1),
            "largest_gap_s_by_fault": by_fault,
            "memory_mb": _rounded(self.samples.quarters(self.samples.memory_mb)),
            "memory_max_mb": {role: round(max(mb for _, mb in s)) for role, s in self.samples.memory_mb.items()},
            "memory_growth_mb": self._growth_mb(),
            "descriptors": _rounded(self.samples.quarters(self.samples.descriptors)),
        }

    def _growth_mb(self) -> dict[str, float]:
        pairs = self.samples.quarters(self.samples.memory_mb)
        return {role: round(last - second, 1) for role, (second, last) in pairs.items()}

    def check(self) -> None:
        """Problems that the whole run shows."""
        complain = self.memory.complain
        for role, growth_mb in self._growth_mb().items():
            if growth_mb > self.samples.allowed_mb(role):
                complain(f"memory of the {role} grew by {growth_mb} MiB, {self.samples.allowed_mb(role):.0f} allowed")
        minutes = range(int(self.seconds // 60))
        if empty := [minute for minute in minutes if not self.memory.per_minute[minute]]:
            complain(f"no bid in the minutes {empty}")
        for agenda in (self.visits, self.events, self.slow):
            for failure in agenda.failures[:3]:
                complain(f"the soak itself failed: {failure}")
        said = self.bidder.said()
        for text in said.split(TRACE)[1:]:
            error = next((line for line in text.splitlines() if line and not line.startswith(" ")), "")
            complain(f"a traceback: {error}")
        if others := set(self.bidder.endings) - {KILLED, 2}:
            complain(f"the supervisor ended with status {sorted(others)}")


@pytest.mark.soak
def test_acknowledged_events_are_booked_and_bids_go_on_under_all_faults(work, tmp_path, capsys):
    seconds = float(os.environ.get("LEADRE_SOAK_S", "3600"))
    seed = int(os.environ.get("LEADRE_SOAK_SEED", "0"))
    clock = ShiftedClock(tmp_path / "clocks")
    kind = ("tmpfs", "ext4")[seed % 2]
    size_mb = 400 + int(seconds / 2)

    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", end="", flush=True)

    with small_disk(kind, size_mb, tmp_path) as disk:
        (disk / "tmp").mkdir()
        output = tmp_path / "bidder.txt"
        say(f"soak: {seconds:.0f} s, seed {seed}, {kind} of {size_mb} MiB; the bidder writes to {output}")
        with KeptBidder(work, disk / "state", output, clock, "--workers", "2") as bidder:
            soak = Soak(bidder, clock, disk, seconds, seed, say)
            before = bidder.descriptors()
            soak.run()
            charged = recount.compare_reports(bidder, soak.memory, soak.groups)
            check_descriptors(bidder, before, soak.memory)
            assert bidder.stop() == 0
        lost = check_disk(disk / "state", soak, charged)
        soak.check()
        used_mb = shutil.disk_usage(disk).used >> 20
        problems = dict(soak.memory.problems)
        if problems:
            shutil.copytree(disk / "state", tmp_path / "state", ignore=shutil.ignore_patterns("run"))
        say(f"soak: {len(problems)} problems")
        say(json.dumps(soak.figures() | {"lost": lost, "disk_mb": used_mb}))
        assert not problems, "\n".join(f"{number} times: {problem}" for problem, number in problems.items())


def check_disk(state: Path, soak: Soak, charged: dict[str, int]) -> dict[str, int]:
    """The recount of the stopped bidder's files. Numbers of what was lost without an acknowledgement."""
    count = recount.Recount(state, soak.memory, soak.groups)
    count.log()
    count.tables()
    count.money()
    count.caps()
    count.erased()
    for name, group in soak.groups.items():
        if charged[group.campaign_id] != count.charged[group.campaign_id]:
            reported = charged[group.campaign_id]
            soak.memory.complain(f"{name}: {reported} nanos reported, {count.charged[group.campaign_id]} in the log")
    return count.lost


def check_descriptors(bidder: KeptBidder, before: dict[str, int], memory: Memory) -> None:
    """No role has more open descriptors than at the start, when the clients have gone."""
    within_s = 90.0  # idle connections are closed after a minute

    def leaked() -> dict[str, int]:
        after = bidder.descriptors()
        return {role: count for role, count in after.items() if count > before[role] + DESCRIPTORS}

    try:
        until(lambda: not leaked(), "closed", within_s=within_s)
    except AssertionError:
        memory.complain(f"descriptors at the end {leaked()}, at the start {before}")


def _rounded(pairs: dict[str, tuple[float, float]]) -> dict[str, list[float]]:
    return {role: [round(second, 1), round(last, 1)] for role, (second, last) in pairs.items()}
