"""Price of an ad where the bidder is the seller: its mechanism charges a winner by the candidates ranked below it.

On the routes of exchanges and of Prebid.js the caller holds the auction, and the bid is the price. On a site's own
pages (`/v1/recommend`) there is no other auction, so `leadre.auction.mechanism` sets the charge.

Letters: K the winner, then the candidates that it outranks, best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leadre.auction.mechanism import MECHANISMS, Bids, squashed

MIN_WEIGHT = 1e-300


class Charge(NamedTuple):
    """``action_nanos``: price of the event that the campaign pays for. ``impression_nanos``: its expected value."""

    action_nanos: int
    impression_nanos: int


def charge(
    mechanism: str,
    slot_effects: Sequence[float],
    bid_nanos_K: NDArray[np.int64],
    value_nanos_K: NDArray[np.int64],
    log_score_K: NDArray[np.float64],
    floor_nanos: int,
    squashing: float = 1.0,
) -> Charge:
    """The charge of the first candidate, which wins the first of the slots that are left.

    ``value_nanos_K``: bid x rate of the paid event, at least 1. ``log_score_K``: logarithm of the other factor of the
    order. ``slot_effects`` are those of the slots left. An ad that exploration has selected pays for its own rank.
    ``squashing``: power of the rates in the order.
    """
    rate_K = value_nanos_K / bid_nanos_K
    weight_K = np.maximum(np.exp(log_score_K - log_score_K.max()), MIN_WEIGHT) * squashed(rate_K, squashing)
    bids = Bids(
        bid_nanos_K=bid_nanos_K,
        rate_K=rate_K,
        weight_K=weight_K,
        reserve_nanos_K=np.full(len(bid_nanos_K), min(floor_nanos, int(value_nanos_K[0]))),
        tie_K=np.arange(len(bid_nanos_K), dtype=np.uint64),  # the order has broken ties
    )
    outcome = MECHANISMS[mechanism](bids, slot_effects)
    bid_nanos = int(bid_nanos_K[0])
    # Scores that differ by rounding alone may change places: then the winner's price is its bid.
    action_nanos = int(outcome.action_nanos_J[0]) if outcome.winner_J[0] == 0 else bid_nanos
    action_nanos = max(action_nanos, 1)
    value_nanos = int(value_nanos_K[0])
    return Charge(action_nanos, max(1, min(value_nanos, -(-value_nanos * action_nanos // bid_nanos))))
