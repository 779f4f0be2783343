"""Throttle: the probability to take part rises by a tenth while spend is behind the plan, and falls while it is ahead.

It buys the same money at random, where `mirror` buys the cheapest value. It suits fixed prices, at which a lower bid
wins as often, and gives each auction a known propensity.
"""

from __future__ import annotations

from leadre.auction.pacing.contract import PacerState, Rate, Slot, clip

STEP = 1.1
MIN_PROBABILITY = 1e-4
START = 0.1


class Throttle:
    """``control`` is the probability to take part."""

    def start(self) -> float:
        return START

    def step(self, state: PacerState, slot: Slot) -> tuple[float, float]:
        if not slot.eligible:  # a pause would raise the probability to 1
            return state.control, state.error
        factor = STEP if slot.ahead < 0 else 1 / STEP
        return clip(state.control * factor, MIN_PROBABILITY, 1.0), slot.ahead

    def rate(self, state: PacerState) -> Rate:
        return Rate(participate=state.control)
