"""The life of one request, from what was asked to what is offered; `respond` reads top to bottom.

Nothing here knows of sockets. A `Bidder` brings what is known, ``now_us`` and ``clock`` say what time it is: a log can
be replayed through the same function. Each step has its fallback, named beside it; the last one is to offer nothing.

Letters: A ads of the book, K candidates.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from leadre.auction.ledger import day_of
from leadre.errors import PeerError
from leadre.serve import consent, creatives, openrtb
from leadre.serve.book.eligibility import Snapshot
from leadre.serve.book.objects import Objects
from leadre.serve.budgets import Budgets
from leadre.serve.draws import Draws
from leadre.serve.events.tokens import Token, event_url, nonce
from leadre.serve.memory import Memory
from leadre.serve.openrtb import NoBid, Rendered
from leadre.serve.processes.messages import Generated, Wanted
from leadre.serve.settings import Settings
from leadre.store.contract import Cap, StoredList, is_possible
from leadre.types import Bid, Impression, Permissions, Request, Source

CONSIDERED = 20  # candidates of a place, among which exploration draws
LEAST_S = 0.005  # with less time left no other process is asked
GENERATED = 50  # ads wanted of the model
SECOND_US = 1_000_000
EPOCH_DAY = 719_163  # date.toordinal() of 1970-01-01


@dataclass(frozen=True)
class Market:
    """What can be bought at one moment; a request keeps the one it began with.

    ``expected_nanos_A`` is what one impression of each ad is worth to its advertiser, and so its price: the bid times
    the observed rate of what it pays for, as the log has it up to record ``counted``. ``objects`` are those that the
    language model knows.
    """

    book: Snapshot
    expected_nanos_A: NDArray[np.int64]
    objects: Objects
    counted: int = 0


@dataclass
class Bidder:
    """What requests are answered from. ``market`` is replaced as it changes; no ``generate``: no language model.

    ``held``: in a replay, what became of a bid (place, ad) that wanted budget and a place under its cap: "bid" or what
    was missing. It depended on all other requests of that moment, so the log has to say it.
    """

    settings: Settings
    market: Market
    memory: Memory
    budgets: Budgets
    generate: Callable[[Wanted], Awaitable[Generated]] | None
    sign: Callable[[Token], str]
    new_id: Callable[[], str]
    draws: Draws
    clock: Callable[[], float] = time.monotonic
    held: Callable[[str, str], str] | None = None


@dataclass(frozen=True)
class Candidates:
    """Rows of the book [K] and their log-probabilities by whoever named them, best first.

    ``history_us``: when the last thing happened that the language model was told of. ``is_cut``: its answer was cut
    short by the deadline.
    """

    source: Source
    rows_K: NDArray[np.int64]
    log_p_K: NDArray[np.float64]
    version: str = ""
    made_at_us: int = 0
    history_us: int = 0
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class _Offer:
    """A row of the book and what it pays for an impression."""

    row: int
    price_nanos: int


@dataclass
class Place:
    """An impression, which ads may be shown there, and what became of the candidates: row of the book -> verdict.

    ``considered``: the rows that fitted and were asked for budget, in order.
    """

    imp: Impression
    eligible_A: NDArray[np.bool_]
    verdicts: dict[int, str] = field(default_factory=dict)
    considered: list[int] = field(default_factory=list)
    bid: Bid | None = None
    lease_id: int = 0
    cap_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is offered, or why nothing is, and what is to be remembered of how it came about.

    ``versions``: of what it was made from.
    """

    request_id: str  # ours, as callers may use theirs twice
    permitted: Permissions
    rendered: Sequence[Rendered] = ()
    reason: NoBid | None = None
    user_id: str = ""  # "" where it may not be kept
    places: Sequence[Place] = ()
    candidates: Candidates | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Asked:
    """A request and what it is answered from, as they were when it began; ``user_id`` is "" for a stranger."""

    request: Request
    request_id: str
    permitted: Permissions
    user_id: str
    market: Market
    bidder: Bidder
    now_us: int


async def respond(request: Request, bidder: Bidder, now_us: int, until_s: float) -> Answer:
    """Offer ads for the places of a request, until ``until_s`` of the bidder's clock."""
    settings, market, request_id = bidder.settings, bidder.market, bidder.new_id()
    permitted = consent.permissions(  # a malformed string: everything is refused
        request.signals, vendor_id=settings.vendor_id, when_absent=settings.gdpr_when_absent
    )
    if not (permitted.contextual or permitted.personalise):
        return Answer(request_id=request_id, permitted=permitted, reason=NoBid.NO_CONSENT)
    is_known = permitted.store_id and permitted.personalise and is_possible(request.user_id)
    user_id = request.user_id if is_known else ""
    asked = _Asked(request, request_id, permitted, user_id, market, bidder, now_us)
    masks = market.book.masks(request, now_us, _segments(asked))
    places = [Place(imp, eligible_A) for imp, eligible_A in zip(request.imps, masks, strict=True)]
    found = listed = _stored(bidder.memory.listed(user_id), "stored", market.book)  # the store is down: a stranger
    if not _any_eligible(found, places):  # no list, or nothing of it is live
        found = await _generated(asked, places, until_s)
    if permitted.contextual and not _any_eligible(found, places):  # no model, no history or no time
        found = _stored(bidder.memory.everybody(), "contextual", market.book)
    if bidder.clock() > until_s:
        return Answer(request_id=request_id, permitted=permitted, reason=NoBid.INSUFFICIENT_TIME)
    for place in places:  # nothing that may be shown, paid and counted: no bid for this place
        _choose(asked, place, found, [other.bid for other in places if other.bid])
    rendered = [_rendered(asked, place, place.bid) for place in places if place.bid]
    return Answer(
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


def _segments(asked: _Asked) -> Sequence[str]:
    """The user's segments, if anybody targets some and consent lets us read them."""
    if not asked.user_id or asked.market.book.columns.segments.all_none:
        return ()
    profile = asked.bidder.memory.profile(asked.user_id)
    return (*asked.request.segments, *(profile.segments if profile else ()))


def _stored(listed: StoredList | None, source: Source, book: Snapshot) -> Candidates:
    """A stored list as rows of the book; ads that the book does not know are left out."""
    if listed is None:
        return Candidates(source, np.zeros(0, np.int64), np.zeros(0))
    rows = [book.row_of_ad.get(ad_id, -1) for ad_id in listed.ad_ids]
    rows_K, log_p_K = np.array(rows, np.int64), np.array(listed.log_p)
    known_K = rows_K >= 0
    return Candidates(source, rows_K[known_K], log_p_K[known_K], listed.version, listed.made_at_us)


async def _generated(asked: _Asked, places: Sequence[Place], until_s: float) -> Candidates:
    """What the language model says of a user whose history may be read."""
    bidder, objects = asked.bidder, asked.market.objects
    nothing = Candidates("generated", np.zeros(0, np.int64), np.zeros(0))
    if bidder.generate is None or not places or until_s - bidder.clock() < LEAST_S:
        return nothing
    profile = bidder.memory.profile(asked.user_id)
    if profile is None or not profile.recent:
        return nothing
    eligible_A = np.logical_or.reduce([place.eligible_A for place in places])
    wanted = Wanted(
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


def _any_eligible(found: Candidates, places: Sequence[Place]) -> bool:
    return any(bool(place.eligible_A[found.rows_K].any()) for place in places)


def _choose(asked: _Asked, place: Place, found: Candidates, others: Sequence[Bid]) -> None:
    """Put a bid into the place: the best candidate whose cap has room, or now and then any below it.

    ``propensity`` is exact for whoever knows budgets and caps as they were. So an explorer whose draw turns out to be
    capped offers nothing: if another came instead, nobody could say how probable that one was.
    """
    bidder, campaigns = asked.bidder, asked.market.book.campaigns
    share = bidder.settings.exploration
    first, which = bidder.draws.pair(asked.request_id, place.imp.imp_id)
    explores = first < share
    left = _offers(asked, place, found, others, explores)
    while left and not _count(asked, place, left[0].row):
        left.pop(0)
    if not left:
        return
    drawn = int(which * len(left)) if explores else 0
    if drawn:
        _uncount(asked, place)
        place.verdicts[left[0].row] = "not drawn"
        if not _count(asked, place, left[drawn].row):
            return
    offer, propensity = left[drawn], share / len(left) + (1 - share) * (drawn == 0)
    if not asked.request.is_test and bidder.held is None:
        campaign = campaigns[asked.market.book.campaign_A[offer.row]]
        lease_id = bidder.budgets.reserve(campaign, offer.price_nanos, asked.now_us)
        assert lease_id is not None, f"{campaign.campaign_id} could pay {offer.price_nanos} a moment ago"
        place.lease_id = lease_id
    place.bid = _bid(asked, place.imp, offer, found.source, propensity)


def _offers(asked: _Asked, place: Place, found: Candidates, others: Sequence[Bid], explores: bool) -> list[_Offer]:
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
    for row, campaign_row, price_nanos in zip(
        rows_K.tolist(), book.campaign_A[rows_K].tolist(), price_K.tolist(), strict=True
    ):
        campaign = book.campaigns[campaign_row]
        verdict = "shown in another place" if book.ads[row].ad_id in taken else ""
        verdict = verdict or _unfit(price_nanos, floors[campaign.currency], campaign.currency, spoken)
        if not verdict and len(left) < CONSIDERED:
            place.considered.append(row)
            verdict = _unpayable(asked, place.imp, row, price_nanos, asks=explores or not left)
            if not verdict:
                left.append(_Offer(row, price_nanos))
                verdict = "not drawn"
        place.verdicts[row] = verdict or "not among the best"
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


def _unpayable(asked: _Asked, imp: Impression, row: int, price_nanos: int, *, asks: bool) -> str:
    """Why an ad can make no offer now, "" where it can; ``asks``: a budget that is not leased is asked for."""
    bidder, book = asked.bidder, asked.market.book
    campaign = book.campaigns[book.campaign_A[row]]
    if asked.request.is_test:  # neither charged nor counted
        return ""
    if campaign.cap_per_day and not asked.user_id:
        return "cap cannot be counted"  # a stranger may have seen it any number of times
    if bidder.held is not None:
        return "budget" if bidder.held(imp.imp_id, book.ads[row].ad_id) == "budget" else ""
    return "" if bidder.budgets.can_pay(campaign, price_nanos, asked.now_us, asks=asks) else "budget"


def _count(asked: _Asked, place: Place, row: int) -> bool:
    """Give an ad the place, under its campaign's frequency cap; whether there was room."""
    bidder, book = asked.bidder, asked.market.book
    campaign = book.campaigns[book.campaign_A[row]]
    has_room = True
    if bidder.held is not None:
        has_room = bidder.held(place.imp.imp_id, book.ads[row].ad_id) != "cap"
    elif campaign.cap_per_day and not asked.request.is_test:
        day = day_of(asked.now_us, campaign.zone).toordinal() - EPOCH_DAY
        cap = Cap(campaign.campaign_id, day, campaign.cap_per_day)
        until_us = asked.now_us + bidder.settings.token_s * SECOND_US
        place.cap_id = bidder.memory.reserve(asked.user_id, cap, now_us=asked.now_us, until_us=until_us)
        has_room = bool(place.cap_id)
    place.verdicts[row] = "bid" if has_room else "cap"
    return has_room


def _uncount(asked: _Asked, place: Place) -> None:
    asked.bidder.memory.release([place.cap_id] if place.cap_id else [])
    place.cap_id = ""


def _bid(asked: _Asked, imp: Impression, offer: _Offer, source: Source, propensity: float) -> Bid:
    book = asked.market.book
    ad, campaign = book.ads[offer.row], book.campaigns[book.campaign_A[offer.row]]
    sizes = [size for size in imp.sizes if not ad.sizes or size in ad.sizes]
    return Bid(
        bid_id=asked.bidder.new_id(),
        imp_id=imp.imp_id,
        ad_id=ad.ad_id,
        campaign_id=ad.campaign_id,
        advertiser_id=ad.advertiser_id,
        price_nanos=offer.price_nanos,
        currency=campaign.currency,
        size=sizes[0] if sizes else (300, 250),
        source=source,
        propensity=propensity,
    )


def _rendered(asked: _Asked, place: Place, bid: Bid) -> Rendered:
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
        expires_at_us=asked.now_us + settings.token_s * SECOND_US,
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


def _reason(places: Sequence[Place], memory: Memory) -> NoBid:
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
