"""A market of arrays: second-price auctions with real prices, on which one campaign's pacers and bidders are tried.

Letters: N auctions of the day in the order of their time, T ticks, P parts of ticks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from leadre.auction.bidders.contract import Bidder, Seen
from leadre.auction.pacing.contract import MAX_EARLY, UNPACED, Pacer, Tick, advance, burst_of, rate_of, start
from leadre.auction.pacing.plan import HOURS, Plan

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
B = TypeVar("B", bound=Bidder)

MINUTES = 1_440
SAMPLE = 3_000  # recent auctions, for a pacer that solves on them


@dataclass(frozen=True)
class Day:
    """Auctions in which a campaign may bid: position in the day [0, 1), value to the campaign, lowest winning bid."""

    position_N: Floats
    value_N: Floats
    price_N: Floats

    def demand_H(self) -> Floats:
        """[H] money that the campaign would spend without pacing and budget, by hour."""
        hours_N = (self.position_N * HOURS).astype(np.int64)
        return np.bincount(hours_N, self.price_N * (self.value_N >= self.price_N), HOURS).astype(np.float64)

    def is_feasible(self, plan: Plan, budget_nanos: float, margin: float = 1.05) -> bool:
        """Whether the demand of each hour is at least ``margin`` times the money that the plan has for it."""
        by_H = np.array([plan.by(hour / HOURS) for hour in range(HOURS + 1)])
        return bool((self.demand_H() >= margin * budget_nanos * np.diff(by_H)).all())


@dataclass(frozen=True)
class PacedDay:
    """The result of a day. Sums are as of the end of each tick; ``multiplier_T`` is the factor of the value that was
    bid then, times the probability to take part."""

    spent_T: Floats
    planned_T: Floats
    multiplier_T: Floats
    won_N: Bools

    def value(self, value_N: Floats) -> float:
        """The sum of values won."""
        return float(value_N[self.won_N].sum())

    def off_plan(self, budget_nanos: float) -> float:
        """The largest difference of spend and plan over the day, as a share of the budget."""
        return float(np.abs(self.spent_T - self.planned_T).max() / budget_nanos)


def pace_day(
    day: Day,
    plan: Plan,
    budget_nanos: int,
    pacer: Pacer | None,
    *,
    day_auctions: float | None,
    delay: int = 0,
    ticks: int = MINUTES,
    seed: int = 0,
) -> PacedDay:
    """Bid through a day, with a tick of the pacer after each part of it; None bids the value.

    ``day_auctions``: of the forecast, by which a tick with a burst of auctions has early ticks within. ``delay``: ticks
    after which the pacer sees what was spent. A budget that cannot pay a price does not win the auction.
    """
    end_P = _ends(day.position_N, ticks, burst_of(day_auctions or np.inf))
    bounds = [0, *np.searchsorted(day.position_N, end_P[:-1]).tolist(), len(day.position_N)]
    seen_P = np.searchsorted(end_P, end_P - delay / ticks + 1e-9)
    draws_N = np.random.default_rng(seed).random(len(day.position_N))
    won_N = np.zeros(len(day.position_N), bool)
    spent = [0.0]
    multipliers = []
    state = None if pacer is None else start(pacer)
    for number, end in enumerate(end_P.tolist()):
        part = slice(bounds[number], bounds[number + 1])
        rate = UNPACED if pacer is None or state is None else rate_of(pacer, state)
        wants_N = (day.value_N[part] * rate.multiplier >= day.price_N[part]) & (draws_N[part] < rate.participate)
        won_N[part] = wants_N & _payable(day.price_N[part] * wants_N, budget_nanos - spent[-1])
        spent.append(spent[-1] + float((day.price_N[part] * won_N[part]).sum()))
        multipliers.append(rate.participate * rate.multiplier)
        if pacer is not None and state is not None:
            past = slice(max(0, part.stop - SAMPLE), part.stop)
            seen = Tick(
                position=end,
                spent_nanos=spent[seen_P[number]],
                eligible=part.stop,
                day_auctions=day_auctions,
                value_N=day.value_N[past],
                price_N=day.price_N[past],
            )
            state = advance(pacer, state, plan, budget_nanos, seen)
    planned = [budget_nanos * plan.by((tick + 1) / ticks) for tick in range(ticks)]
    last_T = np.searchsorted(end_P, np.arange(1, ticks + 1) / ticks - 1e-9)
    return PacedDay(np.array(spent[1:])[last_T], np.array(planned), np.array(multipliers)[last_T], won_N)


def _ends(position_N: Floats, ticks: int, burst: float) -> Floats:
    """[P] the ends of ticks and of the early ticks within those that have more auctions than ``burst``."""
    count_T = np.histogram(position_N, ticks, range=(0, 1))[0]
    parts_T = np.clip(np.ceil(count_T / burst), 1, MAX_EARLY).astype(np.int64)
    first_T = parts_T.cumsum() - parts_T
    within_P = np.arange(parts_T.sum()) - np.repeat(first_T, parts_T) + 1
    ends_P: Floats = (np.repeat(np.arange(ticks), parts_T) + within_P / np.repeat(parts_T, parts_T)) / ticks
    return ends_P


def _payable(cost_N: Floats, left_nanos: float) -> Sequence[bool] | Bools:
    """[N] whether each auction can be paid after those before it; an unpayable one leaves the money to the next."""
    if cost_N.sum() <= left_nanos:
        return np.ones(len(cost_N), bool)
    payable = []
    for cost in cost_N.tolist():
        payable.append(cost <= left_nanos)
        left_nanos -= cost * payable[-1]
    return payable


def bid_episodes(bidder: B, pctr_N: Floats, price_N: Floats, budget: float, auctions: int) -> tuple[Floats, Bools, B]:
    """Bid through auctions in order, with a new ``budget`` after each so many; unspent money is lost.

    Returns ([N] bids, [N] won, the bidder afterwards). A last, shorter episode has a whole budget, and the bidder
    expects as many auctions as in the others.
    """
    bid_N = np.zeros(len(pctr_N))
    left = budget
    for i, (pctr, price) in enumerate(zip(pctr_N.tolist(), price_N.tolist(), strict=True)):
        place = i % auctions
        left = budget if place == 0 else left
        bid = bidder.bid(left, auctions - place, pctr)
        bid_N[i] = bid
        won = bid >= price
        bidder = bidder.after(Seen(left, auctions - place, pctr, bid, price if won else None))
        left -= price * won
    return bid_N, bid_N >= price_N, bidder
