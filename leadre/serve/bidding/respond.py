"""One bid request from start to end: consent, user, eligible ads, candidates, bids. `respond` shows all steps.

This file opens no socket and does not read the machine's clock: a `Bidder` holds the state and the clock, so a replay
calls the same function. The comment on the line of each step names its fallback; the last fallback is no bid.

Letters: A ads of the catalogue, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from leadre.creative import banner as creatives
from leadre.errors import PeerError
from leadre.serve.bidding.context import BidDecision, Bidder, Candidates, ImpState, Market, RequestContext
from leadre.serve.bidding.fill import fill_imp
from leadre.serve.bidding.select import VERDICTS
from leadre.serve.bidding.user_store import UserStore
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.events.tokens import Token, event_url, nonce
from leadre.serve.ipc.messages import GenerateRequest
from leadre.serve.protocol import consent
from leadre.serve.protocol.openrtb import NoBid, Rendered
from leadre.store.contract import StoredList, is_possible
from leadre.types import Bid, Permissions, Request, Source, Verdict
from leadre.units import US_PER_S

MIN_GENERATE_S = 0.005  # with less time left, the worker sends no request to the model server
MAX_GENERATED = 50  # objects that one generation returns

# Verdict of a candidate -> reason for no bid. The verdict of the latest step is first, and wins.
NO_BID_REASONS = {
    Verdict.FREQUENCY_CAP: NoBid.DAILY_USER_CAP,
    Verdict.NO_BUDGET: NoBid.BUDGET_EXHAUSTED,
    Verdict.BELOW_FLOOR: NoBid.BELOW_FLOOR,
}


async def respond(request: Request, bidder: Bidder, now_us: int, until_s: float) -> BidDecision:
    """Decide the bids of a request. ``until_s``: deadline on the bidder's monotonic clock."""
    request_id = bidder.new_id()
    permissions = _permissions(request, bidder)  # malformed consent string: nothing is permitted
    if not (permissions.contextual or permissions.personalise):
        return BidDecision(request_id=request_id, permissions=permissions, reason=NoBid.NO_CONSENT)
    user_id = _user_id(request, permissions)  # no permission or no valid ID: an unknown user
    context = RequestContext(request, request_id, permissions, user_id, bidder.market, bidder, now_us)
    imps = _imp_states(context)  # no ad is eligible: all candidates of the imp are dropped
    stored = _stored_candidates(context)  # store down or no list: no candidates yet
    candidates = stored
    if not _any_eligible(candidates, imps):
        candidates = await _generated_candidates(context, imps, until_s)  # no model, history or time: none
    if permissions.contextual and not _any_eligible(candidates, imps):
        candidates = _popular_candidates(context)  # store down: the last popular list that was read
    if bidder.clock.monotonic_s() > until_s:
        return BidDecision(request_id=request_id, permissions=permissions, reason=NoBid.INSUFFICIENT_TIME)
    for imp in imps:
        fill_imp(context, imp, candidates, [other.bid for other in imps if other.bid])  # no ad is left: no bid
    rendered = [_rendered(context, imp, imp.bid) for imp in imps if imp.bid]
    return BidDecision(
        request_id=request_id,
        permissions=permissions,
        rendered=rendered,
        reason=None if rendered else _no_bid_reason(imps, bidder.user_store),
        user_id=user_id,
        imps=imps,
        candidates=candidates,
        versions=_versions(context.market, stored, candidates),
    )


def _permissions(request: Request, bidder: Bidder) -> Permissions:
    settings = bidder.settings
    return consent.permissions(request.signals, vendor_id=settings.vendor_id, when_absent=settings.gdpr_when_absent)


def _user_id(request: Request, permissions: Permissions) -> str:
    """ID of the user whose list and profile may be read; "" for an unknown user."""
    is_permitted = permissions.store_id and permissions.personalise
    return request.user_id if is_permitted and is_possible(request.user_id) else ""


def _imp_states(context: RequestContext) -> list[ImpState]:
    request = context.request
    masks = context.market.catalogue.masks(request, context.now_us, _segments(context))
    return [ImpState(imp, eligible_A) for imp, eligible_A in zip(request.imps, masks, strict=True)]


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
    rows_K = np.array([catalogue.row_of_ad.get(ad_id, -1) for ad_id in stored.ad_ids], np.int64)
    log_p_K = np.array(stored.log_p)
    is_known_K = rows_K >= 0
    return Candidates(source, rows_K[is_known_K], log_p_K[is_known_K], stored.version, stored.made_at_us)


async def _generated_candidates(context: RequestContext, imps: Sequence[ImpState], until_s: float) -> Candidates:
    """Candidates that the language model generates from the user's recent events; none for an unknown user."""
    bidder = context.bidder
    objects = context.market.objects
    if bidder.generate is None or not imps or until_s - bidder.clock.monotonic_s() < MIN_GENERATE_S:
        return _no_candidates("generated")
    profile = bidder.user_store.read_profile(context.user_id)
    if profile is None or not profile.recent:
        return _no_candidates("generated")
    eligible_A = np.logical_or.reduce([imp.eligible_A for imp in imps])
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
        rows_K,
        log_p_K,
        objects.version,
        made_at_us=context.now_us,
        history_us=profile.recent[-1].at_us,
        is_cut=not reply.is_complete,
    )


def _no_candidates(source: Source) -> Candidates:
    return Candidates(source, np.zeros(0, np.int64), np.zeros(0))


def _any_eligible(candidates: Candidates, imps: Sequence[ImpState]) -> bool:
    return any(bool(imp.eligible_A[candidates.rows_K].any()) for imp in imps)


def _rendered(context: RequestContext, state: ImpState, bid: Bid) -> Rendered:
    """The bid with its banner and its event URLs; each URL contains the bid's signed token."""
    catalogue = context.market.catalogue
    settings = context.bidder.settings
    ad = catalogue.ads[catalogue.row_of_ad[bid.ad_id]]
    signed = context.bidder.sign(_token(context, state, bid))
    click_url = event_url(settings.public_url, "click", signed)
    impression_url = event_url(settings.public_url, "imp", signed)
    return Rendered(
        bid=bid,
        adm=creatives.banner(ad, bid.size, click_url=click_url, impression_url=impression_url),
        click_url=click_url,
        impression_url=impression_url,
        nurl=event_url(settings.public_url, "win", signed),
        burl=event_url(settings.public_url, "bill", signed),
        adomain=(ad.adomain,) if ad.adomain else (),
        iab_categories=ad.iab_categories,
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
        user_id=context.user_id if permissions.add_to_profile or permissions.measure else "",
        charge_type=campaign.bid_type,
        price_cap_nanos=bid.price_nanos,
        charge_nanos=campaign.bid_nanos,
        currency=bid.currency,
        lease_id=state.lease_id,
        reserved_nanos=bid.price_nanos if state.lease_id else 0,
        cap_id=state.cap_id,
        issued_at_us=context.now_us,
        expires_at_us=context.now_us + context.bidder.settings.token_s * US_PER_S,
        nonce=nonce(),
        is_test=context.request.is_test,
        may_measure=permissions.measure,
        may_profile=permissions.add_to_profile,
    )


def _no_bid_reason(imps: Sequence[ImpState], user_store: UserStore) -> NoBid:
    verdicts = {VERDICTS[code] for imp in imps for code in imp.verdict_K.tolist()}
    for verdict, reason in NO_BID_REASONS.items():
        if verdict in verdicts:
            is_uncounted = verdict is Verdict.FREQUENCY_CAP and user_store.is_down  # the cap may have room
            return NoBid.DEGRADED if is_uncounted else reason
    return NoBid.DEGRADED if user_store.is_down else NoBid.NO_CANDIDATE


def _versions(market: Market, stored: Candidates, candidates: Candidates) -> dict[str, str]:
    """Artifact -> version, for a replay: catalogue, event counts of the prices, user's list, source of candidates."""
    versions = {"book": str(market.catalogue.version), "counts": str(market.log_position)}
    if stored.version:
        versions["lists"] = stored.version
    if candidates.source == "contextual":
        versions["everybody"] = candidates.version
    if candidates.source == "generated" and len(candidates.rows_K):
        versions |= {"model": candidates.version, "history": str(candidates.history_us)}
    return versions
