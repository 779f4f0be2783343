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
from leadre.serve.bidding.charge import charge
from leadre.serve.bidding.context import ImpState, RequestContext
from leadre.serve.bidding.ranked_candidates import Ranking
from leadre.serve.bidding.select import Bools, Codes
from leadre.serve.bidding.shade import ShadedPrice
from leadre.serve.bidding.value import bid_rate
from leadre.serve.protocol import openrtb
from leadre.types import Ad, Bid, Campaign, Impression, Verdict


class _Offer(NamedTuple):
    """A candidate that may be bid: its position in K, its ad and campaign, and the price of one impression.

    ``reserved_nanos``: expected charge of one impression. ``action_nanos``: price of the paid event, if the bidder's
    own auction sets it; 0 = the campaign's bid.
    """

    position: int
    ad: Ad
    campaign: Campaign
    price_nanos: int
    reserved_nanos: int
    action_nanos: int = 0
    shaded: ShadedPrice | None = None


class _Offers:
    """The candidates of one imp, by their position in K. No method reserves cap or budget."""

    def __init__(self, context: RequestContext, imp: Impression, ranking: Ranking, caps: RequestCaps) -> None:
        bidder = context.bidder
        self.caps = caps
        self._ads = context.market.catalogue.ads
        self._campaigns = context.market.catalogue.campaigns
        self._rows = ranking.rows
        self._campaign_rows = ranking.campaign_rows
        self._prices = ranking.prices
        self._reserved = ranking.reserved
        self._budgets = bidder.budgets
        self._logged_verdict = bidder.logged_verdict
        self._imp_id = imp.imp_id
        self._user_id = context.user_id
        self._now_us = context.now_us
        self._party = context.party
        self._open_bids = bidder.open_bids
        self._room_nanos: dict[str, int] = {}  # by currency, for a bid of the sender

    def __getitem__(self, k: int) -> _Offer:
        ad = self._ads[self._rows[k]]
        return _Offer(k, ad, self._campaigns[self._campaign_rows[k]], self._prices[k], self._reserved[k])

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
    offers = _Offers(context, state.imp, ranking, caps)
    ranked = ranked_R.tolist()
    first_api_ad = ranking.candidates.first_api_ad if ranking.candidates.api_ads else None
    considered = select.consider(ranked, ranking.limited, offers.limit, first_api_ad)
    state.considered = considered.all
    winner = _select_and_reserve(context, state, considered, offers, ranking, slot=len(earlier_bids))
    if winner is not None:
        lower_R = ranked_R[ranked.index(winner) + 1 :]
        state.verdict_K[lower_R] = Verdict.OUTRANKED.code
        if (is_paced_R := ranking.loses_by_pacing(lower_R, winner)) is not None:
            state.verdict_K[lower_R[is_paced_R]] = Verdict.PACED.code
        campaign_row = ranking.campaign_rows[winner]
        state.rate = bid_rate(context.market.catalogue.columns, campaign_row, winner, ranking.values, ranking.rates)
    if considered.verdicts:
        state.verdict_K[list(considered.verdicts)] = [verdict.code for verdict in considered.verdicts.values()]


def _filter(
    context: RequestContext,
    state: ImpState,
    ranking: Ranking,
    eligible_K: Bools,
    earlier_bids: Sequence[Bid],
) -> Codes:
    currencies = context.market.catalogue.currencies
    floors = [_floor_nanos(state.imp, currency) for currency in currencies]
    row_of_ad = context.market.catalogue.row_of_ad
    one_currency = len(currencies) == 1
    return select.filter_candidates(
        ranking.price_K,
        floors[0] if one_currency else np.array(floors, np.int64)[ranking.currency_K],
        eligible_K,
        worth_nanos_K=None if ranking.pacing is None else ranking.unpaced_K,
        # all earlier bids share one currency
        has_currency_K=None
        if one_currency or not earlier_bids
        else ranking.currency_K == currencies.index(earlier_bids[0].currency),
        are_duplicates=[ranking.rows_K == row_of_ad[bid.ad_id] for bid in earlier_bids],
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
    ranking: Ranking,
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
    offer = _priced(context, state.imp, ranking, offer, offers, considered.payable, slot)
    state.action_nanos = offer.action_nanos
    _reserve_budget(context, state, offer)
    state.bid = _bid(context, state, offer, ranking, propensity)
    return offer.position


def _priced(
    context: RequestContext,
    imp: Impression,
    ranking: Ranking,
    offer: _Offer,
    offers: _Offers,
    payable: Sequence[int],
    slot: int,
) -> _Offer:
    """The offer at the price of the bidder's mechanism, if the bidder is the seller of the imp, or shaded for a
    caller's first price. The bidder's own first price is the paced bid.

    Candidates of its currency and of other advertisers compete that passed the filter and have budget; a frequency cap
    that has no room is known of those alone that were tried before it. ``slot``: ads of the response above this one.
    """
    settings = context.bidder.settings
    if context.request.is_first_price and offer.campaign.shading:
        shaded = _shaded(context, imp, ranking, offer)
        return _at_event_price(ranking, shaded) if offer.campaign.has_goal else shaded
    if not context.request.is_own_auction:
        return _at_event_price(ranking, offer) if offer.campaign.has_goal else offer
    if settings.mechanism == "first_price":
        is_paced = offer.price_nanos != ranking.worth_K[offer.position]
        return _at_event_price(ranking, offer) if is_paced or offer.campaign.has_goal else offer
    currency = offer.campaign.currency
    lower = map(offers.__getitem__, payable[payable.index(offer.position) + 1 :])
    owner = "" if context.bidder.has_old_rules else offer.ad.advertiser_id
    rivals = [
        other.position for other in lower if other.campaign.currency == currency and other.ad.advertiser_id != owner
    ]
    competitors = [offer.position, *rivals]
    price = charge(
        settings.mechanism,
        settings.effects_from(slot, len(context.request.imps)),
        ranking.event_nanos(competitors),
        ranking.price_K[competitors],
        ranking.score_K[competitors],
        _floor_nanos(imp, currency),
    )
    return offer._replace(
        price_nanos=price.impression_nanos, reserved_nanos=price.impression_nanos, action_nanos=price.action_nanos
    )


def _shaded(context: RequestContext, imp: Impression, ranking: Ranking, offer: _Offer) -> _Offer:
    """The offer at the shaded price; a bid for impressions reserves no more.

    Bids to a sender without a configured name are not shaded: anyone can report prices under no name.
    """
    bidder = context.bidder
    currency = offer.campaign.currency
    logged = bidder.logged_bid(imp.imp_id, offer.ad.ad_id)
    if logged is not None and logged.unshaded_nanos == offer.price_nanos:
        price = ShadedPrice(logged.price_nanos, logged.price_propensity, logged.explores_price)
    elif not context.party.name:
        return offer
    else:
        price = context.market.shading.price(
            context.party.name,
            currency,
            worth_nanos=int(ranking.worth_K[offer.position]),
            paced_nanos=offer.price_nanos,
            floor_nanos=_floor_nanos(imp, currency),
            draws=bidder.draws.price(context.request_id, imp.imp_id),
        )
    reserved_nanos = price.nanos if offer.campaign.bid_type == "cpm" else offer.reserved_nanos
    return offer._replace(price_nanos=price.nanos, reserved_nanos=reserved_nanos, shaded=price)


def _at_event_price(ranking: Ranking, offer: _Offer) -> _Offer:
    """The offer with the paced bid as the price of the paid event."""
    return offer._replace(action_nanos=int(ranking.event_nanos([offer.position])[0]))


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


def _reserve_budget(context: RequestContext, state: ImpState, offer: _Offer) -> None:
    bidder = context.bidder
    if context.request.is_test or bidder.logged_verdict is not None:
        return
    lease_id = bidder.budgets.reserve(offer.campaign, offer.reserved_nanos, context.now_us)
    assert lease_id is not None, f"{offer.campaign.campaign_id}: can_pay found a lease for {offer.reserved_nanos} nanos"
    state.lease_id = lease_id
    state.reserved_nanos = offer.reserved_nanos if lease_id else 0
    state.open_nanos = offer.reserved_nanos
    bidder.open_bids.add(
        context.party,
        offer.campaign.campaign_id if lease_id else "",
        offer.campaign.currency,
        offer.reserved_nanos,
        context.until_us(state.imp),
        context.now_us,
    )


def _bid(context: RequestContext, state: ImpState, offer: _Offer, ranking: Ranking, propensity: float) -> Bid:
    ad = offer.ad
    shaded = offer.shaded
    sizes = [size for size in state.imp.sizes if not ad.sizes or size in ad.sizes]
    return Bid(
        bid_id=context.bidder.new_id(),
        imp_id=state.imp.imp_id,
        ad_id=ad.ad_id,
        campaign_id=ad.campaign_id,
        advertiser_id=ad.advertiser_id,
        price_nanos=offer.price_nanos,
        currency=offer.campaign.currency,
        size=sizes[0] if sizes else (300, 250),
        source=ranking.candidates.source_of(offer.position),
        propensity=propensity,
        worth_nanos=int(ranking.worth_K[offer.position]),
        reserved_nanos=state.reserved_nanos,
        unshaded_nanos=ranking.prices[offer.position] if shaded else 0,
        price_propensity=shaded.propensity if shaded else 0.0,
        explores_price=shaded.is_drawn if shaded else False,
    )
