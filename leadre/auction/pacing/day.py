"""A campaign's day: its plan and its pacer from tick to tick, as plain values.

A *frame* is the part of a day that one plan covers. It begins with the day, or when the campaign or its plan does:
money that was spent before is no part of it. Another begin or end of the campaign begins a frame as well, and so does
a time before the last one, after a clock was set back or the campaign's zone changed: no clock stops the pacing. The
control of the pacer is kept in all cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from leadre.auction.pacing import plan as plans
from leadre.auction.pacing.contract import (
    BURST_SHARE,
    MINUTE,
    UNPACED,
    WAITING,
    PacerState,
    Rate,
    Tick,
    advance,
    burst_of,
    rate_of,
    start,
)
from leadre.auction.pacing.plan import USUAL_DAY, Plan
from leadre.auction.pacing.registry import PACERS
from leadre.types import PacerName, PlanName

MINUTES_A_QUARTER = 15


@dataclass(frozen=True)
class PacingRules:
    """The settings of a campaign that has a plan; as in `leadre.types.Campaign`. ``hours``: of targeting; () = all."""

    plan: PlanName
    pacer: PacerName
    hour_shares: tuple[int, ...] = ()
    hours: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DayFigures:
    """Figures of a campaign at a moment of its day.

    ``position``: the elapsed part of the day. The campaign runs from the position ``opens`` to ``closes``.
    ``spent_nanos``: charged on the day, or expected of the bids that wait for their event. ``eligible``: auctions of
    the day in which the campaign could have bid; ``traffic_DQ``: the same in a quarter of an hour, of earlier days, as
    `plan.by_quarter`. ``quarter_S``: the quarter of the clock in each quarter of an hour of the day.
    """

    day: str
    position: float
    budget_nanos: int
    spent_nanos: float
    eligible: int
    traffic_DQ: Sequence[Sequence[float]] = ()
    opens: float = 0.0
    closes: float = 1.0
    quarter_S: tuple[int, ...] = USUAL_DAY


@dataclass(frozen=True, kw_only=True)
class CampaignDay:
    """The state of a campaign's pacing. ``begins``: position of the frame; ``before_nanos``: spent before it.

    ``opens``, ``closes``, ``quarter_S``: as in `DayFigures`. ``before_eligible``: auctions of the day before the frame.
    ``forecast_Q``: auctions expected of each quarter, () without a forecast. ``auctions``: expected of the day.
    """

    day: str
    rules: PacingRules
    pacer: PacerState
    begins: float
    closes: float
    before_nanos: float
    before_eligible: int
    budget_nanos: int
    spent_nanos: float
    forecast_Q: tuple[float, ...] = ()
    opens: float = 0.0
    quarter_S: tuple[int, ...] = USUAL_DAY
    auctions: float = 0.0

    @property
    def burst(self) -> float:
        """Auctions after which the next tick is early; as `burst_of`."""
        return burst_of(self.auctions)

    @property
    def burst_nanos(self) -> float:
        """Money of bids after which the next tick is at once: others that wait leave a campaign many auctions."""
        return BURST_SHARE * self.budget_nanos

    @property
    def plan(self) -> Plan:
        """The plan of the frame."""
        return _plan(self.rules, self.forecast_Q, self.quarter_S, self.begins, self.closes)

    @property
    def planned_nanos(self) -> float:
        """Money of the day that was to be spent by the last tick."""
        return self.before_nanos + (self.budget_nanos - self.before_nanos) * self.plan.by(self.pacer.position)

    @property
    def rate(self) -> Rate:
        """How the campaign bids until the next tick. It waits while its plan has no money."""
        if self.rules.pacer == "off":
            return UNPACED
        position = min(self.pacer.position, 1.0 - MINUTE)
        if self.plan.by(position + MINUTE) <= self.plan.by(position):
            return WAITING
        return rate_of(PACERS[self.rules.pacer], self.pacer)


def tick(before: CampaignDay | None, rules: PacingRules, figures: DayFigures) -> CampaignDay:
    """The state after a tick. ``before``: None for a campaign that had no plan."""
    if before is None or not _continues(before, rules, figures):
        before = _begin(before, rules, figures)
    pacer = before.pacer
    budget_nanos = figures.budget_nanos - before.before_nanos
    spent_nanos = figures.spent_nanos - before.before_nanos
    since = max(figures.position - before.begins, MINUTE)
    expected = (figures.eligible - before.before_eligible) / since
    if before.forecast_Q:
        expected = plans.auctions_of(before.forecast_Q, before.quarter_S) or expected
    if rules.pacer != "off" and spent_nanos < budget_nanos:
        now = Tick(figures.position, spent_nanos, figures.eligible, expected)
        pacer = advance(PACERS[rules.pacer], pacer, before.plan, round(budget_nanos), now)
    elif figures.position > pacer.position:  # without money there is nothing to learn
        pacer = replace(
            pacer,
            position=figures.position,
            spent_nanos=spent_nanos,
            eligible=figures.eligible,
            ahead=spent_nanos / max(budget_nanos, 1.0) - before.plan.by(figures.position),
        )
    return replace(
        before,
        pacer=pacer,
        budget_nanos=figures.budget_nanos,
        spent_nanos=figures.spent_nanos,
        auctions=expected,
    )


def day_budget_nanos(daily_nanos: int, total_left_nanos: int | None, open_us: int, rest_us: int) -> int:
    """The budget of a day: the daily one, else its part of what is left of the total, by time; never more than is left.

    ``total_left_nanos``: None without a total. ``open_us``: time of the day in which the campaign runs, ``rest_us``:
    the same until its end.
    """
    if total_left_nanos is None:
        return daily_nanos
    if daily_nanos:
        return max(0, min(daily_nanos, total_left_nanos))
    return max(0, min(total_left_nanos, -(-total_left_nanos * open_us // max(rest_us, 1))))


def _continues(before: CampaignDay, rules: PacingRules, figures: DayFigures) -> bool:
    """Whether the frame of the last tick covers this one."""
    goes_back = before.begins < before.pacer.position > figures.position + MINUTE
    is_same_day = (before.day, before.quarter_S) == (figures.day, figures.quarter_S)
    is_same = (before.rules, before.opens, before.closes) == (rules, figures.opens, figures.closes)
    return is_same_day and is_same and not goes_back


def _begin(before: CampaignDay | None, rules: PacingRules, figures: DayFigures) -> CampaignDay:
    """A new frame: from the begin of a day that follows on the last one, else from now on."""
    follows = before is not None and before.day < figures.day and before.rules.plan == rules.plan
    begins = figures.opens if follows else max(figures.opens, figures.position)
    before_nanos = 0.0 if follows else figures.spent_nanos
    keeps = before is not None and before.rules.pacer == rules.pacer
    pacer = PacerState(0.0)
    if rules.pacer != "off":
        pacer = start(PACERS[rules.pacer], before.pacer if before is not None and keeps else None)
    before_eligible = 0 if follows else figures.eligible
    pacer = replace(pacer, position=begins, eligible=before_eligible)
    forecast_Q = plans.forecast(figures.traffic_DQ, rules.hours)
    return CampaignDay(
        day=figures.day,
        rules=rules,
        pacer=pacer,
        begins=begins,
        opens=figures.opens,
        closes=figures.closes,
        before_nanos=before_nanos,
        before_eligible=before_eligible,
        budget_nanos=figures.budget_nanos,
        spent_nanos=figures.spent_nanos,
        forecast_Q=() if forecast_Q is None else tuple(forecast_Q.tolist()),
        quarter_S=figures.quarter_S,
    )


@lru_cache(maxsize=4096)
def _plan(
    rules: PacingRules, forecast_Q: tuple[float, ...], quarter_S: tuple[int, ...], begins: float, closes: float
) -> Plan:
    if rules.plan == "hours":
        plan = plans.by_hours(rules.hour_shares, rules.hours, quarter_S)
    elif rules.plan == "front_loaded":
        plan = plans.front_loaded(rules.hours, quarter_S)
    elif rules.plan == "traffic" and forecast_Q:
        plan = plans.by_traffic(forecast_Q, rules.hours, quarter_S)
    else:
        plan = plans.even(rules.hours, quarter_S)
    return plan if begins <= 0.0 and closes >= 1.0 else _between(plan, begins, closes)


def _between(plan: Plan, begins: float, closes: float) -> Plan:
    """The plan without its part before ``begins`` and after ``closes``, to the minute; as it is if nothing is left."""
    share_M = np.repeat(np.array(plan.share_S), MINUTES_A_QUARTER)
    minutes = len(share_M)
    first = int(np.floor(round(begins * minutes, 6)))  # a product may be off by an ulp
    end = int(np.ceil(round(closes * minutes, 6)))
    share_M[:first] = 0.0
    share_M[end:] = 0.0
    return Plan.of(share_M) if share_M.any() else plan
