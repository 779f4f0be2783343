"""Bids in proportion to the predicted click rate, without regard to the money left."""

from __future__ import annotations

from dataclasses import dataclass

from leadre.auction.bidders.contract import Fixed, History


@dataclass(frozen=True)
class Linear(Fixed):
    """``base`` x pCTR / mean pCTR; the base is to be tuned for each budget on past auctions (Perlich et al. 2012)."""

    history: History
    base: float

    def bid(self, left: float, n: int, pctr: float) -> float:
        return min(self.base * pctr / self.history.mean_pctr, left, self.history.cap)


def mcpc(history: History) -> Linear:
    """pCTR x the cost of a click in the past: the most that a click may cost."""
    return Linear(history, history.click_cost * history.mean_pctr)
