"""Frequency caps of one request, over all of its imps.

A refusal is a write transaction of the store, and the same for each imp. So a refused cap is not tried again, and after
`MAX_FULL_CAPS` of them none is: one request must not block the event loop for the others.
"""

from __future__ import annotations

from leadre.auction.budget.days import day_of
from leadre.serve.bidding.context import ImpState, RequestContext
from leadre.store.contract import Cap
from leadre.types import Ad, Campaign, Verdict
from leadre.units import EPOCH_ORDINAL

MAX_FULL_CAPS = 20  # of a request: after so many, its imps get campaigns without a cap


class RequestCaps:
    """Reserves impressions under frequency caps for the imps of one request."""

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self._full: set[str] = set()  # campaigns that were refused

    def is_full(self, imp_id: str, ad: Ad, campaign: Campaign) -> bool:
        """Whether no imp of the request can get an impression any more, without a call of the store.

        In a replay the logged imp was refused too, as older releases tried a full cap again for each imp.
        """
        if not campaign.cap_per_day or self._context.request.is_test:
            return False
        if campaign.campaign_id not in self._full and len(self._full) < MAX_FULL_CAPS:
            return False
        logged_verdict = self._context.bidder.logged_verdict
        return logged_verdict is None or logged_verdict(imp_id, ad.ad_id) is Verdict.FREQUENCY_CAP

    def reserve(self, state: ImpState, ad: Ad, campaign: Campaign) -> Verdict:
        """Reserve an impression for the ad: `Verdict.BID`, or FREQUENCY_CAP.

        The latter: the cap has no room, or its store is down or locked by another process.
        """
        context = self._context
        bidder = context.bidder
        if not campaign.cap_per_day or context.request.is_test:
            return Verdict.BID
        if self.is_full(state.imp.imp_id, ad, campaign):
            return Verdict.FREQUENCY_CAP
        if bidder.logged_verdict is not None:
            verdict = bidder.logged_verdict(state.imp.imp_id, ad.ad_id)
        else:
            day = day_of(context.now_us, campaign.zone).toordinal() - EPOCH_ORDINAL
            state.cap_day = day
            state.cap_id = bidder.user_store.reserve(
                context.user_id,
                Cap(campaign.campaign_id, day, campaign.cap_per_day),
                now_us=context.now_us,
                until_us=context.until_us(state.imp),
                holder=context.party.cap_holder,
            )
            verdict = Verdict.BID if state.cap_id else Verdict.FREQUENCY_CAP
        if verdict is Verdict.FREQUENCY_CAP:
            self._full.add(campaign.campaign_id)
        return verdict

    def void(self, state: ImpState) -> None:
        """Undo `reserve`."""
        if state.cap_id:
            self._context.bidder.user_store.void(state.cap_id)
        state.cap_id = ""
