"""Contract of the pacers: from a state and the figures of a tick to the next state, and from a state to a rate.

A pacer only chooses bids. The ledger bounds what is spent, so a pacer that is wrong overdraws no budget. States are
plain values: a replay of the ticks gives the same states. The auctions of a tick are those in which the campaign could
have bid, whether it did or not: bids depend on the pacer itself. Money of a tick is charged or reserved by bids whose
event may still come, because charges alone arrive late.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from leadre.auction.pacing.plan import Plan

Floats = NDArray[np.float64]

START_MULTIPLIER = 0.1  # of a campaign without a past: at 1, the first minutes would spend much of a small budget
MIN_MULTIPLIER = 1e-3
MIN_AUCTIONS = 100.0  # of a day, so that the first auctions of an unknown campaign do not move it far
MIN_TARGET = 1e-4  # of the budget: an hour of almost no planned money would divide by almost 0
MAX_AHEAD = 0.05  # of the budget
MIN_AHEAD = 0.02  # up to it a campaign bids after any jump: open bids that are never shown would stop it
JUMPS = 2.0  # a campaign waits for its plan if so many jumps could take it further ahead than `MAX_AHEAD`
JUMP_MEMORY = 1 / 24  # of a day, after which a jump counts a third
MINUTE = 1 / 1_440  # of a day: from one tick to the next
BURST = 2.0  # times the mean auctions of a minute; after so many a tick is early
MIN_BURST = 10  # auctions
MAX_EARLY = 10  # ticks in a minute, of bursts of auctions
BURST_SHARE = 0.01  # of the budget; after bids for so much the next tick is at once


class GoalFactors(NamedTuple):
    """The parts of a `leadre.auction.goal.multiplier`."""

    correction: float
    return_dual: float
    budget_dual: float


class Rate(NamedTuple):
    """The probability to take part in an auction, in [0, 1], and the factor of the value that is bid.

    The factor is at most 1 for a campaign without a goal. ``goal``: its parts for a campaign with one.
    """

    participate: float = 1.0
    multiplier: float = 1.0
    goal: GoalFactors | None = None


UNPACED = Rate()
WAITING = Rate(participate=0.0)


@dataclass(frozen=True)
class PacerState:
    """State of one campaign: the last tick, and the pacer's own numbers.

    ``position`` of the day, ``spent_nanos`` and ``eligible`` auctions of the day as of the last tick. ``control`` is
    the pacer's own: a dual, a log-multiplier or a probability. ``error``: the pacer's own memory of the last tick.
    ``ahead``: spent less planned, as a share of the budget. ``jump``: the largest spend of a tick above its plan, of
    late, as the same share. ``lost_nanos``: spend that the pacer learned from and that fell back, as open bids were
    lost; the next spend repays it. ``day_auctions``: as in `Slot`; 0 before the first slot.
    """

    control: float
    error: float = 0.0
    position: float = 0.0
    spent_nanos: float = 0.0
    eligible: int = 0
    ahead: float = 0.0
    jump: float = 0.0
    lost_nanos: float = 0.0
    day_auctions: float = 0.0

    @property
    def waits(self) -> bool:
        """Whether the next ticks could take the campaign too far ahead of its plan."""
        return self.ahead > max(MAX_AHEAD - JUMPS * self.jump, MIN_AHEAD)


@dataclass(frozen=True)
class Tick:
    """Figures of a campaign at a moment of its day, which began at position 0.

    ``day_auctions``: eligible auctions that the forecast expects of the whole day; None without a forecast.
    ``value_N``, ``price_N``: recent auctions as a sample of value and lowest winning bid, for `resolve` alone.
    """

    position: float
    spent_nanos: float
    eligible: int
    day_auctions: float | None = None
    value_N: Floats | Sequence[float] = ()
    price_N: Floats | Sequence[float] = ()


@dataclass(frozen=True)
class Slot:
    """The time between two ticks: money to be spent by plan and money spent, auctions in it and in a day.

    ``ahead``: spent less planned since the day began, as a share of the budget. ``next_nanos``: to be spent in as long
    a time after it.
    """

    target_nanos: float
    spent_nanos: float
    eligible: int
    day_auctions: float
    ahead: float
    next_nanos: float
    tick: Tick


class Pacer(Protocol):
    """A rule of pacing; its name is in `registry.PACERS`."""

    def start(self) -> float:
        """The control of a campaign without a past."""
        ...

    def step(self, state: PacerState, slot: Slot) -> tuple[float, float]:
        """(control, error) after a slot."""
        ...

    def rate(self, state: PacerState) -> Rate:
        """How to bid until the next tick; use `rate_of`."""
        ...


def start(pacer: Pacer, before: PacerState | None = None) -> PacerState:
    """The state in which a day begins: the control of the day ``before`` is kept, as markets last longer than days."""
    return PacerState(pacer.start()) if before is None else PacerState(before.control, before.error)


def rate_of(pacer: Pacer, state: PacerState) -> Rate:
    """How a campaign bids until the next tick: as the pacer has it, or not at all while it is far ahead of its plan."""
    return WAITING if state.waits else pacer.rate(state)


def advance(pacer: Pacer, state: PacerState, plan: Plan, budget_nanos: int, tick: Tick) -> PacerState:
    """The state after a tick. The rest of the budget is planned again over the rest of the day.

    A tick that is not later than the last one changes nothing. A campaign has learned nothing if it waited, or if its
    plan has no money for the time since the last tick.
    """
    if tick.position <= state.position or budget_nanos <= 0:
        return state
    ahead = tick.spent_nanos / budget_nanos - plan.by(tick.position)
    memory = math.exp(-(tick.position - state.position) / JUMP_MEMORY)
    jump = max(ahead - state.ahead, state.jump * memory)
    seen = replace(
        state, position=tick.position, spent_nanos=tick.spent_nanos, eligible=tick.eligible, ahead=ahead, jump=jump
    )
    if state.waits or plan.by(tick.position) <= plan.by(state.position):
        return seen
    left_nanos = max(budget_nanos - state.spent_nanos, 0.0)
    planned = plan.by(state.position)
    rest = max(1.0 - planned, 1e-9)
    share = plan.by(tick.position) - planned
    length = tick.position - state.position
    next_share = plan.by(tick.position + length) - plan.by(tick.position)
    least_nanos = MIN_TARGET * budget_nanos * length
    day_auctions = tick.day_auctions or tick.eligible / tick.position
    spent_nanos = tick.spent_nanos - state.spent_nanos - state.lost_nanos
    slot = Slot(
        target_nanos=max(left_nanos * min(share / rest, 1.0), least_nanos),
        spent_nanos=max(spent_nanos, 0.0),
        eligible=max(tick.eligible - state.eligible, 0),
        day_auctions=max(day_auctions, MIN_AUCTIONS),
        ahead=ahead,
        next_nanos=max(budget_nanos - tick.spent_nanos, 0.0) * min(next_share / max(1.0 - planned - share, 1e-9), 1.0),
        tick=tick,
    )
    control, error = pacer.step(state, slot)
    lost_nanos = max(-spent_nanos, 0.0)
    return replace(seen, control=control, error=error, lost_nanos=lost_nanos, day_auctions=slot.day_auctions)


def burst_of(day_auctions: float) -> float:
    """Auctions since a tick after which the next one is early, so that a minute's spend does not outrun the pacer.

    ``day_auctions``: as in `Tick`. There are at most `MAX_EARLY` ticks in a minute.
    """
    return max(BURST * day_auctions * MINUTE, MIN_BURST)


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)
