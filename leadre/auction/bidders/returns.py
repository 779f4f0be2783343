"""A target cost per click or a target return, with or without a budget: duals of both constraints, and a corrector.

The aim is the most value won while the sum of prices is at most the sum of values; the target is in the value
(`auction.value`), so a target cost per click T has value T x click rate, and a target return R has value amount x click
rate / R. The dual l of the return moves by the generalised Kullback-Leibler divergence, and the bid of a truthful
auction is value x (1 + l) / l (Feng, Padmanabhan and Wang, arXiv 2208.13713; step, start and scale are this project's).
Auctions that are won cheaply have fewer clicks than predicted, because competitors know more than the prediction. So
the promise holds in clicks only if the rate is the one *at the price that was paid* (`Corrector`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy.special import expit, logit

from leadre.auction.bidders.contract import Floats, Seen, State
from leadre.auction.duals import additive, entropic
from leadre.auction.value import MAX_MULTIPLIER, value_at_return_under_budget

MAX_DUAL = 1_000.0
STEP = 5.0  # over the root of the auctions in the life of the bidder
MAX_SENSITIVITY = 0.9  # of the rate to the price: at 1, a bid and its own price would rise without bound
ITERATIONS = 50
HALVINGS = 30  # of the range of bids
RIDGE = 1.0  # observations' worth of pull to the prediction as it is


@dataclass(frozen=True)
class Corrector:
    """Click rate of a won impression from its prediction and its price: sigmoid(a + b logit pCTR + c log price)."""

    intercept: float = 0.0
    slope: float = 1.0
    sensitivity: float = 0.0

    @classmethod
    def fit(cls, pctr_N: Floats, price_N: Floats, click_N: Floats) -> Self:
        """Of won impressions. Given the prediction and the price, winning has no further information about the click.

        Newton steps on the logistic likelihood with a ridge to the identity; prices are at least 1 unit.
        """
        x_ND = np.column_stack([np.ones(len(pctr_N)), logit(pctr_N), np.log(np.maximum(price_N, 1.0))])
        identity_D = np.array([0.0, 1.0, 0.0])
        weight_D = identity_D.copy()
        for _ in range(ITERATIONS):
            rate_N = expit(x_ND @ weight_D)
            gradient_D = x_ND.T @ (rate_N - click_N) + RIDGE * (weight_D - identity_D)
            curvature_DD = (x_ND * (rate_N * (1 - rate_N))[:, None]).T @ x_ND + RIDGE * np.eye(3)
            step_D = np.linalg.solve(curvature_DD, gradient_D)
            weight_D = weight_D - step_D * min(1.0, 2.0 / max(float(np.abs(step_D).max()), 1e-12))
        intercept, slope, sensitivity = weight_D.tolist()
        return cls(intercept, max(slope, 0.0), min(sensitivity, MAX_SENSITIVITY))

    def rate(self, pctr: float, price: float) -> float:
        """The click rate of an impression with this prediction that was won at this price."""
        clipped = min(max(pctr, 1e-9), 1 - 1e-9)
        x = (
            self.intercept
            + self.slope * math.log(clipped / (1 - clipped))
            + self.sensitivity * math.log(max(price, 1.0))
        )
        return 1.0 / (1.0 + math.exp(-x))


@dataclass(frozen=True)
class TargetReturn:
    """The bidder. ``worth``: money that a click may cost on average (a target cost per click, or amount / return).

    ``mean_price``: a usual price, the unit of the return's slack. ``step`` of the return's dual is a few over the root
    of the auctions in its life. The first ``truthful`` auctions bid the value itself, and the slack that they save
    keeps the constraint at each later moment, as in the paper's strict form. ``rate``: money an auction may cost; None
    has no budget. A bid is the highest price at which the value of a win at this price, times the multiplier, pays.
    """

    worth: float
    cap: float
    mean_price: float
    step: float
    truthful: int = 0
    rate: float | None = None
    budget_step: float = 0.01
    corrector: Corrector = Corrector()
    return_dual: float = 1.0
    budget_dual: float = 0.0
    auctions: int = 0

    def bid(self, left: float, n: int, pctr: float) -> float:
        multiplier = 1.0
        if self.auctions >= self.truthful:
            multiplier = value_at_return_under_budget(self.return_dual, self.budget_dual)
        low = 0.0
        high = min(left, self.cap)
        if multiplier * self.worth * self.corrector.rate(pctr, high) >= high:
            return high
        if not self.corrector.sensitivity:
            return min(multiplier * self.worth * self.corrector.rate(pctr, high), high)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if multiplier * self.worth * self.corrector.rate(pctr, middle) >= middle:
                low = middle
            else:
                high = middle
        return low

    def after(self, seen: Seen) -> Self:
        bidder = replace(self, auctions=self.auctions + 1)
        if seen.price is not None and self.auctions >= self.truthful:
            slack = self.worth * self.corrector.rate(seen.pctr, seen.price) - seen.price
            dual = entropic(self.return_dual, slack / self.mean_price, self.step, MAX_DUAL)
            bidder = replace(bidder, return_dual=max(dual, 1.0 / MAX_MULTIPLIER))
        if self.rate is not None and seen.bid < seen.left:  # as in `mirror`: a bid that was cut has no known cost
            gradient = 1.0 - (seen.price or 0.0) / self.rate
            bidder = replace(bidder, budget_dual=additive(self.budget_dual, gradient, self.budget_step, MAX_DUAL))
        return bidder

    @property
    def state(self) -> State:
        return {"return_dual": self.return_dual, "budget_dual": self.budget_dual, "auctions": self.auctions}

    def resume(self, state: State) -> Self:
        numbers = {name: float(np.array(number)) for name, number in state.items()}
        return replace(
            self,
            return_dual=numbers["return_dual"],
            budget_dual=numbers["budget_dual"],
            auctions=int(numbers["auctions"]),
        )
