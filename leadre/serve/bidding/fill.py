"""Select the ad for one imp with the pure steps of `select`, then reserve its frequency cap and budget.

Letters: C campaigns, K candidates in the order of their source, R candidates that pass the filter, ranked, best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from leadre.auction.budget.days import day_of
from leadre.serve.bidding import select
from leadre.serve.bidding.context import Candidates, ImpState, RequestContext
from leadre.serve.bidding.select import Codes, Ints
from leadre.serve.protocol import openrtb
from leadre.store.contract import Cap
from leadre.types import Ad, Bid, Campaign, Impression, Source, Verdict
from leadre.units import EPOCH_ORDINAL, US_PER_S


class _Offer(NamedTuple):
    """A candidate that may be bid: its position in K, its ad and campaign, and the price of one impression."""

    position: int
    ad: Ad
    campaign: Campaign
    price_nanos: int


class _Offers:
    """The candidates of one imp, by their position in K. No method reserves cap or budget."""

    def __init__(self, context: RequestContext, imp: Impression, rows_K: Ints, campaign_K: Ints, price_K: Ints) -> None:
        self._context = context
        self._imp_id = imp.imp_id
        self._rows = rows_K.tolist()
        self._campaigns = campaign_K.tolist()
        self._prices = price_K.tolist()

    def __getitem__(self, k: int) -> _Offer:
        catalogue = self._context.market.catalogue
        return _Offer(k, catalogue.ads[self._rows[k]], catalogue.campaigns[self._campaigns[k]], self._prices[k])

    def request_lease(self, k: int) -> None:
        """Have the worker request a lease for the campaign, so that its next bid can be paid."""
        campaign = self._context.market.catalogue.campaigns[self._campaigns[k]]
        self._context.bidder.budgets.request_lease(campaign.campaign_id, self._prices[k])

    def limit(self, k: int) -> Verdict | None:
        """Why the candidate cannot be bid now: a cap but no known user, or no budget. None if it can be."""
        context = self._context
        if context.request.is_test:  # a test is neither charged nor counted
            return None
        campaign = context.market.catalogue.campaigns[self._campaigns[k]]
        if campaign.cap_per_day and not context.user_id:  # their impressions are not counted
            return Verdict.UNKNOWN_USER_CAP
        bidder = context.bidder
        if bidder.logged_verdict is not None:
            verdict = bidder.logged_verdict(self._imp_id, self[k].ad.ad_id)
            return verdict if verdict is Verdict.NO_BUDGET else None
        can_pay = bidder.budgets.can_pay(campaign, self._prices[k], context.now_us)
        return None if can_pay else Verdict.NO_BUDGET


def fill_imp(context: RequestContext, state: ImpState, candidates: Candidates, earlier_bids: Sequence[Bid]) -> None:
    """Score -> value -> pace -> filter -> select -> reserve: set the bid of ``state``, or leave it None.

    score: log-probabilities from the candidates' source. A ranker would replace them.
    value: expected nanos of one impression, the campaign's bid x its smoothed rate (`value.expected_nanos`).
    pace: the price is the value. A pacer would multiply it.
    filter: by eligibility, duplicates, currency and floor, then by budget.
    select: epsilon-greedy among the candidates that can be paid; the bid has the propensity.
    reserve: frequency cap and budget. Only this step has side effects.
    """
    catalogue = context.market.catalogue
    rows_K = candidates.rows_K
    score_K = candidates.log_p_K  # score
    value_K = context.market.expected_nanos_A[rows_K]  # value
    price_K = value_K  # pace
    campaign_K = catalogue.campaign_A[rows_K]
    state.verdict_K = _filter(context, state, rows_K, campaign_K, price_K, earlier_bids)
    order_K = select.rank(score_K, value_K)
    ranked_R = order_K[state.verdict_K[order_K] == Verdict.NOT_SELECTED.code]
    offers = _Offers(context, state.imp, rows_K, campaign_K, price_K)
    considered = select.consider(ranked_R.tolist(), offers.limit)
    state.considered = considered.all
    winner = _select_and_reserve(context, state, considered, offers, candidates.source)
    if winner is not None:
        state.verdict_K[ranked_R[considered.all.index(winner) + 1 :]] = Verdict.OUTRANKED.code
    if considered.verdicts:
        state.verdict_K[list(considered.verdicts)] = [verdict.code for verdict in considered.verdicts.values()]


def _filter(
    context: RequestContext,
    state: ImpState,
    rows_K: Ints,
    campaign_K: Ints,
    price_K: Ints,
    earlier_bids: Sequence[Bid],
) -> Codes:
    catalogue = context.market.catalogue
    currency_K = catalogue.columns.currency_C[campaign_K]
    floors = np.array([_floor_nanos(state.imp, currency) for currency in catalogue.currencies], np.int64)
    is_eligible_K = state.eligible_A[rows_K]
    if not earlier_bids:
        return select.filter_candidates(price_K, floors[currency_K], is_eligible_K)
    rows = [catalogue.row_of_ad[bid.ad_id] for bid in earlier_bids]
    currency = catalogue.currencies.index(earlier_bids[0].currency)  # all earlier bids share one currency
    return select.filter_candidates(
        price_K,
        floors[currency_K],
        is_eligible_K,
        is_duplicate_K=np.isin(rows_K, rows),
        has_currency_K=currency_K == currency,
    )


def _floor_nanos(imp: Impression, currency: str) -> int:
    """The imp's floor in a currency, at least 1; `select.UNKNOWN_FLOOR` if it cannot be converted."""
    if not imp.floor_nanos:
        return 1
    floor_nanos = openrtb.convert(imp.floor_nanos, imp.floor_currency, currency, up=True)
    return select.UNKNOWN_FLOOR if floor_nanos is None else max(floor_nanos, 1)


def _select_and_reserve(
    context: RequestContext,
    state: ImpState,
    considered: select.Considered,
    offers: _Offers,
    source: Source,
) -> int | None:
    """Select among the candidates that can be paid; reserve cap and budget of the selected one. Returns its position.

    Only a reservation shows whether a cap has room. So the best candidate's cap is reserved first, and voided if
    exploration selects another candidate. If the cap of that one has no room, the imp gets no bid: the propensity of a
    second draw would be unknown. The propensity is exact for the budgets and caps at the time of the bid.
    """
    epsilon = context.bidder.settings.exploration
    explore_draw, choice_draw = context.bidder.draws.pair(context.request_id, state.imp.imp_id)
    _request_leases(context, considered, offers, explores=explore_draw < epsilon)
    choices = considered.payable
    while choices and not _reserve_cap(context, state, offers[choices[0]]):
        choices = choices[1:]
    if not choices:
        return None
    selected, propensity = select.epsilon_greedy(len(choices), epsilon, explore_draw, choice_draw)
    offer = offers[choices[selected]]
    if selected:
        _void_cap(context, state, offers[choices[0]])
        if not _reserve_cap(context, state, offer):
            return None
    _reserve_budget(context, state, offer)
    state.bid = _bid(context, state.imp, offer, source, propensity)
    return offer.position


def _request_leases(context: RequestContext, considered: select.Considered, offers: _Offers, *, explores: bool) -> None:
    """Request leases for candidates that lack budget: those ranked above the best payable one, all if ``explores``."""
    if context.bidder.logged_verdict is not None:
        return
    best = considered.payable[0] if considered.payable and not explores else None
    for k in considered.all:
        if k == best:
            return
        if considered.verdicts.get(k) is Verdict.NO_BUDGET:
            offers.request_lease(k)


def _reserve_cap(context: RequestContext, state: ImpState, offer: _Offer) -> bool:
    """Reserve an impression under the campaign's frequency cap, and set the verdict.

    False if the cap has no room, or its store is down or locked by another process: the next candidate is bid.
    """
    bidder = context.bidder
    campaign = offer.campaign
    verdict = Verdict.BID
    if campaign.cap_per_day and not context.request.is_test:
        if bidder.logged_verdict is not None:
            verdict = bidder.logged_verdict(state.imp.imp_id, offer.ad.ad_id)
        else:
            day = day_of(context.now_us, campaign.zone).toordinal() - EPOCH_ORDINAL
            cap = Cap(campaign.campaign_id, day, campaign.cap_per_day)
            until_us = context.now_us + bidder.settings.token_s * US_PER_S
            state.cap_id = bidder.user_store.reserve(context.user_id, cap, now_us=context.now_us, until_us=until_us)
            verdict = Verdict.BID if state.cap_id else Verdict.FREQUENCY_CAP
    state.verdict_K[offer.position] = verdict.code
    return verdict is Verdict.BID


def _void_cap(context: RequestContext, state: ImpState, offer: _Offer) -> None:
    """Undo `_reserve_cap`."""
    if state.cap_id:
        context.bidder.user_store.void(state.cap_id)
    state.cap_id = ""
    state.verdict_K[offer.position] = Verdict.NOT_SELECTED.code


def _reserve_budget(context: RequestContext, state: ImpState, offer: _Offer) -> None:
    bidder = context.bidder
    if context.request.is_test or bidder.logged_verdict is not None:
        return
    lease_id = bidder.budgets.reserve(offer.campaign, offer.price_nanos, context.now_us)
    assert lease_id is not None, f"{offer.campaign.campaign_id}: can_pay found a lease for {offer.price_nanos} nanos"
    state.lease_id = lease_id


def _bid(context: RequestContext, imp: Impression, offer: _Offer, source: Source, propensity: float) -> Bid:
    ad = offer.ad
    sizes = [size for size in imp.sizes if not ad.sizes or size in ad.sizes]
    return Bid(
        bid_id=context.bidder.new_id(),
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
