"""OpenRTB 2.6 JSON, and 2.5 where it differs: bytes to `leadre.types` and back. Pure; no clock, no socket.

Only this file converts money. On the wire a price is a float CPM; inside it is whole nanos of one impression,
1,000,000 for a CPM of 1. Floors are rounded up and prices down: no rounding undercuts a floor or overbids.

A request may have a privacy signal twice, in its field of 2.6 and under ``ext``. Both copies are read:

- GDPR applies if one copy declares it.
- Two TC strings that differ are replaced by `CONTRADICTION`, which no decoder accepts.
- An opt-out of sale wins over any other US privacy string.
- The first GPP string is used; its sections are those of both copies.
- GPC is on if one copy sets it.
- The higher DSA requirement applies.
"""

from __future__ import annotations

import enum
import ipaddress
import math
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import partial
from types import MappingProxyType
from urllib.parse import quote, urlsplit

import msgspec

from leadre.errors import BadRequest
from leadre.serve.protocol import openrtb_schema as wire
from leadre.serve.protocol.consent import DSA_REQUIRED
from leadre.serve.protocol.decode import decode
from leadre.types import Bid, Impression, Request, Signals, Size
from leadre.units import NANOS_PER_CPM

MAX_NANOS = 2**63 - 1  # higher prices and floors are clipped to it
MAX_PIXELS = 10_000  # of a side of a banner; a larger one is an error of the caller
MAX_ITEMS = 100  # imps, and currencies, of one request that are read; further ones are ignored
CONTRADICTION = "?"  # in place of a TC string: no decoder accepts it
XHTML_BANNER = 2  # AdCOM's creative subtype for the banners of this bidder

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """A bid with its creative and URLs. ``dsa``: the object of OpenRTB's Digital Services Act extension."""

    bid: Bid
    adm: str
    nurl: str = ""
    burl: str = ""
    click_url: str = ""
    impression_url: str = ""
    adomain: tuple[str, ...] = ()
    iab_categories: tuple[str, ...] = ()
    attributes: frozenset[int] = frozenset()
    mtype: int = 1  # 1 banner, 2 video, 3 audio, 4 native
    dsa: Mapping[str, object] | None = None


_ENCODER = msgspec.json.Encoder()
_MACRO = re.compile(r"\$\{(AUCTION_[A-Z_]+)(:B64)?\}")


def read(body: bytes) -> Request:
    """Parse a bid request. ``imps`` leaves out imps that take no HTML banner, state no size in pixels or are for deals.

    Raises BadRequest for JSON that is malformed or too deep, a missing or empty id, an empty ``imp``, two imps of one
    id, a negative ``tmax``, and a wrong type in a field that restricts bids (`decode`).
    """
    request, left_out = decode(body)
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
    banners = [imp for imp in request.imp[:MAX_ITEMS] if imp.banner is not None and _can_be_filled(imp.banner)]
    public = [imp for imp in banners if imp.pmp is None or imp.pmp.private_auction != 1]
    inventory = request.site or request.app or wire.Inventory()
    device = request.device or wire.Device()
    user = request.user or wire.User()
    geo = device.geo or wire.Geo()
    return Request(
        request_id=request.id,
        imps=tuple(_impression(imp) for imp in public),
        user_id=_user_id(user),
        signals=_signals(request.regs or wire.Regs(), user, device),
        tmax_ms=request.tmax or 0,
        currencies=tuple(dict.fromkeys(code.upper() for code in (request.cur or ())[:MAX_ITEMS])) or ("USD",),
        site=(inventory.domain or "").lower() or inventory.bundle or _host(inventory.page or ""),
        page=inventory.page or "",
        publisher_id=(inventory.publisher.id if inventory.publisher else None) or "",
        categories=tuple(
            dict.fromkeys([*(inventory.cat or ()), *(inventory.sectioncat or ()), *(inventory.pagecat or ())])
        ),
        segments=tuple(
            dict.fromkeys(
                segment.id for data in user.data or () for segment in data.segment or () if segment.id is not None
            )
        ),
        country=(geo.country or "").upper(),
        region=geo.region or "",
        language=(device.language or "").lower(),
        device_type=device.devicetype or 0,
        ip=truncated(device.ip or device.ipv6 or ""),
        cattax=request.cattax or 1,
        allowed_categories=frozenset(request.acat or ()),
        blocked_categories=frozenset(request.bcat or ()),
        blocked_domains=frozenset(domain.lower() for domain in request.badv or ()),
        allowed_seats=frozenset(request.wseat or ()),
        blocked_seats=frozenset(request.bseat or ()),
        has_deals_only=bool(banners) and not public,
        is_test=request.test == 1,
        left_out=left_out,
    )


def _can_be_filled(banner: wire.Banner) -> bool:
    """Whether the imp takes an HTML banner with an image, in a size in pixels or in any size."""
    mimes = [mime.strip().lower() for mime in banner.mimes or ()] or ["text/html"]
    takes_html = XHTML_BANNER not in (banner.btype or ()) and any(
        mime.startswith(("text/html", "image/")) for mime in mimes
    )
    states_size = bool(banner.format) or banner.w is not None or banner.h is not None
    return takes_html and (not states_size or bool(_sizes(banner)))


def _impression(imp: wire.Imp) -> Impression:
    assert imp.banner is not None
    return Impression(
        imp_id=imp.id,
        sizes=_sizes(imp.banner),
        placement_id=imp.tagid or "",
        floor_nanos=nanos(max(imp.bidfloor or 0.0, 0.0), up=True),
        floor_currency=(imp.bidfloorcur or "USD").upper(),
        is_secure=imp.secure == 1,
        blocked_attributes=frozenset(imp.banner.battr or ()),
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


def _user_id(user: wire.User) -> str:
    """The user's ID: the bidder's own, else the first extended ID as ``source:id``, else the exchange's."""
    if user.buyeruid:
        return user.buyeruid
    for copy in (user, user.ext or wire.UserExt()):
        for eid in copy.eids or ():
            for uid in eid.uids or ():
                if uid.id:
                    return f"{eid.source or ''}:{uid.id}"
    return user.id or ""


def _signals(regs: wire.Regs, user: wire.User, device: wire.Device) -> Signals:
    """The privacy signals, each from both of its copies by the rules in the docstring of this file."""
    copies = (regs, regs.ext or wire.RegsExt())
    gdpr = {copy.gdpr for copy in copies}
    consents = {text for text in (user.consent, user.ext.consent if user.ext else None) if text}
    us_privacy = [copy.us_privacy for copy in copies if copy.us_privacy]
    return Signals(
        gdpr=True if 1 in gdpr else False if 0 in gdpr else None,
        consent=CONTRADICTION if len(consents) > 1 else next(iter(consents), ""),
        us_privacy=max(us_privacy, key=lambda text: text[2:3] in ("Y", "y"), default=""),
        gpp=next((copy.gpp for copy in copies if copy.gpp), ""),
        gpp_sid=tuple(dict.fromkeys(section for copy in copies for section in copy.gpp_sid or ())),
        gpc=any(copy.gpc in (1, "1") for copy in copies),
        coppa=regs.coppa == 1,
        lmt=device.lmt == 1,
        dnt=device.dnt == 1,
        dsa_required=max((copy.dsa.dsarequired or 0) if copy.dsa else 0 for copy in copies),
    )


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # an invalid address in brackets
        return ""


def truncated(address: str) -> str:
    """An IPv4 address without its last 8 bits, an IPv6 address without its last 80; "" for anything else."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ipaddress.IPv6Address(int(parsed) >> 80 << 80))
        parsed = parsed.ipv4_mapped
    return str(ipaddress.IPv4Address(int(parsed) >> 8 << 8))


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
    return min(math.floor(Fraction(text) * NANOS_PER_CPM), MAX_NANOS)


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
    auction macros here, because the caller is a page; it fills none, and its clearing price is the bid price. Its
    bids name the source of the ad in ``ext.prebid.meta.leadre.source``, which the page shows to its reader.
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
    values = {
        "AUCTION_ID": request.request_id,
        "AUCTION_IMP_ID": bid.imp_id,
        "AUCTION_SEAT_ID": seat,
        "AUCTION_AD_ID": bid.ad_id,
        "AUCTION_PRICE": format(Decimal(price_nanos).scaleb(-6), "f"),
        "AUCTION_CURRENCY": currency,
    }
    fill = partial(substitute, values=values if fills_macros else {})
    source = {"meta": {"leadre": {"source": bid.source}}} if fills_macros else None
    return wire.Bid(
        id=bid.bid_id,
        impid=bid.imp_id,
        price=price_nanos / NANOS_PER_CPM,
        crid=bid.ad_id,
        adid=bid.ad_id,
        cid=bid.campaign_id,
        adm=fill(rendered.adm),
        nurl=fill(rendered.nurl),
        burl=fill(rendered.burl),
        adomain=list(rendered.adomain),
        cat=list(rendered.iab_categories),
        attr=sorted(rendered.attributes),
        mtype=rendered.mtype,
        w=bid.size[0],
        h=bid.size[1],
        ext=wire.BidExt(dsa=rendered.dsa, prebid=source) if rendered.dsa is not None or source else None,
    )
