"""The shading step of a bid decision: the price of one bid in a first-price auction of an exchange.

The writer learns the law of prices of each caller (`leadre.serve.processes.shading_state`); a worker looks the best bid
up. A small share of bids is drawn at random, as a law that is fitted only to the best bids extrapolates. No price is
above the paced value, nor below the floor.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from leadre.auction.shading import drawn
from leadre.serve.ipc.messages import MarketShading

EXPLORATION = 0.02  # share of bids that are drawn
COLD_EXPLORATION = 0.1  # while too few auctions of the caller were seen; the other bids are the value


class ShadedPrice(NamedTuple):
    """A price, and its propensity: a probability, or the density of one that was drawn, before it met the floor."""

    nanos: int
    propensity: float
    is_drawn: bool


@dataclass(frozen=True, eq=False)
class Shading:
    """The best bids by caller and currency."""

    markets: Mapping[tuple[str, str], MarketShading]

    @classmethod
    def of(cls, markets: Iterable[MarketShading]) -> Shading:
        return cls({(market.caller, market.currency): market for market in markets})

    def price(
        self,
        caller: str,
        currency: str,
        *,
        worth_nanos: int,
        paced_nanos: int,
        floor_nanos: int,
        draws: tuple[float, float],
    ) -> ShadedPrice:
        """The price of a bid of ``paced_nanos``, at least the floor. ``draws``: whether to explore, and where."""
        market = self.markets.get((caller, currency))
        share = COLD_EXPLORATION if market is None else EXPLORATION
        is_drawn = draws[0] < share
        if is_drawn:
            bid, propensity = drawn(paced_nanos, share, draws[1])
        else:
            bid = float(paced_nanos) if market is None else _best(market, worth_nanos, paced_nanos)
            propensity = 1.0 - share
        return ShadedPrice(min(max(round(bid), floor_nanos, 1), paced_nanos), propensity, is_drawn)


NO_SHADING = Shading({})


def _best(market: MarketShading, worth_nanos: int, paced_nanos: int) -> float:
    """The best bid; the paced value itself if no lower bid was seen to win, as then only it may win."""
    group = bisect_right(market.edges, worth_nanos)
    return market.bids[group][bisect_right(market.breaks[group], paced_nanos)] or float(paced_nanos)
