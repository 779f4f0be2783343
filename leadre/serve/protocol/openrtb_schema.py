"""Wire format: the fields of a bid request that the bidder reads, and a bid response (OpenRTB 2.6, sections 3 and 4).

Other fields are skipped, unknown values of a list are kept as numbers, null is absent. `Regs` and `User` hold the
fields of 2.6, their ``ext`` those of 2.5 and its extensions. A value of a wrong type is absent in a `Descriptive`
field; in another field it refuses the request (`decode`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

Int = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
DESCRIPTIVE = "is_descriptive"
T = TypeVar("T")
# Without such a field a bid may be worse; it breaks no rule about money, privacy, blocks, sizes or deadlines.
Descriptive = Annotated[T | None, msgspec.Meta(extra={DESCRIPTIVE: True})]


class Object(msgspec.Struct, gc=False):
    pass


class Privacy(Object):
    """The privacy signals that an object may hold, of any type: `signals` reads them, the stricter copy counts."""

    gdpr: Any = None
    gpc: Any = None
    coppa: Any = None
    lmt: Any = None
    dnt: Any = None
    consent: Any = None
    us_privacy: Any = None
    gpp: Any = None
    gpp_sid: Any = None


class Size(Object):
    w: Int | None = None
    h: Int | None = None


class Banner(Size):
    format: list[Size] | None = None
    battr: list[Int] | None = None
    btype: list[Int] | None = None
    mimes: list[str] | None = None


class Pmp(Object):
    private_auction: Int | None = None


class Imp(Object):
    id: str
    banner: Banner | None = None
    tagid: Descriptive[str] = None
    bidfloor: float | None = None
    bidfloorcur: str | None = None
    secure: Int | None = None
    exp: Descriptive[Int] = None
    pmp: Pmp | None = None


class Publisher(Object):
    id: Descriptive[str] = None


class Inventory(Privacy):
    """A site or an app."""

    ext: Descriptive[Privacy] = None
    domain: Descriptive[str] = None
    bundle: Descriptive[str] = None
    page: Descriptive[str] = None
    cat: Descriptive[list[str]] = None
    sectioncat: Descriptive[list[str]] = None
    pagecat: Descriptive[list[str]] = None
    publisher: Descriptive[Publisher] = None


class Geo(Object):
    country: Descriptive[str] = None
    region: Descriptive[str] = None


class Device(Privacy):
    ext: Descriptive[Privacy] = None
    geo: Descriptive[Geo] = None
    devicetype: Descriptive[Int] = None
    language: Descriptive[str] = None
    ip: Descriptive[str] = None
    ipv6: Descriptive[str] = None
    ifa: Descriptive[str] = None


class Segment(Object):
    id: Descriptive[str] = None


class Data(Object):
    segment: Descriptive[list[Segment]] = None


class Uid(Object):
    id: Descriptive[str] = None


class Eid(Object):
    source: Descriptive[str] = None
    uids: Descriptive[list[Uid]] = None


class UserExt(Privacy):
    eids: Descriptive[list[Eid]] = None


class User(UserExt):
    id: Descriptive[str] = None
    buyeruid: Descriptive[str] = None
    data: Descriptive[list[Data]] = None
    geo: Descriptive[Geo] = None
    ext: UserExt | None = None


class Dsa(Object):
    dsarequired: Int | None = None


class RegsExt(Privacy):
    dsa: Dsa | None = None


class Regs(RegsExt):
    ext: RegsExt | None = None


class RequestExt(Privacy):
    prebid: Any = None  # Prebid Server and Prebid.js describe themselves here


class Request(Privacy, kw_only=True):
    id: str
    imp: list[Imp]
    site: Descriptive[Inventory] = None
    app: Descriptive[Inventory] = None
    device: Device | None = None
    user: User | None = None
    regs: Regs | None = None
    tmax: Int | None = None
    cur: list[str] | None = None
    cattax: Int | None = None
    acat: list[str] | None = None
    bcat: list[str] | None = None
    badv: list[str] | None = None
    bapp: list[str] | None = None
    wlang: list[str] | None = None
    wlangb: list[str] | None = None
    wseat: list[str] | None = None
    bseat: list[str] | None = None
    test: Int | None = None
    at: Descriptive[Int] = None
    ext: Descriptive[RequestExt] = None


class BidExt(Object, omit_defaults=True):
    dsa: Mapping[str, Any] | None = None
    prebid: Mapping[str, Any] | None = None  # Prebid.js hands its ``meta`` to the page


class Bid(Object, omit_defaults=True):
    id: str
    impid: str
    price: float
    crid: str
    adid: str = ""
    cid: str = ""
    adm: str = ""
    nurl: str = ""
    burl: str = ""
    lurl: str = ""
    exp: int = 0
    adomain: list[str] = []
    bundle: str = ""
    cat: list[str] = []
    cattax: int = 1
    language: str = ""
    langb: str = ""
    attr: list[int] = []
    mtype: int = 0
    w: int = 0
    h: int = 0
    ext: BidExt | None = None


class SeatBid(Object):
    seat: str
    bid: list[Bid]


class Response(Object, omit_defaults=True):
    id: str
    seatbid: list[SeatBid] = []
    cur: str = ""
    nbr: int = 0
