"""A target cost per action or target return of one campaign, kept in actions that really happened. Plain values.

The bid is value x `multiplier`, where the value is target x predicted rate of the action. Two parts are learned:

*Correction*: actions that happened over those that were predicted. Auctions that are won cheaply have fewer actions
than predicted (`bidders.returns`), so a target in predicted actions would be missed. Actions arrive late, and a recent
impression has had a part of its actions at most. So time from bid to action is split into ranges (`EDGES_S`). In each
range, actions are divided by the predicted actions of the impressions that have passed it, those inside by the part
that they have passed: the intensity of an action of this delay (Nelson and Aalen). The correction is their sum. It has
no model of delays, and both sides of a quotient grow and are forgotten together, so late actions bias neither. Ranges
that few impressions have reached are drawn to the usual delays.

*Return dual* l: as in `bidders.returns`, it follows the corrected value of the impressions shown less the money charged
(Feng, Padmanabhan and Wang, arXiv 2208.13713). With the dual m of a budget the multiplier is correction x
(1 + l) / (m + l). With l high, a bid is its value, and no win costs more than it is worth; while the campaign pays less
than its target, l falls and bids rise. The constants are this project's.

An action of a target return is a conversion of the expected value: one of twice this value counts as two.
Letters: N batches of impressions, B ranges of delay.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from leadre.auction.duals import entropic
from leadre.auction.pacing.contract import GoalFactors
from leadre.auction.value import value_at_return_under_budget
from leadre.units import S_PER_DAY, S_PER_MINUTE, US_PER_S

Floats = NDArray[np.float64]

START_DUAL = 10.0  # almost truthful: the first impressions save money for later ones
MIN_DUAL, MAX_DUAL = 0.05, 100.0
STEP = 0.5  # of the logarithm of the dual, where the value of an action was won for nothing
PRIOR_ACTIONS = 5.0  # predicted, and observed by the usual delays, before the first impression
MEMORY_ACTIONS = 200.0  # about the last predicted ones make the correction, in each range of delays
MIN_CORRECTION, MAX_CORRECTION = 0.05, 5.0
MAX_WEIGHT = 10.0  # of one conversion: one false or lucky value moves no bid far
LAST_DELAY_S = 8 * S_PER_DAY  # from a bid to its last action
EDGES_S = (0, *(S_PER_MINUTE << k for k in range(14)), LAST_DELAY_S)  # of the ranges of delay: 1 minute, 2, 4, ...
USUAL_DELAY_S = {"cpc": 60.0, "cpa": 12 * 3_600.0, "roas": 12 * 3_600.0}  # by kind: mean of an exponential law
SAME_AGE = 1 / 16  # batches whose ages differ by this share are joined

_RANGES = len(EDGES_S) - 1
_NONE_B = (0.0,) * _RANGES
_LOG_EDGES = np.log(np.array(EDGES_S[1:], np.float64))


@dataclass(frozen=True)
class GoalState:
    """State of one campaign. ``unit_nanos``: value of one action of a target return, 0 for other goals.

    ``since_us``: when the goal was set. ``learns_from_us``: bids from before teach no correction. ``correction``: as of
    the last tick. ``due_B``: predicted actions of the impressions that have passed each range of delays, as of
    ``credited_us``; ``actions_B``: actions with a delay in it. ``shown_N``: (time of the bids, predicted actions) of
    batches of impressions that may still have actions, oldest first; ``fresh``: the same of those since
    ``credited_us``. ``new_shown`` and ``new_nanos``: predicted actions and charges since the last tick. The totals
    since the goal was set: ``cost_nanos``, ``events`` and ``value_nanos`` of conversions.
    """

    kind: str
    unit_nanos: int = 0
    since_us: int = 0
    learns_from_us: int = 0
    return_dual: float = START_DUAL
    correction: float = 1.0
    credited_us: int = 0
    due_B: tuple[float, ...] = _NONE_B
    actions_B: tuple[float, ...] = _NONE_B
    shown_N: tuple[tuple[int, float], ...] = ()
    fresh: tuple[int, float] = (0, 0.0)
    new_shown: float = 0.0
    new_nanos: int = 0
    cost_nanos: int = 0
    events: int = 0
    value_nanos: int = 0


def with_impression(state: GoalState, predicted: float, bid_at_us: int) -> GoalState:
    """The state after an impression was shown, with its predicted actions and the time of its bid."""
    if predicted <= 0:
        return state
    return replace(state, fresh=_joined(state.fresh, (bid_at_us, predicted)), new_shown=state.new_shown + predicted)


def with_charge(state: GoalState, nanos: int, *, moves_dual: bool = True) -> GoalState:
    """The state after a charge. ``moves_dual``: False for one of a bid whose impression did not count."""
    new_nanos = state.new_nanos + nanos if moves_dual else state.new_nanos
    return replace(state, new_nanos=new_nanos, cost_nanos=state.cost_nanos + nanos)


def with_action(state: GoalState, delay_us: int, weight: float = 1.0) -> GoalState:
    """The state with an action in the correction, by its delay from the bid.

    ``weight``: its value over the expected one, for a target return; below 0 for the correction of a value.
    """
    position = bisect_right(EDGES_S, max(delay_us, 0) / US_PER_S) - 1
    position = min(position, _RANGES - 1)
    actions_B = list(state.actions_B)
    actions_B[position] += weight
    return replace(state, actions_B=tuple(actions_B))


def with_totals(state: GoalState, events: int, value_nanos: int) -> GoalState:
    """The state with actions and their value in its totals."""
    return replace(state, events=state.events + events, value_nanos=state.value_nanos + value_nanos)


def weight_of(value_nanos: int, unit_nanos: int) -> float:
    """The weight of a conversion: 1, or for a target return its value over the expected one."""
    return min(value_nanos / unit_nanos, MAX_WEIGHT) if unit_nanos else 1.0


def with_past(state: GoalState, actions: float, predicted: float) -> GoalState:
    """A new state that has seen actions of impressions of the usual delays, of which none come any more.

    Fewer actions than predicted lower the correction; more do not raise it.
    """
    ratio = min(actions / predicted, 1.0) if predicted > 0 else 0.0
    due = min(predicted, MEMORY_ACTIONS)
    actions_B = tuple((due * ratio * _usual(state.kind)).tolist())
    state = replace(state, due_B=(due,) * _RANGES, actions_B=actions_B)
    return replace(state, correction=_correction(state))


def advance(state: GoalState, worth_nanos: int, now_us: int) -> GoalState:
    """The state after a tick: the dual moves by the impressions and charges since the last one."""
    state = credited(state, now_us)
    state = replace(state, correction=_correction(state))
    value_nanos = state.correction * worth_nanos * state.new_shown
    if value_nanos or state.new_nanos:
        slack = (value_nanos - state.new_nanos) / max(value_nanos + state.new_nanos, worth_nanos)
        dual = entropic(state.return_dual, slack, STEP, MAX_DUAL)
        state = replace(state, return_dual=max(dual, MIN_DUAL), new_shown=0.0, new_nanos=0)
    return state


def credited(state: GoalState, now_us: int) -> GoalState:
    """The state with the delays that impressions have passed up to now.

    After a clock was set back nothing is taken away, and bids of the time that is to come count as of now.
    """
    known = [(min(at_us, now_us), shown) for at_us, shown in state.shown_N]
    if state.fresh[1]:
        known.append((min(state.fresh[0], now_us), state.fresh[1]))
    due_B = np.array(state.due_B)
    if known:
        at_us_N, shown_N = np.array(known, np.float64).T
        before_us_N = np.full(len(known), float(state.credited_us))
        before_us_N[len(state.shown_N) :] = -np.inf  # nothing of the fresh ones is credited yet
        passed_NB = _passed(now_us - at_us_N) - _passed(before_us_N - at_us_N)
        due_B += shown_N @ np.maximum(passed_NB, 0.0)
    kept_B = np.minimum(1.0, MEMORY_ACTIONS / np.maximum(due_B, 1.0))
    return replace(
        state,
        learns_from_us=min(state.learns_from_us, now_us),
        credited_us=now_us,
        due_B=tuple((due_B * kept_B).tolist()),
        actions_B=tuple((np.array(state.actions_B) * kept_B).tolist()),
        shown_N=_batches(known, now_us),
        fresh=(0, 0.0),
    )


def expected(state: GoalState, now_us: int) -> float:
    """Actions of the impressions shown that are still to come."""
    batches = [*state.shown_N, state.fresh]
    at_us_N, shown_N = np.array(batches, np.float64).T
    return max(float((shown_N @ (1.0 - _passed(now_us - at_us_N))) @ _intensity(state)), 0.0)


def multiplier(factors: GoalFactors) -> float:
    """The factor of the value. Its budget dual is 0 while no budget binds."""
    return factors.correction * value_at_return_under_budget(factors.return_dual, factors.budget_dual)


def _correction(state: GoalState) -> float:
    return min(max(float(_intensity(state).sum()), MIN_CORRECTION), MAX_CORRECTION)


def _intensity(state: GoalState) -> Floats:
    """[B] actions over predicted ones in each range of delays.

    The prior of a range is the usual share of the predicted actions; as far as impressions have not passed it, of as
    many actions as the others suggest. More actions there than usual are a sign of short delays, and lower it; priors
    fill up to the predicted actions and a standard deviation.
    """
    usual_B = _usual(state.kind)
    due_B = np.array(state.due_B)
    actions_B = np.array(state.actions_B)
    due = float(usual_B @ due_B) + PRIOR_ACTIONS
    ratio = max(float(actions_B.sum()) + PRIOR_ACTIONS, 0.0) / due
    prior_B = PRIOR_ACTIONS / (due_B + PRIOR_ACTIONS)  # the weight of the prior
    seen_B = actions_B / (due_B + PRIOR_ACTIONS)
    level = min(ratio, 1.0 / max(ratio, 1e-9))
    unseen_B = prior_B * usual_B * (1.0 - prior_B + prior_B * level)
    unseen = float(unseen_B.sum())
    room = max(1.0 + due**-0.5 - float(seen_B.sum()), 0.0)
    return seen_B + unseen_B * (room / unseen if room < unseen else 1.0)


@cache
def _usual(kind: str) -> Floats:
    """[B] the share of actions with a delay in each range, by the usual delay."""
    later = np.exp(-np.array(EDGES_S) / USUAL_DELAY_S[kind])
    later[-1] = 0.0
    return -np.diff(later)


def _passed(age_us_N: Floats) -> Floats:
    """[N, B] the share of each range of delays that impressions of an age have passed: even in the logarithm of age.

    In the first range it is even in age.
    """
    age_s_N = np.maximum(age_us_N / US_PER_S, 0.0)
    log_age_N = np.log(np.maximum(age_s_N, S_PER_MINUTE))
    passed_NB = np.empty((len(age_s_N), _RANGES))
    passed_NB[:, 0] = age_s_N / S_PER_MINUTE
    passed_NB[:, 1:] = (log_age_N[:, None] - _LOG_EDGES[:-1]) / np.diff(_LOG_EDGES)
    return np.clip(passed_NB, 0.0, 1.0)


def _batches(known: list[tuple[int, float]], now_us: int) -> tuple[tuple[int, float], ...]:
    """Batches that may still have actions, those of almost one age joined: some 150 of eight days."""
    batches: list[tuple[int, float]] = []
    for batch in sorted(known):
        age_us = now_us - batch[0]
        if age_us >= LAST_DELAY_S * US_PER_S:
            continue
        if batches and batch[0] - batches[-1][0] <= SAME_AGE * age_us:
            batches[-1] = _joined(batches[-1], batch)
        else:
            batches.append(batch)
    return tuple(batches)


def _joined(batch: tuple[int, float], other: tuple[int, float]) -> tuple[int, float]:
    """One batch at the mean time of two."""
    shown = batch[1] + other[1]
    return other[0] + round((batch[0] - other[0]) * (batch[1] / shown)), shown
