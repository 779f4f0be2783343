"""Select the ad for one imp with the pure steps of `select`, then reserve its frequency cap and budget.

Letters: C campaigns, K candidates in the order of their source, R candidates that pass the filter, ranked, best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from leadre.serve.bidding import select
from leadre.serve.bidding.budgets import has_budget
from leadre.serve.bidding.caps import RequestCaps
from leadre.serve.bidding.context import ImpState, RequestContext
from leadre.serve.bidding.price import Price, Prices, floor_nanos
from leadre.serve.bidding.ranked_candidates import Ranking
from leadre.serve.bidding.select import Bools, Codes
from leadre.serve.bidding.value import bid_rate
from leadre.types import Ad, Bid, Campaign, Impression, Verdict


class _Offer(NamedTuple):
    """A candidate that may be bid: its position in K, its ad and campaign."""

    position: int
    ad: Ad
    campaign: Campaign


class _Offers:
    """The candidates of one imp, by their position in K. No method reserves cap or budget."""

    def __init__(
        self, context: RequestContext, imp: Impression, ranking: Ranking, prices: Prices, caps: RequestCaps
    ) -> None:
        bidder = context.bidder
        self.caps = caps
        self._ads = context.market.catalogue.ads
        self._campaigns = context.market.catalogue.campaigns
        self._rows = ranking.rows
        self._campaign_rows = ranking.campaign_rows
        self._reserved = prices.reserved
        self._budgets = bidder.budgets
        self._logged_verdict = bidder.logged_verdict
        self._imp_id = imp.imp_id
        self._user_id = context.user_id
        self._now_us = context.now_us
        self._party = context.party
        self._open_bids = bidder.open_bids
        self._room_nanos: dict[str, int] = {}  # by currency, for a bid of the sender

    def __getitem__(self, k: int) -> _Offer:
        return _Offer(k, self._ads[self._rows[k]], self._campaigns[self._campaign_rows[k]])

    def want_lease(self, k: int) -> None:
        """Have the worker keep a lease of the campaign for its next auction."""
        self._budgets.want(self[k].campaign, self._reserved[k], self._now_us)

    def request_lease(self, k: int) -> None:
        """Have the worker request a lease for the campaign, so that its next bid can be paid."""
        self._budgets.request_lease(self[k].campaign.campaign_id, self._reserved[k])

    def want(self, k: int) -> None:
        """Note that the sender could have a bid for the campaign, if its budget permitted one."""
        self._open_bids.want(self._party.share, self[k].campaign.campaign_id, self._now_us)

    def limit(self, k: int) -> Verdict | None:
        """Why the candidate cannot be bid now: no room or known user for a cap, no budget, open bids. None: it can."""
        campaign = self._campaigns[self._campaign_rows[k]]
        if campaign.cap_per_day and not self._user_id:  # their impressions are not counted
            return Verdict.UNKNOWN_USER_CAP
        if self.caps.is_full(self._imp_id, self._ads[self._rows[k]], campaign):
            return Verdict.FREQUENCY_CAP
        if self._logged_verdict is not None:
            verdict = self._logged_verdict(self._imp_id, self[k].ad.ad_id)
            return verdict if verdict in (Verdict.NO_BUDGET, Verdict.OPEN_BIDS) else None
        nanos = self._reserved[k]
        if not self._budgets.can_pay(campaign, nanos, self._now_us):
            return Verdict.NO_BUDGET
        return None if self._may_be_open(campaign, nanos) else Verdict.OPEN_BIDS

    def _may_be_open(self, campaign: Campaign, nanos: int) -> bool:
        """Whether the sender of the request may have one more open bid, and for this campaign."""
        open_bids = self._open_bids
        party = self._party
        currency = campaign.currency
        if currency not in self._room_nanos:  # no candidate of the imp changes it
            self._room_nanos[currency] = open_bids.room_nanos(party, currency, self._now_us)
        if nanos > self._room_nanos[currency]:
            return False
        if not has_budget(campaign) or open_bids.has_one_sender(party):
            return True
        left_nanos = self._budgets.left_nanos(campaign.campaign_id, self._now_us)
        return open_bids.shares(party, campaign.campaign_id, nanos, left_nanos, self._now_us)


def fill_imp(
    context: RequestContext,
    state: ImpState,
    ranking: Ranking,
    prices: Prices,
    caps: RequestCaps,
    eligible_K: Bools,
    earlier_bids: Sequence[Bid],
) -> None:
    """Ranking -> filter -> select -> reserve: set the bid of ``state``, or leave it None.

    ``eligible_K``: whether targeting, blocks and formats allow a candidate.

    filter: by eligibility, duplicates, currency and floor, then by budget and the caps found full by earlier imps.
    select: epsilon-greedy among the candidates that can be paid; the bid has the propensity.
    reserve: frequency cap and budget. Only this step has side effects.
    """
    state.verdict_K = _filter(context, state, ranking, eligible_K, earlier_bids)
    order_K = ranking.order_K
    ranked_R = order_K[state.verdict_K[order_K] == Verdict.NOT_SELECTED.code]
    offers = _Offers(context, state.imp, ranking, prices, caps)
    ranked = ranked_R.tolist()
    first_api_ad = ranking.candidates.first_api_ad if ranking.candidates.api_ads else None
    considered = select.consider(ranked, _limited(context, ranking), offers.limit, first_api_ad)
    state.considered = considered.all
    winner = _select_and_reserve(context, state, considered, offers, ranking, prices, slot=len(earlier_bids))
    if winner is not None:
        lower_R = ranked_R[ranked.index(winner) + 1 :]
        state.verdict_K[lower_R] = Verdict.OUTRANKED.code
        if (is_paced_R := ranking.loses_by_pacing(lower_R, winner)) is not None:
            state.verdict_K[lower_R[is_paced_R]] = Verdict.PACED.code
        campaign_row = ranking.campaign_rows[winner]
        state.rate = bid_rate(context.market.catalogue.columns, campaign_row, winner, ranking.values, ranking.rates)
    if considered.verdicts:
        state.verdict_K[list(considered.verdicts)] = [verdict.code for verdict in considered.verdicts.values()]


def _limited(context: RequestContext, ranking: Ranking) -> list[bool]:
    """[K] whether budget, cap, log or open bids may forbid a bid (`_Offers.limit`)."""
    bidder = context.bidder
    if context.request.is_test:  # a test is neither charged nor counted
        return [False] * len(ranking.rows)
    if context.party.bounds or bidder.logged_verdict is not None or not bidder.budgets.pays_uncapped:
        return [True] * len(ranking.rows)
    limited: list[bool] = context.market.catalogue.columns.limited_C[ranking.campaign_K].tolist()
    return limited


def _filter(
    context: RequestContext,
    state: ImpState,
    ranking: Ranking,
    eligible_K: Bools,
    earlier_bids: Sequence[Bid],
) -> Codes:
    currencies = context.market.catalogue.currencies
    floors = [floor_nanos(state.imp, currency) for currency in currencies]
    row_of_ad = context.market.catalogue.row_of_ad
    one_currency = len(currencies) == 1
    return select.filter_candidates(
        ranking.price_K,
        floors[0] if one_currency else np.array(floors, np.int64)[ranking.currency_K],
        eligible_K,
        worth_nanos_K=None if ranking.multiplier_K is None else ranking.unpaced_K,
        # all earlier bids share one currency
        has_currency_K=None
        if one_currency or not earlier_bids
        else ranking.currency_K == currencies.index(earlier_bids[0].currency),
        are_duplicates=[ranking.rows_K == row_of_ad[bid.ad_id] for bid in earlier_bids],
    )


def _select_and_reserve(
    context: RequestContext,
    state: ImpState,
    considered: select.Considered,
    offers: _Offers,
    ranking: Ranking,
    prices: Prices,
    *,
    slot: int,
) -> int | None:
    """Select among the candidates that can be paid; reserve cap and budget of the selected one. Returns its position.

    Only a reservation shows whether a cap has room. So the best candidate's cap is reserved first, and voided if
    exploration selects another candidate. If the cap of that one has no room, the imp gets no bid: the propensity of a
    second draw would be unknown. The propensity is exact for the budgets and caps at the time of the bid.
    """
    candidates = ranking.candidates
    epsilon = context.bidder.settings.exploration
    explore_draw, choice_draw = context.bidder.draws.pair(context.request_id, state.imp.imp_id)
    _request_leases(context, considered, offers, explores=explore_draw < epsilon)
    choices = considered.payable
    while choices and not _reserve_cap(offers.caps, state, offers[choices[0]]):
        choices = choices[1:]
    if not choices:
        return None
    has_best = choices[0] < candidates.first_api_ad or not candidates.explores_api_ads
    if explore_draw >= epsilon and not has_best:
        _void_cap(offers.caps, state, offers[choices[0]])
        return None
    selected, propensity = select.epsilon_greedy(len(choices), epsilon, explore_draw, choice_draw, has_best=has_best)
    offer = offers[choices[selected]]
    if selected:
        _void_cap(offers.caps, state, offers[choices[0]])
        if not _reserve_cap(offers.caps, state, offer):
            return None
    price = prices.bid(state.imp, offer.position, considered.payable, slot)
    _reserve_budget(context, state, offer, price.reserved_nanos)
    state.bid = _bid(context, state, offer, ranking, price, propensity)
    return offer.position


def _request_leases(context: RequestContext, considered: select.Considered, offers: _Offers, *, explores: bool) -> None:
    """Request leases for candidates that lack budget: those ranked above the best payable one, all if ``explores``.

    Campaigns of all candidates have a lease for their next auction. A test reserves nothing.
    """
    if context.bidder.logged_verdict is not None or context.request.is_test:
        return
    for k in considered.all:
        offers.want_lease(k)
    best = considered.payable[0] if considered.payable and not explores else None
    for k in considered.all:
        if k == best:
            return
        verdict = considered.verdicts.get(k)
        if verdict is Verdict.NO_BUDGET:
            offers.request_lease(k)
        if verdict in (Verdict.NO_BUDGET, Verdict.OPEN_BIDS):
            offers.want(k)


def _reserve_cap(caps: RequestCaps, state: ImpState, offer: _Offer) -> bool:
    """Reserve an impression under the campaign's frequency cap, and set the verdict. If False, the next one is bid."""
    verdict = caps.reserve(state, offer.ad, offer.campaign)
    state.verdict_K[offer.position] = verdict.code
    return verdict is Verdict.BID


def _void_cap(caps: RequestCaps, state: ImpState, offer: _Offer) -> None:
    """Undo `_reserve_cap`."""
    caps.void(state)
    state.verdict_K[offer.position] = Verdict.NOT_SELECTED.code


def _reserve_budget(context: RequestContext, state: ImpState, offer: _Offer, nanos: int) -> None:
    bidder = context.bidder
    if context.request.is_test or bidder.logged_verdict is not None:
        return
    lease_id = bidder.budgets.reserve(offer.campaign, nanos, context.now_us)
    assert lease_id is not None, f"{offer.campaign.campaign_id}: can_pay found a lease for {nanos} nanos"
    state.lease_id = lease_id
    state.reserved_nanos = nanos if lease_id else 0
    state.open_nanos = nanos
    bidder.open_bids.add(
        context.party,
        offer.campaign.campaign_id if lease_id else "",
        offer.campaign.currency,
        nanos,
        context.until_us(state.imp),
        context.now_us,
    )


def _bid(
    context: RequestContext, state: ImpState, offer: _Offer, ranking: Ranking, price: Price, propensity: float
) -> Bid:
    ad = offer.ad
    shaded = price.shaded
    sizes = [size for size in state.imp.sizes if not ad.sizes or size in ad.sizes]
    return Bid(
        bid_id=context.bidder.new_id(),
        imp_id=state.imp.imp_id,
        ad_id=ad.ad_id,
        campaign_id=ad.campaign_id,
        advertiser_id=ad.advertiser_id,
        price_nanos=price.impression_nanos,
        currency=offer.campaign.currency,
        size=sizes[0] if sizes else (300, 250),
        source=ranking.candidates.source_of(offer.position),
        propensity=propensity,
        worth_nanos=int(ranking.worth_K[offer.position]),
        reserved_nanos=state.reserved_nanos,
        ranked_nanos=price.ranked_nanos,
        action_nanos=price.event_nanos,
        price_propensity=shaded.propensity if shaded else 0.0,
        explores_price=shaded.is_drawn if shaded else False,
    )
