"""One bid request from start to end: consent, user, eligible ads, candidates, bids. `respond` shows all steps.

This file opens no socket and does not read the machine's clock: a `Bidder` holds the state and the clock, so a replay
calls the same function. The comment on the line of each step names its fallback; the last fallback is no bid.

Letters: A ads of the catalogue, I imps of the request, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

import numpy as np

from leadre.creative import banner as creatives
from leadre.errors import PeerError
from leadre.serve.bidding.api_ads import with_api_ads
from leadre.serve.bidding.caps import RequestCaps
from leadre.serve.bidding.context import BidDecision, Bidder, Candidates, ImpState, Market, RequestContext
from leadre.serve.bidding.fill import fill_imp
from leadre.serve.bidding.price import Prices
from leadre.serve.bidding.ranked_candidates import ranked, request_pacing
from leadre.serve.bidding.select import VERDICTS, Bools
from leadre.serve.bidding.user_store import UserStore
from leadre.serve.callers.party import ANYBODY, Party
from leadre.serve.catalogue import categories
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.catalogue.shared_masks import Eligibility
from leadre.serve.events.records import NANO
from leadre.serve.events.tokens import GRACE_US, Token, event_url, nonce
from leadre.serve.ipc.messages import GenerateRequest
from leadre.serve.protocol import consent
from leadre.serve.protocol.openrtb import NoBid, Rendered
from leadre.serve.rankers.rates import Rates
from leadre.store.contract import StoredList, is_possible
from leadre.types import Bid, EventKind, Permissions, Request, Source, Verdict

MIN_GENERATE_S = 0.005  # with less time left, the worker sends no request to the model server
EVENTS: Sequence[EventKind] = ("win", "bill", "loss", "imp", "click")  # whose URLs a bid carries
MAX_GENERATED = 50  # objects that one generation returns

# Verdict of a candidate -> reason for no bid. The verdict of the latest step is first, and wins.
NO_BID_REASONS = {
    Verdict.NOT_EVALUATED: NoBid.INSUFFICIENT_TIME,
    Verdict.FREQUENCY_CAP: NoBid.DAILY_USER_CAP,
    Verdict.NO_BUDGET: NoBid.BUDGET_EXHAUSTED,
    Verdict.OPEN_BIDS: NoBid.TOO_MANY_OPEN,
    Verdict.PACED: NoBid.PACED,
    Verdict.BELOW_FLOOR: NoBid.BELOW_FLOOR,
}


async def respond(request: Request, bidder: Bidder, now_us: int, until_s: float, party: Party = ANYBODY) -> BidDecision:
    """Decide the bids of a request of a sender. ``until_s``: deadline on the bidder's monotonic clock."""
    request_id = bidder.new_id()
    permissions = _permissions(request, bidder, now_us)  # malformed consent string: nothing is permitted
    if not (permissions.contextual or permissions.personalise):
        return BidDecision(request_id=request_id, permissions=permissions, reason=NoBid.NO_CONSENT)
    user_id = _user_id(request, permissions, bidder.user_store)  # no permission or no valid ID: an unknown user
    context = RequestContext(request, request_id, permissions, user_id, bidder.market, bidder, now_us, party)
    eligibility = context.market.catalogue.eligibility(request, now_us, _segments(context))
    stored = _stored_candidates(context)  # store down or no list: no candidates yet
    candidates = stored
    eligible_IK = eligibility.at(candidates.rows_K)  # no ad is eligible: all candidates of the imp are dropped
    if not _any_eligible(eligible_IK):
        candidates = await _generated_candidates(context, eligibility, until_s)  # no model, history or time: none
        eligible_IK = eligibility.at(candidates.rows_K)
    if permissions.contextual and not _any_eligible(eligible_IK):
        candidates = _popular_candidates(context)  # store down: the last popular list that was read
        eligible_IK = eligibility.at(candidates.rows_K)
    if len(context.market.catalogue.columns.api_rows):
        candidates = with_api_ads(
            context, eligibility, candidates, _any_eligible(eligible_IK)
        )  # none is eligible: those of the source
        eligible_IK = eligibility.at(candidates.rows_K)
    if bidder.clock.monotonic_s() > until_s:
        return BidDecision(request_id=request_id, permissions=permissions, reason=NoBid.INSUFFICIENT_TIME)
    rates = _rates(context, candidates, eligible_IK, until_s)  # no ranker, no time or an error: counts price the ads
    pacing = request_pacing(context, candidates)
    ranking = ranked(context, candidates, rates, pacing)
    prices = Prices(context, ranking)
    caps = RequestCaps(context)
    imps = [ImpState(imp) for imp in request.imps]
    for imp, eligible_K in zip(imps, eligible_IK, strict=True):
        if bidder.clock.monotonic_s() > until_s:  # the imps before it keep their bids
            imp.verdict_K = np.full(len(eligible_K), Verdict.NOT_EVALUATED.code, np.uint8)
            continue
        earlier_bids = [other.bid for other in imps if other.bid]
        fill_imp(context, imp, ranking, prices, caps, eligible_K, earlier_bids)  # no ad is left: no bid
    rendered = [_rendered(context, imp, imp.bid) for imp in imps if imp.bid]
    return BidDecision(
        request_id=request_id,
        permissions=permissions,
        rendered=rendered,
        reason=None if rendered else _no_bid_reason(imps, bidder.user_store),
        user_id=user_id,
        imps=imps,
        candidates=candidates,
        rates=rates,
        values=ranking.values,
        paced=pacing.logged([state.verdict_K for state in imps]) if pacing is not None else (),
        versions=_versions(context.market, stored, candidates, rates),
        squashing=ranking.squashing,
    )


def _permissions(request: Request, bidder: Bidder, now_us: int) -> Permissions:
    settings = bidder.settings
    return consent.permissions(
        request.signals,
        now_us,
        vendor_id=settings.vendor_id,
        when_absent=settings.gdpr_when_absent,
        by_country=settings.gdpr_by_country,
    )


def _user_id(request: Request, permissions: Permissions, user_store: UserStore) -> str:
    """ID of the user whose list and profile may be read: the first known one, else the first; "" without permission."""
    if not (permissions.store_id and permissions.personalise):
        return ""
    user_ids = [user_id for user_id in (request.user_id, *request.other_user_ids) if is_possible(user_id)]
    if len(user_ids) < 2:
        return user_ids[0] if user_ids else ""
    return user_store.find_user(user_ids) or user_ids[0]


def _segments(context: RequestContext) -> Sequence[str]:
    """The user's segments, from request and profile; () if no campaign targets segments or the user is unknown."""
    if not context.user_id or context.market.catalogue.columns.segments.all_none:
        return ()
    profile = context.bidder.user_store.read_profile(context.user_id)
    return (*context.request.segments, *(profile.segments if profile else ()))


def _stored_candidates(context: RequestContext) -> Candidates:
    stored = context.bidder.user_store.read_list(context.user_id)
    return _candidates_of(stored, "stored", context.market.catalogue)


def _popular_candidates(context: RequestContext) -> Candidates:
    return _candidates_of(context.bidder.user_store.popular_list(), "contextual", context.market.catalogue)


def _candidates_of(stored: StoredList | None, source: Source, catalogue: CatalogueSnapshot) -> Candidates:
    """The ads of a stored list as rows of the catalogue; ads that the catalogue lacks are left out."""
    if stored is None:
        return _no_candidates(source)
    ad_ids = stored.ad_ids
    rows_K, are_known = catalogue.row_of_ad.of(ad_ids)
    log_p_K = np.array(stored.log_p)
    if not are_known:
        is_known_K = rows_K >= 0
        ad_ids = tuple(compress(ad_ids, is_known_K))
        rows_K = rows_K[is_known_K]
        log_p_K = log_p_K[is_known_K]
    return Candidates(source, ad_ids, rows_K, log_p_K, stored.version, stored.made_at_us)


async def _generated_candidates(context: RequestContext, eligibility: Eligibility, until_s: float) -> Candidates:
    """Candidates that the language model generates from the user's recent events; none for an unknown user."""
    bidder = context.bidder
    objects = context.market.objects
    if bidder.generate is None or not context.request.imps or until_s - bidder.clock.monotonic_s() < MIN_GENERATE_S:
        return _no_candidates("generated")
    profile = bidder.user_store.read_profile(context.user_id)
    if profile is None or not profile.recent:
        return _no_candidates("generated")
    eligible_A = eligibility.in_any_imp()
    generate_request = GenerateRequest(
        user_id=profile.user_id,
        recent=profile.recent,
        now_us=context.now_us,
        eligible=objects.bits(eligible_A),
        top=MAX_GENERATED,
        until_s=until_s,
    )
    try:
        reply = await bidder.generate(generate_request)
    except PeerError:
        return _no_candidates("generated")
    rows_K, log_p_K = objects.ads_of(reply.objects, reply.log_p, eligible_A)
    return Candidates(
        "generated",
        [context.market.catalogue.ads[row].ad_id for row in rows_K.tolist()],
        rows_K,
        log_p_K,
        objects.version,
        made_at_us=context.now_us,
        history_us=profile.recent[-1].at_us,
        is_cut=not reply.is_complete,
    )


def _rates(
    context: RequestContext, candidates: Candidates, eligible_IK: Sequence[Bools], until_s: float
) -> Rates | None:
    """The ranker's rates of the candidates that an imp may show, for all imps at once; those of API ads have none."""
    ranker = context.market.ranker
    if ranker is None or not _any_eligible(eligible_IK):
        return None
    is_open_K = np.logical_or.reduce(eligible_IK)
    is_open_K[candidates.first_api_ad :] = False  # they are explored, in no order
    placement = next((imp.placement_id for imp in context.request.imps if imp.placement_id), "")
    profile = context.bidder.user_store.read_profile(context.user_id)  # None for an unknown user

    def score(now_s: float) -> Rates:
        return ranker.rates(
            profile, candidates.rows_K, is_open_K, placement=placement, now_us=context.now_us, now_s=now_s
        )

    return context.bidder.ranking.attempt(score, until_s)


def _no_candidates(source: Source) -> Candidates:
    return Candidates(source, (), np.zeros(0, np.int64), np.zeros(0))


def _any_eligible(eligible_IK: Sequence[Bools]) -> bool:
    return any(map(np.count_nonzero, eligible_IK))


def _rendered(context: RequestContext, state: ImpState, bid: Bid) -> Rendered:
    """The bid with its banner and its event URLs, each with a token of its kind."""
    catalogue = context.market.catalogue
    settings = context.bidder.settings
    ad = catalogue.ads[catalogue.row_of_ad[bid.ad_id]]
    token_of = context.bidder.encrypt(_token(context, state, bid), EVENTS)
    is_first_price = context.request.is_first_price
    urls = {
        kind: event_url(settings.public_url, kind, token, min_to_win=is_first_price) for kind, token in token_of.items()
    }
    sent_categories, cattax = categories.sent(ad.iab_categories, ad.cattax, context.request.cattax)
    return Rendered(
        bid=bid,
        adm=creatives.banner(ad, bid.size, click_url=urls["click"], impression_url=urls["imp"]),
        click_url=urls["click"],
        impression_url=urls["imp"],
        nurl=urls["win"],
        burl=urls["bill"],
        lurl=urls["loss"],
        exp_s=context.exp_s(state.imp),
        adomain=(ad.adomain,) if ad.adomain else (),
        app_bundle=ad.app_bundle,
        iab_categories=sent_categories,
        cattax=cattax,
        language=ad.language,
        attributes=ad.attributes,
    )


def _token(context: RequestContext, state: ImpState, bid: Bid) -> Token:
    """The token of a bid: all that its events need later, such as charge, lease, cap and permissions."""
    catalogue = context.market.catalogue
    permissions = context.permissions
    campaign = catalogue.campaigns[catalogue.row_of_campaign[bid.campaign_id]]
    return Token(
        bid_id=bid.bid_id,
        request_id=context.request_id,
        imp_id=bid.imp_id,
        ad_id=bid.ad_id,
        campaign_id=bid.campaign_id,
        user_id=context.user_id if permissions.add_to_profile or permissions.measure or state.cap_id else "",
        charge_type=campaign.bid_type,
        price_cap_nanos=bid.price_nanos,
        charge_nanos=bid.action_nanos,
        currency=bid.currency,
        lease_id=state.lease_id,
        reserved_nanos=state.reserved_nanos,
        open_nanos=state.open_nanos,
        cap_id=state.cap_id,
        cap_day=state.cap_day,
        bills_signed_price=context.request.bills_signed_price or context.party.sends_no_price,
        issued_at_us=context.now_us,
        expires_at_us=context.until_us(state.imp) + GRACE_US,
        nonce=nonce(),
        is_test=context.request.is_test,
        may_measure=permissions.measure,
        may_profile=permissions.add_to_profile,
        sender="" if context.request.is_test else context.party.sender,
        rate_event=state.rate.event if state.rate else "",
        rate_slice=state.rate.slice if state.rate else "",
        has_fixed_price=context.party.has_fixed_price,
        rate_nano=round(state.rate.p * NANO) if state.rate else 0,
    )


def _no_bid_reason(imps: Sequence[ImpState], user_store: UserStore) -> NoBid:
    verdicts = {VERDICTS[code] for imp in imps for code in imp.verdict_K.tolist()}
    for verdict, reason in NO_BID_REASONS.items():
        if verdict in verdicts:
            is_uncounted = verdict is Verdict.FREQUENCY_CAP and user_store.is_down  # the cap may have room
            return NoBid.DEGRADED if is_uncounted else reason
    return NoBid.DEGRADED if user_store.is_down else NoBid.NO_CANDIDATE


def _versions(market: Market, stored: Candidates, candidates: Candidates, rates: Rates | None) -> dict[str, str]:
    """Artifact -> version, for a replay: catalogue, event counts of the prices, user's list, source of candidates,
    ranker. ``history`` is the time of the last event of the profile that was read, ``events`` their number.
    """
    versions = {"book": str(market.catalogue.version), "counts": str(market.log_position)}
    if stored.version:
        versions["lists"] = stored.version
    if candidates.source == "contextual":
        versions["everybody"] = candidates.version
    if candidates.source == "generated" and candidates.first_api_ad:
        versions |= {"model": candidates.version, "history": str(candidates.history_us)}
    if rates is not None:
        events, history_us = rates.history
        versions |= {"ranker": rates.version, "history": str(history_us), "events": str(events)}
    return versions
