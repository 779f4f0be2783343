"""Mechanisms: the bids of one auction -> winners of its slots and their prices, as pure functions of arrays.

A bid is money for one action: a seen impression, a click or a conversion. ``rate`` is the probability of the action
once the ad is seen, and a slot effect the probability that an ad in the slot is seen, relative to the first slot. The
order is by score = bid x weight; the weight is the rate, or the rate to a power below 1 ("squashing").

All prices follow from one number, the *threshold*: the lowest bid that would still win a slot. GSP charges the
threshold of the own slot. VCG charges the mean of the thresholds of the own and of all lower slots, weighted by the
slot effect that each adds (Varian 2007; Edelman, Ostrovsky and Schwarz 2007). Thresholds invert the weight, so both
hold for any weight.

Letters: K bidders, R bidders that meet their reserve, ranked, J filled slots.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-12  # relative; the product of a bid and value / bid may be below the value by a rounding

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Bids:
    """The bids of one auction, all in one currency.

    ``bid_nanos_K``: nanos for one action, at least 0. ``rate_K``: probability of the action, seen; in (0, 1].
    ``weight_K``: factor of the bid in the order, above 0. ``reserve_nanos_K``: the lowest money for one seen impression
    that the seller accepts from each; compared with bid x rate, not with the score. Reserves are *eager*: a bid below
    its own is dropped before the order is made, so it sets no price. A bid equal to its reserve stays.
    ``tie_K``: order of equal scores, from `tie_keys`.
    """

    bid_nanos_K: Ints
    rate_K: Floats
    weight_K: Floats
    reserve_nanos_K: Ints
    tie_K: NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one auction: slot by slot the winner and the money that it owes for an action.

    ``winner_J``: positions in K. ``action_nanos_J``: price of one action, never above the bid. A response in the slot,
    seen or not, costs this x rate x slot effect on average.
    """

    winner_J: NDArray[np.intp]
    action_nanos_J: Ints


Mechanism = Callable[[Bids, Sequence[float]], Outcome]  # second argument: slot effects, descending, above 0


def first_price(bids: Bids, slot_effects: Sequence[float]) -> Outcome:
    """Each winner pays its bid."""
    auction = _Ranked(bids, slot_effects)
    return auction.outcome(bids.bid_nanos_K[auction.winner_J].astype(float))


def second_price(bids: Bids, slot_effects: Sequence[float]) -> Outcome:
    """One slot, the first: its winner pays the bid with which it would still win. Truthful (Vickrey 1961)."""
    return gsp(bids, slot_effects[:1])


def gsp(bids: Bids, slot_effects: Sequence[float]) -> Outcome:
    """Generalised second price: each winner pays the bid with which it would keep its slot. Not truthful."""
    auction = _Ranked(bids, slot_effects)
    return auction.outcome(auction.threshold_JJ.diagonal().copy())


def vcg(bids: Bids, slot_effects: Sequence[float]) -> Outcome:
    """Vickrey-Clarke-Groves: each winner pays the value that its presence takes from the others. Truthful.

    With personal reserves or weights it charges Myerson's payment of the same allocation, which is truthful too.
    """
    auction = _Ranked(bids, slot_effects)
    effect_J = auction.effect_J
    step_J = effect_J - np.append(effect_J[1:], 0.0)  # that each slot adds over the next one
    return auction.outcome((auction.threshold_JJ * step_J).sum(1) / effect_J)


MECHANISMS: Mapping[str, Mechanism] = {
    "first_price": first_price,
    "second_price": second_price,
    "gsp": gsp,
    "vcg": vcg,
}


def squashed(rate_K: Floats, power: float) -> Floats:
    """[K] weights between an order by bid (``power`` 0) and one by bid x rate (1) (Lahaie and Pennock 2007)."""
    assert 0 <= power <= 1, power
    return rate_K**power


def tie_keys(request_id: str, names: Sequence[str]) -> NDArray[np.uint64]:
    """[K] random order of bidders, by a hash of request and name: no place in an array wins all equal bids."""
    keyed = hashlib.blake2b(request_id.encode(errors="surrogatepass"), digest_size=8)
    keys = np.zeros(len(names), np.uint64)
    for k, name in enumerate(names):
        hasher = keyed.copy()
        hasher.update(b"\0" + name.encode(errors="surrogatepass"))
        keys[k] = int.from_bytes(hasher.digest())
    return keys


class _Ranked:
    """The order of an auction, and its thresholds."""

    def __init__(self, bids: Bids, slot_effects: Sequence[float]) -> None:
        effects = np.array(slot_effects, float)
        assert (effects > 0).all() and (np.diff(effects) <= 0).all(), (
            f"slot effects {slot_effects}: descending, above 0"
        )
        assert (bids.rate_K > 0).all() and (bids.weight_K > 0).all() and (bids.bid_nanos_K >= 0).all(), bids
        score_K = bids.bid_nanos_K * bids.weight_K
        meets_reserve_K = bids.bid_nanos_K * bids.rate_K >= bids.reserve_nanos_K * (1 - ROUNDING)
        order_K = np.lexsort((bids.tie_K, -score_K))
        order_R = order_K[meets_reserve_K[order_K]]
        slots = min(len(effects), len(order_R))
        self._bids = bids
        self.effect_J = effects[:slots]
        self.winner_J = order_R[:slots]
        self._next_score_J = np.append(score_K[order_R[1:]], 0.0)[:slots]

    @property
    def threshold_JJ(self) -> Floats:
        """[J, J] the lowest bid for an action with which the winner of a row would win the slot of a column.

        Slots above its own are 0 here: no price needs them.
        """
        bids = self._bids
        winner_J = self.winner_J
        least_J = bids.reserve_nanos_K[winner_J] / bids.rate_K[winner_J]
        needed_JJ = self._next_score_J / bids.weight_K[winner_J][:, None]
        return np.triu(np.maximum(needed_JJ, least_J[:, None]))

    def outcome(self, price_J: Floats) -> Outcome:
        """The outcome at exact prices of an action. The seller's nanos are rounded up, but never above the bid."""
        bid_J = self._bids.bid_nanos_K[self.winner_J]
        return Outcome(winner_J=self.winner_J, action_nanos_J=np.minimum(np.ceil(price_J).astype(np.int64), bid_J))
