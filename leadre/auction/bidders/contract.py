"""Contract of the bidders: ``bid(left, n, pctr)`` for a second-price auction of an episode with a budget.

A bidder is immutable. `Bidder.after` returns the bidder that has seen one more auction, so a replay of the auctions
gives the same bids, and `Bidder.state` holds all that it has learned as plain lists and numbers. Money has the unit of
the price histogram. A bid that equals the price wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
State = dict[str, float | list[float]]


class Seen(NamedTuple):
    """One auction after its end: what `Bidder.bid` was called with, its bid, and the price of a win; None if lost."""

    left: float
    n: int
    pctr: float
    bid: float
    price: float | None


@dataclass(frozen=True)
class History:
    """Past auctions of a campaign: totals of its impressions; ``count_G`` auctions had the price 0, 1, .. G - 1."""

    impressions: int
    clicks: int
    cost: float
    count_G: tuple[int, ...]

    def __post_init__(self) -> None:
        assert self.impressions > 0 and self.clicks > 0 and len(self.count_G) > 1, self

    @property
    def cap(self) -> int:
        """The highest price that is known; no bid is above it."""
        return len(self.count_G) - 1

    @property
    def mean_pctr(self) -> float:
        return self.clicks / self.impressions

    @property
    def click_cost(self) -> float:
        return self.cost / self.clicks

    @cached_property
    def law_G(self) -> Floats:
        """[G] probability of each price; one auction is added to each count, so that each price is possible."""
        count_G = np.array(self.count_G, float) + 1.0
        law_G: Floats = count_G / count_G.sum()
        return law_G

    @cached_property
    def win_G(self) -> Floats:
        """[G] probability that a bid of 0, 1, .. G - 1 wins."""
        return np.cumsum(self.law_G)


class Bidder(Protocol):
    """A rule of bidding; its name is in `registry.BIDDERS`."""

    def bid(self, left: float, n: int, pctr: float) -> float:
        """The bid with ``left`` money for ``n`` auctions, this one included: at most ``left`` and the history's cap."""
        ...

    def after(self, seen: Seen) -> Self:
        """The bidder that has learned from an auction."""
        ...

    @property
    def state(self) -> State:
        """All that was learned, as JSON has it."""
        ...

    def resume(self, state: State) -> Self:
        """The bidder with a state that `state` returned."""
        ...


class Fixed:
    """A bidder that learns nothing from auctions."""

    def after(self, seen: Seen) -> Self:
        return self

    @property
    def state(self) -> State:
        return {}

    def resume(self, state: State) -> Self:
        return self
