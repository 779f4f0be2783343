"""Budgeted bidding as a Markov decision process (Cai et al., RLB, arXiv 1701.02490): exact table, and its fluid limit.

A state is (n auctions left, b money left). Each auction draws a pCTR and a price d from a known law; a bid of at least
d pays d and gains the pCTR. V(n, b) is the most that can still be gained, with the pCTR at its mean:

    V(0, b) = 0
    V(n, b) = V(n - 1, b) + sum over d <= b of law(d) x max(0, mean + V(n - 1, b - d) - V(n - 1, b))

The best bid at pCTR t is the highest a with t + V(n - 1, b - a) >= V(n - 1, b).

Letters: G prices from 0 to the cap, N auctions of the table, B its largest budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from leadre.auction.bidders.contract import Fixed, Floats, History, Ints

BLOCK = 256  # budgets at a time, so that their windows stay in the cache


def value_table(law_G: Floats, auctions: int, budget: int) -> Floats:
    """[N + 1, B + 1] expected gain in units of the mean pCTR; O(N B G) time, 8 N B bytes."""
    cap = len(law_G) - 1
    value_NB = np.zeros((auctions + 1, budget + 1))
    padded = np.full(cap + budget + 1, -np.inf)  # a price above the money left gains nothing
    window_BG = np.lib.stride_tricks.sliding_window_view(padded, cap + 1)
    rising_G = law_G[::-1].copy()  # a window begins with the state after the highest price
    for n in range(1, auctions + 1):
        before_B = value_NB[n - 1]
        padded[cap:] = before_B
        for low in range(0, budget + 1, BLOCK):
            part = slice(low, low + BLOCK)
            gain_BG = window_BG[part] + (1.0 - before_B[part])[:, None]
            value_NB[n, part] = before_B[part] + np.maximum(gain_BG, 0.0, out=gain_BG) @ rising_G
    return value_NB


@dataclass(frozen=True, eq=False)
class RLB(Fixed):
    """The best bid of the table. ``is_mean`` ignores the pCTR of the auction (the paper's SS-MDP).

    Horizons beyond the table are mapped to its last row at the same money an auction: V(n, b) = n / N x V(N, b N / n).
    More money than the table has counts as its largest budget.
    """

    history: History
    value_NB: Floats
    is_mean: bool = False

    def bid(self, left: float, n: int, pctr: float) -> float:
        gain = 1.0 if self.is_mean else pctr / self.history.mean_pctr
        money = int(left)
        cap = min(money, self.history.cap)
        value_A = self._values(n - 1, np.arange(money - cap, money + 1))  # ascending: after the highest bid first
        return float(cap - int(np.searchsorted(value_A, value_A[-1] - gain)))

    def _values(self, n: int, money_A: Ints) -> Floats:
        last = len(self.value_NB) - 1
        most = self.value_NB.shape[1] - 1
        if n <= last:
            excess = max(int(money_A[-1]) - most, 0)
            return self.value_NB[n, max(int(money_A[0]) - excess, 0) : int(money_A[-1]) - excess + 1]
        scaled_A = money_A * (last / n)
        scaled_A -= max(scaled_A[-1] - most, 0.0)
        value_A: Floats = np.interp(scaled_A, np.arange(most + 1), self.value_NB[last])
        return value_A * (n / last)


@dataclass(frozen=True)
class Fluid(Fixed):
    """The limit of `RLB` for long horizons: one bid for each money an auction, so no table and any horizon.

    With a constant pCTR the best policy is a constant bid that spends the budget. It is scaled by the auction's pCTR.
    """

    history: History

    def bid(self, left: float, n: int, pctr: float) -> float:
        spend = float(np.interp(left / n, self._spend_G, np.arange(len(self._spend_G))))
        return min(spend * pctr / self.history.mean_pctr, left, self.history.cap)

    @cached_property
    def _spend_G(self) -> Floats:
        """[G] expected cost of an auction with each bid."""
        law_G = self.history.law_G
        spend_G: Floats = np.cumsum(law_G * np.arange(len(law_G)))
        return spend_G
