"""A target cost per action or target return of one campaign, kept in actions that really happened. Plain values.

The bid is value x `multiplier`, where the value is target x predicted rate of the action. Two parts are learned:

*Correction*: actions of shown impressions over those that were predicted. Auctions that are won cheaply have fewer
actions than predicted (`bidders.returns`), so a target in predicted actions would be missed. Actions arrive late:
an impression counts by the probability that its action would have happened by now.

*Return dual* l: as in `bidders.returns`, it follows the corrected value of the impressions shown less the money charged
(Feng, Padmanabhan and Wang, arXiv 2208.13713). With the dual m of a budget the multiplier is correction x
(1 + l) / (m + l). With l high, a bid is its value, and no win costs more than it is worth; while the campaign pays less
than its target, l falls and bids rise. The constants are this project's.

An action of a target return is a conversion of the expected value: one of twice this value counts as two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from leadre.auction.duals import entropic
from leadre.auction.pacing.contract import GoalFactors
from leadre.auction.value import value_at_return_under_budget
from leadre.units import US_PER_HOUR, US_PER_S

START_DUAL = 10.0  # almost truthful: the first impressions save money for later ones
MIN_DUAL, MAX_DUAL = 0.05, 100.0
STEP = 0.5  # of the logarithm of the dual, where the value of an action was won for nothing
PRIOR_ACTIONS = 5.0  # predicted and observed, before the first impression
MEMORY_ACTIONS = 200.0  # about the last ones make the correction
MIN_CORRECTION, MAX_CORRECTION = 0.05, 5.0
MAX_WEIGHT = 10.0  # of one conversion: one false or lucky value moves no bid far
KEPT_HOURS = 24 * 8  # of impressions that may still have an action
USUAL_DELAY_S = {"cpc": 60.0, "cpa": 12 * 3_600.0, "roas": 12 * 3_600.0}  # by kind; as if seen once


@dataclass(frozen=True)
class GoalState:
    """State of one campaign. ``unit_nanos``: value of one action of a target return, 0 for other goals.

    ``shown_H``: (hour since 1970, predicted actions of its impressions), oldest first. ``old_shown``: predicted actions
    of earlier hours. ``actions``: observed. These three are forgotten together (`MEMORY_ACTIONS`). ``delay_s``:
    sum of the delays of ``delays`` actions, from bid to action. ``new_shown`` and ``new_nanos``: predicted actions
    and charges since the last tick. The totals since the goal was set: ``cost_nanos``, ``events`` and
    ``value_nanos`` of conversions.
    """

    kind: str
    unit_nanos: int = 0
    return_dual: float = START_DUAL
    shown_H: tuple[tuple[int, float], ...] = ()
    old_shown: float = 0.0
    actions: float = 0.0
    delay_s: float = 0.0
    delays: int = 0
    new_shown: float = 0.0
    new_nanos: int = 0
    cost_nanos: int = 0
    events: int = 0
    value_nanos: int = 0


def with_impression(state: GoalState, predicted: float, at_us: int) -> GoalState:
    """The state after an impression was shown, with its predicted actions."""
    hour = at_us // US_PER_HOUR
    shown_H = state.shown_H
    if shown_H and shown_H[-1][0] >= hour:  # also after a clock was set back
        shown_H = (*shown_H[:-1], (shown_H[-1][0], shown_H[-1][1] + predicted))
    else:
        shown_H = (*shown_H, (hour, predicted))
    old = [shown for started, shown in shown_H if started < hour - KEPT_HOURS]
    return replace(
        state,
        shown_H=shown_H[len(old) :],
        old_shown=state.old_shown + sum(old),
        new_shown=state.new_shown + predicted,
    )


def with_charge(state: GoalState, nanos: int) -> GoalState:
    """The state after a charge."""
    return replace(state, new_nanos=state.new_nanos + nanos, cost_nanos=state.cost_nanos + nanos)


def with_action(state: GoalState, delay_us: int, value_nanos: int = 0, weight: float = 1.0) -> GoalState:
    """The state after an action; ``weight``: its value over the expected one, for a target return."""
    return replace(
        state,
        actions=state.actions + min(weight, MAX_WEIGHT),
        delay_s=state.delay_s + max(delay_us, 0) / US_PER_S,
        delays=state.delays + 1,
        events=state.events + 1,
        value_nanos=state.value_nanos + value_nanos,
    )


def advance(state: GoalState, worth_nanos: int, now_us: int) -> GoalState:
    """The state after a tick: the dual moves by the impressions and charges since the last one."""
    value_nanos = correction(state, now_us) * worth_nanos * state.new_shown
    if value_nanos or state.new_nanos:
        slack = (value_nanos - state.new_nanos) / max(value_nanos + state.new_nanos, worth_nanos)
        dual = entropic(state.return_dual, slack, STEP, MAX_DUAL)
        state = replace(state, return_dual=max(dual, MIN_DUAL), new_shown=0.0, new_nanos=0)
    return _forgotten(state, now_us) if due(state, now_us) > MEMORY_ACTIONS else state


def correction(state: GoalState, now_us: int) -> float:
    """Actions of shown impressions over predicted ones, as far as they are due."""
    ratio = (state.actions + PRIOR_ACTIONS) / (due(state, now_us) + PRIOR_ACTIONS)
    return min(max(ratio, MIN_CORRECTION), MAX_CORRECTION)


def due(state: GoalState, now_us: int) -> float:
    """Predicted actions that would have happened by now: delays are taken as exponential with the observed mean.

    Delays that are not over yet are unseen, so at first too many actions are due, and bids are too low.
    """
    return state.old_shown + sum(shown * _due_share(state, hour, now_us) for hour, shown in state.shown_H)


def expected(state: GoalState, now_us: int) -> float:
    """Actions of the impressions shown that are still to come."""
    shown = state.old_shown + sum(shown for _, shown in state.shown_H)
    return correction(state, now_us) * (shown - due(state, now_us))


def multiplier(factors: GoalFactors) -> float:
    """The factor of the value. Its budget dual is 0 while no budget binds."""
    return factors.correction * value_at_return_under_budget(factors.return_dual, factors.budget_dual)


def _due_share(state: GoalState, hour: int, now_us: int) -> float:
    """The share of the actions of an hour's impressions that would have happened by now."""
    mean_s = (USUAL_DELAY_S[state.kind] + state.delay_s) / (1 + state.delays)
    start_us = hour * US_PER_HOUR
    middle_us = (start_us + min(max(now_us, start_us), start_us + US_PER_HOUR)) / 2
    return -math.expm1(-max(now_us - middle_us, 0.0) / US_PER_S / max(mean_s, 1e-3))


def _forgotten(state: GoalState, now_us: int) -> GoalState:
    """The state with half of the memory of the correction. Actions that are not due yet come later, and stay."""
    return replace(
        state,
        shown_H=tuple((hour, shown * (1 - _due_share(state, hour, now_us) / 2)) for hour, shown in state.shown_H),
        old_shown=state.old_shown / 2,
        actions=state.actions / 2,
        delay_s=state.delay_s / 2,
        delays=state.delays // 2,
    )
