"""What a bid worker says to the writer process, and what it hears: one question, one answer.

An answer is sent when what it tells is on the disk.
"""

from __future__ import annotations

import msgspec

from leadre.auction.orders import Ask, Lease, Release
from leadre.serve.eventlog import Answered
from leadre.types import EventKind


class Append(msgspec.Struct, frozen=True, tag="append"):
    """Requests that were answered. Becomes `Done`."""

    records: list[Answered]


class Orders(msgspec.Struct, frozen=True, tag="orders"):
    """A worker's side of the ledger: what its slices want and what they give back. Becomes `Leases`."""

    asks: list[Ask]
    releases: list[Release]


class Event(msgspec.Struct, frozen=True, tag="event"):
    """Something that came back for a bid. ``price`` and ``value_nanos`` as they were sent. Becomes `Told`."""

    kind: EventKind
    token: str
    at_us: int
    price: str = ""
    event_id: str = ""
    value_nanos: int = 0


class Recent(msgspec.Struct, frozen=True, tag="recent"):
    """One of the last requests, by our ID or the caller's. Becomes `Found`."""

    request_id: str


class Counts(msgspec.Struct, frozen=True, tag="counts"):
    """What ads were shown and what came of it so far. Becomes `Counted`."""


Question = Append | Orders | Event | Recent | Counts


class Done(msgspec.Struct, frozen=True, tag="done"):
    """It is on the disk."""


class Leases(msgspec.Struct, frozen=True, tag="leases"):
    """Answers to the asks, in their order; None where a budget is used up."""

    leases: list[Lease | None]


class Told(msgspec.Struct, frozen=True, tag="told"):
    """What became of an event: "new", "known", "expired", "forged" or "refused"; ``ad_id`` is what a click goes to."""

    outcome: str
    ad_id: str = ""


class Found(msgspec.Struct, frozen=True, tag="found"):
    """The record, if it is still remembered."""

    record: Answered | None


class Counted(msgspec.Struct, frozen=True, tag="counted"):
    """Ad -> impressions, clicks, conversions."""

    by_ad: dict[str, tuple[int, int, int]]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The disk would not take it; nothing of it was written."""

    why: str


Reply = Done | Leases | Told | Found | Counted | Failed
