"""Watch of the rates behind bids: the sum of probabilities against the sum of their events, and an alarm.

An impression adds the probability that its bid assumed, its event adds 1. The alarm compares the sums of about the last
`WINDOW` expected events: both decay together, so that the window is one of events and not of time. Sums are in memory
and start with the process; the counters of `telemetry` have the totals.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from leadre import telemetry
from leadre.serve.events.tokens import Token
from leadre.types import EventKind

SLICES = ("seen", "new", "counts")  # a ranker's rate, by whether the object was in the history; the rate of counts
WINDOW = 2_000.0  # expected events
MIN_EVENTS = 200.0  # expected or observed; the noise of 200 events is 7 %
RANGE = (0.8, 1.25)  # of expected over observed


@dataclass
class Sums:
    """Expected and observed events of one bid type and slice, decayed."""

    expected: float = 0.0
    observed: float = 0.0

    def add_impression(self, p: float) -> None:
        """Add the probability of one impression."""
        kept = math.exp(-p / WINDOW)
        self.expected = kept * self.expected + p
        self.observed *= kept

    def add_event(self) -> None:
        """Add one event."""
        self.observed += 1.0

    @property
    def is_alarming(self) -> bool:
        """Whether the ratio is outside `RANGE`, and there are enough events to say so."""
        if max(self.expected, self.observed) < MIN_EVENTS:
            return False
        low, high = RANGE
        return not low * self.observed <= self.expected <= high * self.observed


class CalibrationWatch:
    """Sums by bid type and slice; the writer adds each new event once."""

    def __init__(self) -> None:
        self.sums: defaultdict[tuple[str, str], Sums] = defaultdict(Sums)

    def add(self, kind: EventKind, token: Token) -> None:
        """Add a new event of a bid; only events of bids with a rate count, and no tests."""
        rate = token.rate
        if token.is_test or not token.may_measure or token.rate_slice not in SLICES or rate is None:
            return
        sums = self.sums[token.charge_type, token.rate_slice]
        if kind == "imp":
            sums.add_impression(rate.p)
            telemetry.EXPECTED_EVENTS.labels(token.charge_type, token.rate_slice).inc(rate.p)
        elif kind == rate.event:
            sums.add_event()
            telemetry.OBSERVED_EVENTS.labels(token.charge_type, token.rate_slice).inc()
        telemetry.MISCALIBRATED.labels(token.charge_type, token.rate_slice).set(sums.is_alarming)
