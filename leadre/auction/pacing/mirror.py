"""Dual mirror descent (Balseiro, Lu and Mirrokni, arXiv 2011.10124), additive, with the target planned again each tick.

The dual m is the value of one more unit of budget. Each eligible auction moves it against the difference between its
share of the plan and its cost, in units of that share: ``m <- m - eta (1 - cost / target)``, with ``eta`` one over the
root of a day's auctions. A tick counts at least as the auctions that are expected of its time: by their own number,
ticks with many auctions by chance, which spend much, would weigh more than those with few, and a budget with few
auctions a tick would stay unspent. It counts as `MAX_TRAFFIC` times the expected ones at most: in a burst, and when
spend is seen late, a longer step would swing. Steps grow slowly with 1 + m: equal ones would leave a tight budget with
the bids of a market that has changed, and steps in proportion to 1 + m would follow each of the few wins of a small
budget. The bid of a surplus maximiser is value / (1 + m).

The dual of a new campaign starts high. Until its spend first exceeds the plan, it falls by a share of itself as well:
additive steps are too short to cross orders of magnitude.

The steps of a day amount to the root of its auctions, so a campaign with few of them would return to its plan late. Its
bid follows the distance from the plan as well, the less the more its steps do: the proportional part of a dual PID
controller (Balseiro, Lu, Mirrokni and Sivan, arXiv 2202.06152). It grows with the square of the distance, so that the
chance of a few wins hardly moves the bid.
"""

from __future__ import annotations

import math

from leadre.auction.pacing.contract import MIN_AUCTIONS, MIN_MULTIPLIER, START_MULTIPLIER, PacerState, Rate, Slot, clip
from leadre.auction.value import surplus_under_budget

STEP = 0.3
MAX_TRAFFIC = 1.5
OUTAGE = 5.0  # expected auctions; a tick of more that has none is an outage, and teaches nothing
LOOSE = 3.0  # the 1 + m of a whole step: a step is shorter below it, as spend reacts more there, and longer above
TIGHT = 0.25  # power of (1 + m) / LOOSE by which the step grows above it
REACH = 0.05  # of the budget; the distance from the plan up to which the bid follows it
PULL = 2.0  # on the logarithm of 1 + m at that distance, in a day that has no steps
ENOUGH = 17.0  # times 1 + m that the steps of a day can move m; then the distance pulls no longer
SEARCH = 60.0  # fall of the logarithm of the dual over a day of search: by a half in a quarter of an hour
MAX_DUAL = 1 / MIN_MULTIPLIER - 1


class Mirror:
    """``control`` is the dual of the budget; the error is 1 from the moment on at which spend exceeded the plan."""

    def start(self) -> float:
        return 1 / START_MULTIPLIER - 1

    def step(self, state: PacerState, slot: Slot) -> tuple[float, float]:
        error = 1.0 - slot.spent_nanos / slot.target_nanos
        length = slot.tick.position - state.position
        expected = slot.day_auctions * length
        if not slot.eligible and expected > OUTAGE:
            return state.control, state.error
        auctions = min(max(slot.eligible, expected), MAX_TRAFFIC * expected)
        change = _step(state.control, slot.day_auctions) * auctions * error
        if state.error or slot.ahead > 0 or not slot.eligible:
            return clip(state.control - change, 0.0, MAX_DUAL), float(state.error or slot.ahead > 0)
        return clip(state.control * math.exp(-SEARCH * length) - change, 0.0, MAX_DUAL), 0.0

    def rate(self, state: PacerState) -> Rate:
        steps = _step(state.control, state.day_auctions) * state.day_auctions / (1.0 + state.control)
        distance = clip(state.ahead / REACH, -1.0, 1.0)
        pull = PULL * max(1.0 - steps / ENOUGH, 0.0) * distance * abs(distance)
        dual = clip((1.0 + state.control) * math.exp(pull) - 1.0, 0.0, MAX_DUAL)
        return Rate(multiplier=surplus_under_budget(dual))


def _step(dual: float, day_auctions: float) -> float:
    """Change of the dual by an auction that is eligible and spends nothing."""
    tightness = (1.0 + dual) / LOOSE
    return STEP * min(tightness, math.pow(tightness, TIGHT)) / math.sqrt(max(day_auctions, MIN_AUCTIONS))
