"""The life of one request, from what was asked to what is offered; `respond` reads top to bottom.

Nothing here knows of sockets. A `Bidder` brings what is known, ``now_us`` and ``clock`` say what time it is: a log can
be replayed through the same function. Each step has its fallback, named beside it; the last one is to offer nothing.

Letters: A ads of the book, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from leadre.creative import banner as creatives
from leadre.errors import PeerError
from leadre.serve.bidding.context import BidDecision, Bidder, Candidates, ImpState, Market, RequestContext
from leadre.serve.bidding.select import choose
from leadre.serve.bidding.user_store import UserStore
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.events.tokens import Token, event_url, nonce
from leadre.serve.ipc.messages import GenerateRequest
from leadre.serve.protocol import consent
from leadre.serve.protocol.openrtb import NoBid, Rendered
from leadre.store.contract import StoredList, is_possible
from leadre.types import Bid, Request, Source
from leadre.units import US_PER_S

MIN_S = 0.005  # with less time left no other process is asked
GENERATED = 50  # ads wanted of the model


async def respond(request: Request, bidder: Bidder, now_us: int, until_s: float) -> BidDecision:
    """Offer ads for the places of a request, until ``until_s`` of the bidder's clock."""
    settings, market, request_id = bidder.settings, bidder.market, bidder.new_id()
    permitted = consent.permissions(  # a malformed string: everything is refused
        request.signals, vendor_id=settings.vendor_id, when_absent=settings.gdpr_when_absent
    )
    if not (permitted.contextual or permitted.personalise):
        return BidDecision(request_id=request_id, permitted=permitted, reason=NoBid.NO_CONSENT)
    is_known = permitted.store_id and permitted.personalise and is_possible(request.user_id)
    user_id = request.user_id if is_known else ""
    asked = RequestContext(request, request_id, permitted, user_id, market, bidder, now_us)
    masks = market.book.masks(request, now_us, _segments(asked))
    places = [ImpState(imp, eligible_A) for imp, eligible_A in zip(request.imps, masks, strict=True)]
    found = listed = _stored(bidder.memory.listed(user_id), "stored", market.book)  # the store is down: a stranger
    if not _any_eligible(found, places):  # no list, or nothing of it is live
        found = await _generated(asked, places, until_s)
    if permitted.contextual and not _any_eligible(found, places):  # no model, no history or no time
        found = _stored(bidder.memory.everybody(), "contextual", market.book)
    if bidder.clock() > until_s:
        return BidDecision(request_id=request_id, permitted=permitted, reason=NoBid.INSUFFICIENT_TIME)
    for place in places:  # nothing that may be shown, paid and counted: no bid for this place
        choose(asked, place, found, [other.bid for other in places if other.bid])
    rendered = [_rendered(asked, place, place.bid) for place in places if place.bid]
    return BidDecision(
        request_id=request_id,
        permitted=permitted,
        rendered=rendered,
        reason=None if rendered else _reason(places, bidder.memory),
        user_id=user_id,
        places=places,
        candidates=found,
        versions=_versions(market, listed, found),
    )


def _versions(market: Market, listed: Candidates, found: Candidates) -> dict[str, str]:
    """Of the book, the counts behind its prices, the user's own list, and whatever else the candidates came from."""
    versions = {"book": str(market.book.version), "counts": str(market.counted)}
    if listed.version:
        versions["lists"] = listed.version
    if found.source == "contextual":
        versions["everybody"] = found.version
    if found.source == "generated" and len(found.rows_K):
        versions |= {"model": found.version, "history": str(found.history_us)}
    return versions


def _segments(asked: RequestContext) -> Sequence[str]:
    """The user's segments, if anybody targets some and consent lets us read them."""
    if not asked.user_id or asked.market.book.columns.segments.all_none:
        return ()
    profile = asked.bidder.memory.profile(asked.user_id)
    return (*asked.request.segments, *(profile.segments if profile else ()))


def _stored(listed: StoredList | None, source: Source, book: CatalogueSnapshot) -> Candidates:
    """A stored list as rows of the book; ads that the book does not know are left out."""
    if listed is None:
        return Candidates(source, np.zeros(0, np.int64), np.zeros(0))
    rows = [book.row_of_ad.get(ad_id, -1) for ad_id in listed.ad_ids]
    rows_K, log_p_K = np.array(rows, np.int64), np.array(listed.log_p)
    known_K = rows_K >= 0
    return Candidates(source, rows_K[known_K], log_p_K[known_K], listed.version, listed.made_at_us)


async def _generated(asked: RequestContext, places: Sequence[ImpState], until_s: float) -> Candidates:
    """What the language model says of a user whose history may be read."""
    bidder, objects = asked.bidder, asked.market.objects
    nothing = Candidates("generated", np.zeros(0, np.int64), np.zeros(0))
    if bidder.generate is None or not places or until_s - bidder.clock() < MIN_S:
        return nothing
    profile = bidder.memory.profile(asked.user_id)
    if profile is None or not profile.recent:
        return nothing
    eligible_A = np.logical_or.reduce([place.eligible_A for place in places])
    wanted = GenerateRequest(
        user_id=profile.user_id,
        recent=profile.recent,
        now_us=asked.now_us,
        eligible=objects.bits(eligible_A),
        top=GENERATED,
        until_s=until_s,
    )
    try:
        answer = await bidder.generate(wanted)
    except PeerError:
        return nothing
    rows_K, log_p_K = objects.ads_of(answer.objects, answer.log_p, eligible_A)
    return Candidates(
        "generated",
        rows_K,
        log_p_K,
        objects.version,
        made_at_us=asked.now_us,
        history_us=profile.recent[-1].at_us,
        is_cut=not answer.is_complete,
    )


def _any_eligible(found: Candidates, places: Sequence[ImpState]) -> bool:
    return any(bool(place.eligible_A[found.rows_K].any()) for place in places)


def _rendered(asked: RequestContext, place: ImpState, bid: Bid) -> Rendered:
    """The bid with its banner and the URLs by which its events come back."""
    book, settings, permitted = asked.market.book, asked.bidder.settings, asked.permitted
    row = book.row_of_ad[bid.ad_id]
    ad, campaign = book.ads[row], book.campaigns[book.campaign_A[row]]
    token = Token(
        bid_id=bid.bid_id,
        request_id=asked.request_id,
        imp_id=bid.imp_id,
        ad_id=bid.ad_id,
        campaign_id=bid.campaign_id,
        user_id=asked.user_id if permitted.add_to_profile or permitted.measure else "",
        charge_type=campaign.bid_type,
        price_cap_nanos=bid.price_nanos,
        charge_nanos=campaign.bid_nanos,
        currency=bid.currency,
        lease_id=place.lease_id,
        reserved_nanos=bid.price_nanos if place.lease_id else 0,
        cap_id=place.cap_id,
        issued_at_us=asked.now_us,
        expires_at_us=asked.now_us + settings.token_s * US_PER_S,
        nonce=nonce(),
        is_test=asked.request.is_test,
        may_measure=permitted.measure,
        may_profile=permitted.add_to_profile,
    )
    signed = asked.bidder.sign(token)
    click_url, impression_url = (event_url(settings.public_url, kind, signed) for kind in ("click", "imp"))
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


def _reason(places: Sequence[ImpState], memory: UserStore) -> NoBid:
    """The furthest that any candidate came."""
    verdicts = {verdict for place in places for verdict in place.verdicts.values()}
    for verdict, reason in (
        ("cap", NoBid.DAILY_USER_CAP),
        ("budget", NoBid.BUDGET_EXHAUSTED),
        ("below floor", NoBid.BELOW_FLOOR),
    ):
        if verdict in verdicts:
            return reason
    return NoBid.DEGRADED if memory.is_down else NoBid.NO_CANDIDATE
