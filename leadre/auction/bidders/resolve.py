"""Re-solving the dual: the bid is pCTR / dual, and the dual is the one that spends the money left on past auctions.

Among past auctions those with the most pCTR for their price are bought first; the dual at which their cost, per
auction, is the money left per auction left is read off this order at each bid. Recent auctions weigh more: the level
of prices and rates drifts. A lost auction reports no price, so one above the own bid is drawn from the law of the
history (a golden-ratio sequence, so that a replay draws the same). The history's law itself counts as the oldest part
of the sample, paired with the pCTRs seen. No click is read.

Letters: S rows of the sample, R auctions since it was last solved.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from leadre.auction.bidders.contract import Floats, History, Seen, State

WINDOW = 10_000  # auctions kept
HALF_AGE = 1_000.0  # an auction this old counts half, one of three times the age a quarter
PRIOR = 2_000  # rows that stand for the history
EVERY = 100  # auctions between two solutions
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, eq=False)
class Sample:
    """The past auctions as of a solution, oldest first, with drawn prices where the auction was lost."""

    history: History
    pctr_S: Floats
    price_S: Floats

    def dual(self, rate: float) -> float:
        """The pCTR for a unit of money at which an auction costs ``rate`` on average."""
        spend_S, worth_S = self._curve
        return worth_S[min(bisect_left(spend_S, rate), len(worth_S) - 1)]

    @cached_property
    def _curve(self) -> tuple[list[float], list[float]]:
        """(mean cost of an auction if all down to this row are bought, pCTR per money), from the best row down."""
        pctr_S = self.pctr_S
        price_S = self.price_S
        if len(pctr_S) < WINDOW:
            pctr_S = np.append(np.resize(pctr_S if len(pctr_S) else [self.history.mean_pctr], PRIOR), pctr_S)
            price_S = np.append(prior_prices(self.history), price_S)
        weight_S = 1.0 / (1.0 + np.arange(len(pctr_S))[::-1] / HALF_AGE)
        worth_S = pctr_S / np.maximum(price_S, 1e-9)
        order_S = np.argsort(-worth_S, kind="stable")
        spend_S = np.cumsum((price_S * weight_S)[order_S]) / weight_S.sum()
        return spend_S.tolist(), worth_S[order_S].tolist()


def prior_prices(history: History) -> Floats:
    """[PRIOR] prices at even quantiles of the history's law, in an order that does not rise."""
    place_S = np.arange(1, PRIOR + 1) * GOLDEN % 1.0
    return np.searchsorted(history.win_G, place_S).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Resolve:
    """The bidder; ``auctions`` were seen in all, of which ``recent_R`` (pCTR, price) after the last solution."""

    history: History
    sample: Sample
    recent_R: tuple[tuple[float, float], ...] = ()
    auctions: int = 0

    @classmethod
    def of(cls, history: History) -> Self:
        return cls(history, Sample(history, np.zeros(0), np.zeros(0)))

    def bid(self, left: float, n: int, pctr: float) -> float:
        dual = self.sample.dual(left / n)
        return min(pctr / dual, left, self.history.cap) if dual > 0 else min(left, self.history.cap)

    def after(self, seen: Seen) -> Self:
        price = self._drawn(seen.bid) if seen.price is None else seen.price
        recent_R = (*self.recent_R, (seen.pctr, price))
        auctions = self.auctions + 1
        if len(recent_R) < EVERY:
            return replace(self, recent_R=recent_R, auctions=auctions)
        pctr_R, price_R = np.array(recent_R).T
        sample = Sample(
            self.history,
            np.append(self.sample.pctr_S, pctr_R)[-WINDOW:],
            np.append(self.sample.price_S, price_R)[-WINDOW:],
        )
        return replace(self, sample=sample, recent_R=(), auctions=auctions)

    def _drawn(self, bid: float) -> float:
        """A price above a bid that lost; above the cap, if the bid is the cap."""
        win_G = self.history.win_G
        below = float(win_G[min(int(bid), self.history.cap)])
        place = below + (1.0 - below) * ((self.auctions + 1) * GOLDEN % 1.0)
        return float(np.searchsorted(win_G, place, side="right"))

    @property
    def state(self) -> State:
        return {
            "pctr": self.sample.pctr_S.tolist(),
            "price": self.sample.price_S.tolist(),
            "recent": [number for row in self.recent_R for number in row],
            "auctions": self.auctions,
        }

    def resume(self, state: State) -> Self:
        recent = np.array(state["recent"]).reshape(-1, 2)
        sample = Sample(self.history, np.array(state["pctr"], float), np.array(state["price"], float))
        recent_R = tuple((float(pctr), float(price)) for pctr, price in recent.tolist())
        return replace(self, sample=sample, recent_R=recent_R, auctions=int(np.array(state["auctions"])))
