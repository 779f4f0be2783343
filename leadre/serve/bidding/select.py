"""Which of the candidates is offered for a place: fit, paid, counted; the best, or now and then another.

Letters: A ads of the book, K candidates.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from leadre.auction.budget.days import day_of
from leadre.serve.bidding.context import Candidates, ImpState, RequestContext
from leadre.serve.protocol import openrtb
from leadre.store.contract import Cap
from leadre.types import Bid, Campaign, Impression, Source
from leadre.units import EPOCH_ORDINAL, US_PER_S

CONSIDERED = 20  # candidates of a place, among which exploration draws


class _Offer(NamedTuple):
    """A row of the book, its campaign, and what it pays for an impression."""

    row: int
    campaign: Campaign
    price_nanos: int


def choose(asked: RequestContext, place: ImpState, found: Candidates, others: Sequence[Bid]) -> None:
    """Put a bid into the place: the best candidate whose cap has room, or now and then any below it.

    ``propensity`` is exact for whoever knows budgets and caps as they were. So an explorer whose draw turns out to be
    capped offers nothing: if another came instead, nobody could say how probable that one was.
    """
    bidder, share = asked.bidder, asked.bidder.settings.exploration
    explorer, which = bidder.draws.pair(asked.request_id, place.imp.imp_id)
    explores = explorer < share
    left = _offers(asked, place, found, others, explores)
    while left and not _count(asked, place, left[0]):
        left.pop(0)
    if not left:
        return
    drawn = int(which * len(left)) if explores else 0
    if drawn:
        _uncount(asked, place)
        place.verdicts[left[0].row] = "not drawn"
        if not _count(asked, place, left[drawn]):
            return
    offer, propensity = left[drawn], share / len(left) + (1 - share) * (drawn == 0)
    if not asked.request.is_test and bidder.held is None:
        lease_id = bidder.budgets.reserve(offer.campaign, offer.price_nanos, asked.now_us)
        assert lease_id is not None, f"{offer.campaign.campaign_id} could pay {offer.price_nanos} a moment ago"
        place.lease_id = lease_id
    place.bid = _bid(asked, place.imp, offer, found.source, propensity)


def _offers(
    asked: RequestContext, place: ImpState, found: Candidates, others: Sequence[Bid], explores: bool
) -> list[_Offer]:
    """The candidates that fit the place and can be paid, those of the highest probability times value first."""
    book, imp = asked.market.book, place.imp
    open_K = place.eligible_A[found.rows_K]
    place.verdicts |= dict.fromkeys(found.rows_K[~open_K].tolist(), "ineligible")
    rows_K, log_p_K = found.rows_K[open_K], found.log_p_K[open_K]
    price_K = asked.market.expected_nanos_A[rows_K]
    order = np.argsort(-(log_p_K + np.log(np.maximum(price_K, 1))), kind="stable")
    rows_K, price_K = rows_K[order], price_K[order]
    floors = {currency: _floor_nanos(imp, currency) for currency in book.currencies}
    taken, spoken = {bid.ad_id for bid in others}, {bid.currency for bid in others}
    left: list[_Offer] = []
    considered: list[int] = []
    for row, campaign_row, price_nanos in zip(
        rows_K.tolist(), book.campaign_A[rows_K].tolist(), price_K.tolist(), strict=True
    ):
        campaign = book.campaigns[campaign_row]
        verdict = "shown in another place" if book.ads[row].ad_id in taken else ""
        verdict = verdict or _unfit(price_nanos, floors[campaign.currency], campaign.currency, spoken)
        if not verdict and len(left) < CONSIDERED:
            considered.append(row)
            offer = _Offer(row, campaign, price_nanos)
            verdict = _unpayable(asked, place, offer, asks=explores or not left)
            if not verdict:
                left.append(offer)
        place.verdicts[row] = verdict or "not drawn"
    place.considered = considered
    return left


def _unfit(price_nanos: int, floor_nanos: int | None, currency: str, spoken: Collection[str]) -> str:
    """Why a price is no offer for a place, "" where it is one; ``spoken`` is the currency of the bids made so far."""
    if spoken and currency not in spoken:
        return "currency of the answer"  # which has one for all its bids
    if floor_nanos is None:
        return "floor in another currency"
    return "below floor" if price_nanos < floor_nanos else ""


def _floor_nanos(imp: Impression, currency: str) -> int | None:
    """The least that a bid must be, 1 without a floor; None where the floor is in a currency that we cannot convert."""
    floor_nanos = openrtb.convert(imp.floor_nanos, imp.floor_currency, currency, up=True) if imp.floor_nanos else 0
    return None if floor_nanos is None else max(floor_nanos, 1)


def _unpayable(asked: RequestContext, place: ImpState, offer: _Offer, *, asks: bool) -> str:
    """Why an ad can make no offer now, "" where it can; ``asks``: a budget that is not leased is asked for."""
    if asked.request.is_test:  # neither charged nor counted
        return ""
    if offer.campaign.cap_per_day and not asked.user_id:
        return "cap cannot be counted"  # a stranger may have seen it any number of times
    if asked.bidder.held is not None:
        verdict = asked.bidder.held(place.imp.imp_id, asked.market.book.ads[offer.row].ad_id)
        return verdict if verdict == "budget" else ""
    return "" if asked.bidder.budgets.can_pay(offer.campaign, offer.price_nanos, asked.now_us, asks=asks) else "budget"


def _count(asked: RequestContext, place: ImpState, offer: _Offer) -> bool:
    """Give an ad the place, under its campaign's frequency cap; whether there was room."""
    campaign, row = offer.campaign, offer.row
    place.verdicts[row] = "bid"
    if campaign.cap_per_day and not asked.request.is_test and asked.bidder.held is not None:
        place.verdicts[row] = asked.bidder.held(place.imp.imp_id, asked.market.book.ads[row].ad_id)
    elif campaign.cap_per_day and not asked.request.is_test:
        day = day_of(asked.now_us, campaign.zone).toordinal() - EPOCH_ORDINAL
        cap = Cap(campaign.campaign_id, day, campaign.cap_per_day)
        until_us = asked.now_us + asked.bidder.settings.token_s * US_PER_S
        place.cap_id = asked.bidder.memory.reserve(asked.user_id, cap, now_us=asked.now_us, until_us=until_us)
        if not place.cap_id:
            place.verdicts[row] = "cap"
    return place.verdicts[row] == "bid"


def _uncount(asked: RequestContext, place: ImpState) -> None:
    asked.bidder.memory.release([place.cap_id] if place.cap_id else [])
    place.cap_id = ""


def _bid(asked: RequestContext, imp: Impression, offer: _Offer, source: Source, propensity: float) -> Bid:
    ad = asked.market.book.ads[offer.row]
    sizes = [size for size in imp.sizes if not ad.sizes or size in ad.sizes]
    return Bid(
        bid_id=asked.bidder.new_id(),
        imp_id=imp.imp_id,
        ad_id=ad.ad_id,
        campaign_id=ad.campaign_id,
        advertiser_id=ad.advertiser_id,
        price_nanos=offer.price_nanos,
        currency=offer.campaign.currency,
        size=sizes[0] if sizes else (300, 250),
        source=source,
        propensity=propensity,
    )
