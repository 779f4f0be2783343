"""Dual mirror descent behind the contract of the bidders: the dual of the budget moves with the cost of each auction.

The aim is the most value under a budget: the bid is value / dual, with pCTR x past cost of a click as value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from leadre.auction.bidders.contract import History, Seen, State
from leadre.auction.duals import entropic
from leadre.auction.value import value_under_budget

START = 4.0  # too low a dual would spend a budget on its first auctions
MAX_DUAL = 1_000.0
STEP = 0.01

Update = Callable[[float, float, float, float], float]


@dataclass(frozen=True)
class Mirror:
    """``rate``: money that an auction may cost on average. ``update`` is `duals.additive` or `duals.entropic`."""

    history: History
    rate: float
    update: Update = entropic
    step: float = STEP
    dual: float = START

    def bid(self, left: float, n: int, pctr: float) -> float:
        return min(pctr * self.history.click_cost * value_under_budget(self.dual), left, self.history.cap)

    def after(self, seen: Seen) -> Self:
        if seen.bid >= seen.left:  # the bid of the dual was cut: its cost is unknown, and 0 would let the dual fall
            return self
        gradient = 1.0 - (seen.price or 0.0) / self.rate
        return replace(self, dual=self.update(self.dual, gradient, self.step, MAX_DUAL))

    @property
    def state(self) -> State:
        return {"dual": self.dual}

    def resume(self, state: State) -> Self:
        return replace(self, dual=float(np.array(state["dual"])))
