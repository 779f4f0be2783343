"""Re-solving: the dual that would have spent the slot's target on a sample of past auctions, computed at each tick.

It needs the lowest winning bid of past auctions. If a loss reports no price, draw one above the own bid from the law of
the price (`shading`).
"""

from __future__ import annotations

import numpy as np

from leadre.auction.pacing.contract import MIN_MULTIPLIER, START_MULTIPLIER, PacerState, Rate, Slot


class Resolve:
    """``control`` is the multiplier. Without a sample or auctions it stays."""

    def start(self) -> float:
        return START_MULTIPLIER

    def step(self, state: PacerState, slot: Slot) -> tuple[float, float]:
        value_N = np.asarray(slot.tick.value_N, float)
        price_N = np.asarray(slot.tick.price_N, float)
        error = 1.0 - slot.spent_nanos / slot.target_nanos
        if not len(value_N) or not slot.eligible:
            return state.control, error
        needed_N = np.maximum(price_N / np.maximum(value_N, 1e-300), MIN_MULTIPLIER)
        order_N = np.argsort(needed_N, kind="stable")
        spend_N = np.cumsum(price_N[order_N]) * slot.eligible / len(price_N)  # at the multiplier of each
        affordable = int(np.searchsorted(spend_N, slot.next_nanos, side="right"))
        if affordable == len(spend_N):
            return 1.0, error
        return float(np.clip(needed_N[order_N][max(affordable - 1, 0)], MIN_MULTIPLIER, 1.0)), error

    def rate(self, state: PacerState) -> Rate:
        return Rate(multiplier=state.control)
