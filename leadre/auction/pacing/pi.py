"""PI controller on the log of the multiplier, in velocity form: it needs no forecast of auctions, but settles late."""

from __future__ import annotations

import math

from leadre.auction.pacing.contract import MIN_MULTIPLIER, START_MULTIPLIER, PacerState, Rate, Slot, clip

PROPORTIONAL = 0.4
INTEGRAL = 0.05  # for each slot of `SLOT`
CATCH_UP = 0.02  # for the spend behind plan, in slots' targets
SLOT = 5 / 1440  # of a day, for which the gains are set


class PI:
    """``control`` is the log of the multiplier; the error is that of the slot's target, clipped to [-1, 1]."""

    def start(self) -> float:
        return math.log(START_MULTIPLIER)

    def step(self, state: PacerState, slot: Slot) -> tuple[float, float]:
        if not slot.eligible:  # with no auction to bid in, an integral would wind up
            return state.control, state.error
        length = (slot.tick.position - state.position) / SLOT
        error = clip((slot.target_nanos - slot.spent_nanos) / slot.target_nanos, -1.0, 1.0)
        behind = clip(-slot.ahead / SLOT, -1.0, 1.0)
        change = PROPORTIONAL * (error - state.error) + min(length, 1.0) * (INTEGRAL * error + CATCH_UP * behind)
        return clip(state.control + change, math.log(MIN_MULTIPLIER), 0.0), error

    def rate(self, state: PacerState) -> Rate:
        return Rate(multiplier=math.exp(state.control))
