"""Budgets of channels whose inner auctions are unseen: learn which budget each should have, from its value a period.

A channel takes a budget for a period and reports money spent and value won. Budgets alone reach the global optimum over
channels (Deng et al., arXiv 2302.01523). Each channel has a grid of budgets, the arms. One dual m of the total budget
makes the choice separable: a channel takes the arm of the greatest ``upper bound of value - m x budget``, and m moves
with the money that all channels spend. The upper bounds of a channel share what they know: value rises with the budget
and is concave, so no arm exceeds a larger arm's bound, or a smaller one's times the ratio of their budgets. The form of
the bounds and steps is this project's. Money is kept on average over periods; the ledger is the hard stop.

Letters: M channels, K arms.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from leadre.auction.duals import entropic

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SPENT = 0.9  # of its budget: a channel that spends less has no more demand, so its larger arms are worth the same
STEP = 0.1
MAX_DUAL = 1e12


@dataclass(frozen=True, eq=False)
class Channels:
    """State of all channels. ``budget_K`` ascends from above 0; ``count_MK`` and ``value_MK`` are sums of periods.

    ``rate``: money of a period for all channels. ``width``: standard deviations of a Poisson count that a bound adds.
    """

    budget_K: Floats
    rate: float
    count_MK: Floats
    value_MK: Floats
    dual: float
    width: float = 1.0

    @classmethod
    def of(cls, channels: int, budget_K: Floats, rate: float, value_per_money: float) -> Self:
        """Without a past; ``value_per_money`` is a guess of the total, the first dual."""
        nothing_MK = np.zeros((channels, len(budget_K)))
        return cls(budget_K, rate, nothing_MK, nothing_MK, value_per_money)

    def bounds(self) -> Floats:
        """[M, K] upper bounds of the value of a period; infinite in a channel without an observation."""
        count_MK = np.maximum(self.count_MK, 1e-9)
        mean_MK = self.value_MK / count_MK
        error_MK = self.width * np.sqrt((mean_MK + 1.0) / count_MK)
        bound_MK = np.where(self.count_MK > 0, mean_MK + error_MK, np.inf)
        larger_MK = np.minimum.accumulate(bound_MK[:, ::-1], axis=1)[:, ::-1]
        smaller_MK = np.minimum.accumulate(bound_MK / self.budget_K, axis=1) * self.budget_K
        return np.minimum(larger_MK, smaller_MK)

    def choose(self) -> Ints:
        """[M] the arm of each channel."""
        bound_MK = self.bounds()
        gain_MK = np.where(np.isinf(bound_MK), 1e300, bound_MK - self.dual * self.budget_K)
        return np.asarray(gain_MK.argmax(1), np.int64)

    def after(self, arm_M: Ints, spent_M: Floats, value_M: Floats) -> Self:
        """The state after a period."""
        is_seen_M = spent_M >= SPENT * self.budget_K[arm_M]
        is_arm_MK = np.arange(len(self.budget_K)) == arm_M[:, None]
        seen_MK = np.where(is_seen_M[:, None], is_arm_MK, self.budget_K >= spent_M[:, None])
        return replace(
            self,
            count_MK=self.count_MK + seen_MK,
            value_MK=self.value_MK + seen_MK * value_M[:, None],
            dual=entropic(self.dual, 1.0 - float(spent_M.sum()) / self.rate, STEP, MAX_DUAL),
        )

    @property
    def state(self) -> str:
        """All that was learned and set, as JSON."""
        arrays = {name: getattr(self, name).tolist() for name in ("budget_K", "count_MK", "value_MK")}
        return json.dumps(arrays | {"rate": self.rate, "dual": self.dual, "width": self.width})

    @classmethod
    def resume(cls, state: str) -> Self:
        numbers = json.loads(state)
        arrays = {name: np.array(numbers.pop(name), float) for name in ("budget_K", "count_MK", "value_MK")}
        return cls(
            arrays["budget_K"],
            numbers["rate"],
            arrays["count_MK"],
            arrays["value_MK"],
            numbers["dual"],
            numbers["width"],
        )
