"""The price of a bid: of the impression that is offered, of the event that the campaign pays for, and its reservation.

An auction of a caller prices impressions alone: a click or conversion costs the campaign's bid, with a goal the paced
one. If the bidder is the seller, each price is paced, and its mechanism lowers it. A bid in a caller's first-price
auction may be shaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from leadre.serve.bidding.charge import charge
from leadre.serve.bidding.context import RequestContext
from leadre.serve.bidding.ranked_candidates import Ranking
from leadre.serve.bidding.select import UNKNOWN_FLOOR
from leadre.serve.bidding.shade import ShadedPrice
from leadre.serve.protocol import openrtb
from leadre.types import Campaign, Impression


class Price(NamedTuple):
    """Nanos of a bid for one impression.

    ``ranked_nanos``: the paced value, by which the ad was ranked. ``impression_nanos``: the offer, at most the ranked
    price. ``event_nanos``: of the click or conversion that the campaign pays for; 0 if it pays for impressions.
    ``reserved_nanos``: expected charge of the impression. ``shaded``: None if the offer is not shaded.
    """

    ranked_nanos: int
    impression_nanos: int
    event_nanos: int
    reserved_nanos: int
    shaded: ShadedPrice | None = None


class Prices:
    """The prices of a request's candidates. ``reserved`` [K]: the most that a bid of each may reserve."""

    def __init__(self, context: RequestContext, ranking: Ranking) -> None:
        self._context = context
        self._ranking = ranking
        self._catalogue = context.market.catalogue
        self._is_seller = context.request.is_own_auction
        self.reserved = ranking.prices
        if ranking.multiplier_K is not None and not self._is_seller:
            columns = self._catalogue.columns
            is_price_K = columns.pays_for_impression_C[ranking.campaign_K] | columns.has_goal_C[ranking.campaign_K]
            self.reserved = np.where(is_price_K, ranking.price_K, ranking.worth_K).tolist()

    def bid(self, imp: Impression, k: int, payable: Sequence[int], slot: int) -> Price:
        """The price of a bid of candidate ``k`` for an imp.

        ``payable``: the candidates that passed the filter and have budget, best first. ``slot``: ads of the response
        above this one.
        """
        settings = self._context.bidder.settings
        campaign = self._campaign(k)
        ranked_nanos = self._ranking.prices[k]
        price = Price(ranked_nanos, ranked_nanos, self._event_nanos(k, campaign), self.reserved[k])
        if self._is_seller:
            is_first_price = settings.mechanism == "first_price"
            return price if is_first_price else self._charged(price, imp, [k, *self._rivals(k, payable)], slot)
        return self._shaded(price, imp, k) if self._context.request.is_first_price and campaign.shading else price

    def _campaign(self, k: int) -> Campaign:
        return self._catalogue.campaigns[self._ranking.campaign_rows[k]]

    def _event_nanos(self, k: int, campaign: Campaign) -> int:
        if campaign.bid_type == "cpm":
            return 0
        is_paced = self._is_seller or campaign.has_goal
        return int(self._ranking.event_nanos([k])[0]) if is_paced else campaign.bid_nanos

    def _rivals(self, k: int, payable: Sequence[int]) -> list[int]:
        """The candidates below ``k`` that set its price: of its currency and of other advertisers.

        A frequency cap that has no room is known of those alone that were tried before it.
        """
        campaign = self._campaign(k)
        owner = "" if self._context.bidder.has_old_rules else campaign.advertiser_id
        lower = [(other, self._campaign(other)) for other in payable[payable.index(k) + 1 :]]
        return [k for k, other in lower if other.currency == campaign.currency and other.advertiser_id != owner]

    def _charged(self, price: Price, imp: Impression, competitors: Sequence[int], slot: int) -> Price:
        """The price by the bidder's mechanism."""
        ranking = self._ranking
        settings = self._context.bidder.settings
        charged = charge(
            settings.mechanism,
            settings.effects_from(slot, len(self._context.request.imps)),
            ranking.event_nanos(competitors),
            ranking.price_K[competitors],
            ranking.score_K[competitors],
            floor_nanos(imp, self._campaign(competitors[0]).currency),
            ranking.squashing,
        )
        return price._replace(
            impression_nanos=charged.impression_nanos,
            event_nanos=charged.action_nanos if price.event_nanos else 0,
            reserved_nanos=charged.impression_nanos,
        )

    def _shaded(self, price: Price, imp: Impression, k: int) -> Price:
        """The shaded price; a bid for impressions reserves no more.

        Bids to a sender without a configured name are not shaded: anyone can report prices under no name.
        """
        context = self._context
        campaign = self._campaign(k)
        logged = context.bidder.logged_bid(imp.imp_id, self._ranking.candidates.ad_ids[k])
        if logged is not None and logged.price_propensity and logged.ranked_nanos == price.ranked_nanos:
            shaded = ShadedPrice(logged.price_nanos, logged.price_propensity, logged.explores_price)
        elif not context.party.name:
            return price
        else:
            shaded = context.market.shading.price(
                context.party.name,
                campaign.currency,
                worth_nanos=int(self._ranking.worth_K[k]),
                paced_nanos=price.ranked_nanos,
                floor_nanos=floor_nanos(imp, campaign.currency),
                draws=context.bidder.draws.price(context.request_id, imp.imp_id),
            )
        reserved_nanos = price.reserved_nanos if price.event_nanos else shaded.nanos
        return price._replace(impression_nanos=shaded.nanos, reserved_nanos=reserved_nanos, shaded=shaded)


def floor_nanos(imp: Impression, currency: str) -> int:
    """The imp's floor in a currency, at least 1; `UNKNOWN_FLOOR` if it cannot be converted."""
    if not imp.floor_nanos:
        return 1
    nanos = openrtb.convert(imp.floor_nanos, imp.floor_currency, currency, up=True)
    return UNKNOWN_FLOOR if nanos is None else max(nanos, 1)
