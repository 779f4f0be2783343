"""Wire format: the fields of a bid request that the bidder reads, and a bid response (OpenRTB 2.6, sections 3 and 4).

Other fields are skipped, unknown values of a list are kept as numbers, null is absent. `Regs` and `User` hold the
fields of 2.6, their ``ext`` those of 2.5 and its extensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

Int = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]


class Object(msgspec.Struct, gc=False):
    pass


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
    tagid: str | None = None
    bidfloor: float | None = None
    bidfloorcur: str | None = None
    secure: Int | None = None
    pmp: Pmp | None = None


class Publisher(Object):
    id: str | None = None


class Inventory(Object):
    """A site or an app."""

    domain: str | None = None
    bundle: str | None = None
    page: str | None = None
    cat: list[str] | None = None
    sectioncat: list[str] | None = None
    pagecat: list[str] | None = None
    publisher: Publisher | None = None


class Geo(Object):
    country: str | None = None
    region: str | None = None


class Device(Object):
    geo: Geo | None = None
    devicetype: Int | None = None
    language: str | None = None
    ip: str | None = None
    ipv6: str | None = None
    dnt: Int | None = None
    lmt: Int | None = None


class Segment(Object):
    id: str | None = None


class Data(Object):
    segment: list[Segment] | None = None


class Uid(Object):
    id: str | None = None


class Eid(Object):
    source: str | None = None
    uids: list[Uid] | None = None


class UserExt(Object):
    consent: str | None = None
    eids: list[Eid] | None = None


class User(UserExt):
    id: str | None = None
    buyeruid: str | None = None
    data: list[Data] | None = None
    ext: UserExt | None = None


class Dsa(Object):
    dsarequired: Int | None = None


class RegsExt(Object):
    gdpr: Int | None = None
    us_privacy: str | None = None
    gpp: str | None = None
    gpp_sid: list[Int] | None = None
    gpc: Int | str | bool | None = None
    dsa: Dsa | None = None


class Regs(RegsExt):
    coppa: Int | None = None
    ext: RegsExt | None = None


class Request(Object):
    id: str
    imp: list[Imp]
    site: Inventory | None = None
    app: Inventory | None = None
    device: Device | None = None
    user: User | None = None
    regs: Regs | None = None
    tmax: Int | None = None
    cur: list[str] | None = None
    cattax: Int | None = None
    acat: list[str] | None = None
    bcat: list[str] | None = None
    badv: list[str] | None = None
    wseat: list[str] | None = None
    bseat: list[str] | None = None
    test: Int | None = None


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
    adomain: list[str] = []
    cat: list[str] = []
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
