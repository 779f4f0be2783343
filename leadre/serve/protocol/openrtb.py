"""OpenRTB 2.6 JSON, and 2.5 where it differs: bytes to `leadre.types` and back. Pure; no clock, no socket.

Only this file converts money. On the wire a price is a float CPM; inside it is whole nanos of one impression,
1,000,000 for a CPM of 1. Floors are rounded up and prices down: no rounding undercuts a floor or overbids.
"""

from __future__ import annotations

import enum
import ipaddress
import math
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType
from urllib.parse import quote

import msgspec

from leadre.errors import BadRequest
from leadre.serve.protocol import openrtb_schema as wire
from leadre.serve.protocol import signals
from leadre.serve.protocol import user_ids as ids
from leadre.serve.protocol.consent import DSA_REQUIRED
from leadre.serve.protocol.countries import alpha_3
from leadre.serve.protocol.decode import decode
from leadre.serve.protocol.hosts import host_of
from leadre.types import Bid, Impression, Request, Size
from leadre.units import NANOS_PER_CPM

MAX_NANOS = 2**63 - 1  # higher prices and floors are clipped to it
MAX_PIXELS = 10_000  # of a side of a banner; a larger one is an error of the caller
MAX_ITEMS = 100  # imps, and currencies, of one request that are read; further ones are ignored
ALPHA_2 = 2  # letters of a language in `bid.language`; `bid.langb` has longer tags
FIRST_PRICE = 1  # `at`; the default is 2, the second price
XHTML_BANNER = 2  # AdCOM's creative subtype for the banners of this bidder

_EXACT = Context(prec=50)  # digits, more than `paid_nanos` reads
Rates = Mapping[tuple[str, str], Fraction]  # (from, to) -> units of `to` for one of `from`
NO_RATES: Rates = MappingProxyType({})


class NoBid(enum.IntEnum):
    """Reasons for no bid (`nbr`). Codes below 500 are OpenRTB's, the others are this bidder's own."""

    INVALID = 2
    UNMATCHED_USER = 8
    DAILY_USER_CAP = 9
    INSUFFICIENT_TIME = 15
    BUDGET_EXHAUSTED = 501
    PACED = 502
    NO_CANDIDATE = 503
    BELOW_FLOOR = 504
    NO_CONSENT = 505
    DEGRADED = 506
    TOO_MANY_OPEN = 507  # the caller has as many bids that were neither shown nor lost as it may have


class Rendered(msgspec.Struct, frozen=True, kw_only=True):
    """A bid with its creative and URLs. ``dsa``: the object of OpenRTB's Digital Services Act extension."""

    bid: Bid
    adm: str
    nurl: str = ""
    burl: str = ""
    lurl: str = ""
    exp_s: int = 0
    click_url: str = ""
    impression_url: str = ""
    adomain: tuple[str, ...] = ()
    app_bundle: str = ""
    iab_categories: tuple[str, ...] = ()
    cattax: int = 1
    language: str = ""
    attributes: frozenset[int] = frozenset()
    mtype: int = 1  # 1 banner, 2 video, 3 audio, 4 native
    dsa: Mapping[str, object] | None = None


_ENCODER = msgspec.json.Encoder()
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"((?:{_OCTET}\.){{3}}){_OCTET}")
_MACRO = re.compile(r"\$\{(AUCTION_[A-Z_]+)(:B64)?\}")


def read(body: bytes) -> Request:
    """Parse a bid request. ``imps`` leaves out imps that take no HTML banner, state no size in pixels or are for deals.

    Raises BadRequest for JSON that is malformed or too deep, a missing or empty id, an empty ``imp``, two imps of one
    id, a negative ``tmax``, and a wrong type in a field that restricts bids (`decode`).
    """
    request, left_out = decode(body)
    _check(request)
    banners = list(filter(None, map(_banner, request.imp[:MAX_ITEMS])))
    public = [banner for banner in banners if banner[0].pmp is None or banner[0].pmp.private_auction != 1]
    places = [place for place in (request.site, request.app) if place is not None]
    names = tuple(dict.fromkeys(name for place in places for name in _site_names(place)))
    is_prebid = request.ext is not None and bool(request.ext.prebid)
    device = request.device or wire.Device()
    user = request.user or wire.User()
    geo = device.geo or wire.Geo()
    user_ids = ids.user_ids(user, device)
    return Request(
        request_id=request.id,
        imps=tuple(_impression(imp, sizes) for imp, sizes in public),
        user_id=user_ids[0] if user_ids else "",
        other_user_ids=user_ids[1:],
        signals=signals.signals(request),
        tmax_ms=request.tmax or 0,
        currencies=tuple(dict.fromkeys(code.upper() for code in (request.cur or ())[:MAX_ITEMS])) or ("USD",),
        site=next(iter(names), ""),
        other_site_names=names[1:],
        page=next((place.page for place in places if place.page), ""),
        publisher_id=next((place.publisher.id for place in places if place.publisher and place.publisher.id), ""),
        categories=tuple(dict.fromkeys(code for place in places for code in _categories(place))),
        segments=tuple(
            dict.fromkeys(
                segment.id for data in user.data or () for segment in data.segment or () if segment.id is not None
            )
        ),
        country=alpha_3(geo.country or ""),
        region=geo.region or "",
        language=(device.language or "").lower(),
        device_type=device.devicetype or 0,
        ip=truncated(device.ip or device.ipv6 or ""),
        cattax=request.cattax or 1,
        allowed_categories=frozenset(request.acat or ()),
        blocked_categories=frozenset(request.bcat or ()),
        blocked_domains=frozenset(domain.lower() for domain in request.badv or ()),
        blocked_apps=frozenset(request.bapp or ()),
        allowed_languages=frozenset(tag.lower() for tags in (request.wlang, request.wlangb) for tag in tags or ()),
        allowed_seats=frozenset(request.wseat or ()),
        blocked_seats=frozenset(request.bseat or ()),
        has_deals_only=bool(banners) and not public,
        is_test=request.test == 1,
        is_first_price=request.at == FIRST_PRICE,
        bills_signed_price=request.at == FIRST_PRICE or is_prebid,
        left_out=left_out,
    )


def _check(request: wire.Request) -> None:
    """Raise BadRequest for what `read` names, but for types."""
    if not request.id:
        raise BadRequest("id", "is empty", "empty")
    if not request.imp:
        raise BadRequest("imp", "is empty; a request has at least one", "empty")
    if (request.tmax or 0) < 0:
        raise BadRequest("tmax", f"{request.tmax} ms is negative", "range")
    seen: set[str] = set()
    for number, imp in enumerate(request.imp):
        if not imp.id:
            raise BadRequest(f"imp[{number}].id", "is empty", "empty")
        if imp.id in seen:
            raise BadRequest(f"imp[{number}].id", f"{imp.id!r} is taken by another", "duplicate")
        seen.add(imp.id)


def _banner(imp: wire.Imp) -> tuple[wire.Imp, tuple[Size, ...]] | None:
    """The imp and its sizes, if it takes an HTML banner with an image, in a size in pixels or in any size."""
    banner = imp.banner
    if banner is None or XHTML_BANNER in (banner.btype or ()):
        return None
    mimes = [mime.strip().lower() for mime in banner.mimes or ()]
    if mimes and not any(mime.startswith(("text/html", "image/")) for mime in mimes):
        return None
    states_size = bool(banner.format) or banner.w is not None or banner.h is not None
    sizes = _sizes(banner)
    return (imp, sizes) if sizes or not states_size else None


def _impression(imp: wire.Imp, sizes: tuple[Size, ...]) -> Impression:
    assert imp.banner is not None
    return Impression(
        imp_id=imp.id,
        sizes=sizes,
        placement_id=imp.tagid or "",
        floor_nanos=nanos(max(imp.bidfloor or 0.0, 0.0), up=True),
        floor_currency=(imp.bidfloorcur or "USD").upper(),
        is_secure=imp.secure == 1,
        blocked_attributes=frozenset(imp.banner.battr or ()),
        exp_s=max(imp.exp or 0, 0),
    )


def _sizes(banner: wire.Banner) -> tuple[Size, ...]:
    """The sizes in pixels, each once: those of ``format``, else that of the banner; () if there is none.

    A ratio (Flex Ads), a width alone and a size beyond `MAX_PIXELS` are no size that a banner could be rendered in.
    """
    for formats in (banner.format or (), (banner,)):
        sizes = dict.fromkeys((f.w, f.h) for f in formats if _is_side(f.w) and _is_side(f.h))
        if sizes:
            return tuple(sizes)  # type: ignore[arg-type]
    return ()


def _is_side(pixels: int | None) -> bool:
    return pixels is not None and 0 < pixels <= MAX_PIXELS


def _site_names(place: wire.Inventory) -> Iterator[str]:
    """The names of a site or app, the most general one first: its domain, its bundle, the host of the page."""
    names = (host_of(place.domain or ""), (place.bundle or "").strip(), host_of(place.page or ""))
    yield from filter(None, names)


def _categories(place: wire.Inventory) -> Iterator[str]:
    for codes in (place.cat, place.sectioncat, place.pagecat):
        yield from codes or ()


def truncated(address: str) -> str:
    """An IPv4 address without its last 8 bits, an IPv6 address without its last 80; "" for anything else."""
    if usual := _IPV4.fullmatch(address):
        return f"{usual[1]}0"
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ipaddress.IPv6Address(int(parsed) >> 80 << 80))
        parsed = parsed.ipv4_mapped
    return str(ipaddress.IPv4Address(int(parsed) >> 8 << 8))


@lru_cache(maxsize=1024)  # floors repeat
def nanos(cpm: float, *, up: bool) -> int:
    """A CPM >= 0 as whole nanos of one impression, exact for the decimal number sent: 2.000001 -> 2000001."""
    if cpm * NANOS_PER_CPM >= MAX_NANOS:
        return MAX_NANOS
    exact = Decimal(repr(cpm)).scaleb(6)
    return math.ceil(exact) if up else math.floor(exact)


def paid_nanos(text: str) -> int | None:
    """The CPM that the exchange put in place of ``${AUCTION_PRICE}``, as nanos of one impression; None for other text.

    Other text is "AUDIT" or an unfilled macro, and must not be billed.
    """
    if not re.fullmatch(r"\d{1,12}(\.\d{1,30})?([eE][+-]?\d{1,2})?", text, re.ASCII):
        return None
    return min(math.floor(_EXACT.scaleb(Decimal(text), 6)), MAX_NANOS)


def convert(amount_nanos: int, source: str, target: str, rates: Rates = NO_RATES, *, up: bool) -> int | None:
    """An amount converted to currency ``target``, in whole nanos. None if ``rates`` lacks a rate that is needed."""
    if source == target:
        return amount_nanos
    rate = rates.get((source, target))
    if rate is None:
        return None
    return math.ceil(amount_nanos * rate) if up else math.floor(amount_nanos * rate)


def write(
    request: Request,
    bids: Sequence[Rendered],
    *,
    seat: str,
    rates: Rates = NO_RATES,
    fills_macros: bool = False,
) -> bytes:
    """Write a bid response, in the currency of the request to which most bids can be converted; the first of equals.

    Bids that the caller would reject are left out: without an ID, an ad or an imp of the request, at a price of 0 (the
    bidder holds no deals), without a rate to the currency, or without a required DSA object. ``fills_macros``: fill the
    auction macros here, because the caller is a page; it fills none, and its clearing price is the bid price. A page
    gets no `lurl`: any script there could end the reservations of a bid that is shown. Its bids name the source of the
    ad in ``ext.prebid.meta.leadre.source``, which the page shows to its reader.
    """
    priced = {cur: list(_priced(request, bids, cur, rates)) for cur in request.currencies}
    currency = max(priced, key=lambda cur: len(priced[cur]))
    wire_bids = [_bid(request, bid, price, currency, seat, fills_macros) for bid, price in priced[currency]]
    if not wire_bids:
        return _ENCODER.encode(wire.Response(id=request.request_id))
    return _ENCODER.encode(
        wire.Response(id=request.request_id, seatbid=[wire.SeatBid(seat=seat, bid=wire_bids)], cur=currency)
    )


def no_bid(request: Request, reason: NoBid, *, is_debug: bool = False) -> tuple[int, bytes]:
    """HTTP status and body of a response without a bid. Only test and debug requests receive the reason."""
    if not (request.is_test or is_debug):
        return 204, b""
    return 200, _ENCODER.encode(wire.Response(id=request.request_id, nbr=reason))


def substitute(text: str, values: Mapping[str, str]) -> str:
    """Replace macros such as ``${AUCTION_ID}`` by their values; ``${AUCTION_ID:B64}`` by URL-safe base64 of it.

    Values without base64 are percent-encoded: macros are parts of URLs, and the caller's ID must not end a URL. Macros
    that ``values`` lacks are left to the exchange.
    """

    def replacement(macro: re.Match[str]) -> str:
        value = values.get(macro[1])
        if value is None:
            return macro[0]
        return urlsafe_b64encode(value.encode()).decode() if macro[2] else quote(value, safe="")

    return _MACRO.sub(replacement, text)


def _priced(request: Request, bids: Sequence[Rendered], currency: str, rates: Rates) -> Iterator[tuple[Rendered, int]]:
    """(bid, price in nanos of ``currency``) of each bid that can be sent in that currency."""
    imp_ids = {imp.imp_id for imp in request.imps}
    for rendered in bids:
        bid = rendered.bid
        price_nanos = convert(bid.price_nanos, bid.currency, currency, rates, up=False)
        has_ids = bid.bid_id and bid.ad_id and bid.imp_id in imp_ids
        lacks_dsa = request.signals.dsa_required >= DSA_REQUIRED and rendered.dsa is None
        if has_ids and not lacks_dsa and price_nanos is not None and price_nanos > 0:
            yield rendered, price_nanos


def _bid(
    request: Request, rendered: Rendered, price_nanos: int, currency: str, seat: str, fills_macros: bool
) -> wire.Bid:
    bid = rendered.bid
    adm = rendered.adm
    nurl = rendered.nurl
    burl = rendered.burl
    source = None
    if fills_macros:
        values = _macro_values(request, bid, price_nanos, currency, seat)
        adm, nurl, burl = (substitute(text, values) for text in (adm, nurl, burl))
        source = {"meta": {"leadre": {"source": bid.source}}}
    return wire.Bid(
        id=bid.bid_id,
        impid=bid.imp_id,
        price=price_nanos / NANOS_PER_CPM,
        crid=bid.ad_id,
        adid=bid.ad_id,
        cid=bid.campaign_id,
        adm=adm,
        nurl=nurl,
        burl=burl,
        lurl="" if fills_macros else rendered.lurl,
        exp=rendered.exp_s,
        adomain=list(rendered.adomain),
        bundle=rendered.app_bundle,
        cat=list(rendered.iab_categories),
        cattax=rendered.cattax,
        language=rendered.language if len(rendered.language) == ALPHA_2 else "",
        langb=rendered.language if len(rendered.language) != ALPHA_2 else "",
        attr=sorted(rendered.attributes),
        mtype=rendered.mtype,
        w=bid.size[0],
        h=bid.size[1],
        ext=wire.BidExt(dsa=rendered.dsa, prebid=source) if rendered.dsa is not None or source else None,
    )


def _macro_values(request: Request, bid: Bid, price_nanos: int, currency: str, seat: str) -> dict[str, str]:
    return {
        "AUCTION_ID": request.request_id,
        "AUCTION_IMP_ID": bid.imp_id,
        "AUCTION_SEAT_ID": seat,
        "AUCTION_AD_ID": bid.ad_id,
        "AUCTION_PRICE": format(Decimal(price_nanos).scaleb(-6), "f"),
        "AUCTION_CURRENCY": currency,
    }
