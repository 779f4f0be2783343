"""What the processes of a bidder say to each other: one question, one answer.

The writer answers when what it tells is on the disk, the language model when there is no more time.
"""

from __future__ import annotations

import msgspec

from leadre.auction.budget.messages import Lease, LeaseRequest, Release
from leadre.serve.events.records import RequestRecord
from leadre.store.contract import ProfileEvent
from leadre.types import EventKind


class AppendRequest(msgspec.Struct, frozen=True, tag="append"):
    """Requests that were answered. Becomes `AppendReply`."""

    records: list[RequestRecord]


class LedgerRequest(msgspec.Struct, frozen=True, tag="orders"):
    """A worker's side of the ledger: what its slices want and what they give back. Becomes `LedgerReply`."""

    asks: list[LeaseRequest]
    releases: list[Release]


class EventRequest(msgspec.Struct, frozen=True, tag="event"):
    """Something that came back for a bid. ``price`` and ``value_nanos`` as they were sent. Becomes `EventReply`."""

    kind: EventKind
    token: str
    at_us: int
    price: str = ""
    event_id: str = ""
    value_nanos: int = 0


class RecordRequest(msgspec.Struct, frozen=True, tag="recent"):
    """One of the last requests, by our ID or the caller's; "" is the newest. Becomes `RecordReply`."""

    request_id: str


class CountsRequest(msgspec.Struct, frozen=True, tag="counts"):
    """What ads were shown and what came of it so far. Becomes `CountsReply`."""


class ReportRequest(msgspec.Struct, frozen=True, tag="reports"):
    """What campaigns did on the days that touch a span of time. Becomes `ReportReply`."""

    campaigns: list[str]
    from_us: int
    to_us: int


class EraseRequest(msgspec.Struct, frozen=True, tag="erase"):
    """Take a user out of log and tables. Becomes `EraseReply`."""

    user_id: str


WriterRequest = (
    AppendRequest | LedgerRequest | EventRequest | RecordRequest | CountsRequest | ReportRequest | EraseRequest
)


class AppendReply(msgspec.Struct, frozen=True, tag="done"):
    """It is on the disk."""


class LedgerReply(msgspec.Struct, frozen=True, tag="leases"):
    """Answers to the asks, in their order; None where a budget is used up."""

    leases: list[Lease | None]


class EventReply(msgspec.Struct, frozen=True, tag="told"):
    """What became of an event: "new", "known" (or not to be counted), or "refused" for its token."""

    outcome: str


class RecordReply(msgspec.Struct, frozen=True, tag="found"):
    """The record, if it is still remembered."""

    record: RequestRecord | None


class CountsReply(msgspec.Struct, frozen=True, tag="counted"):
    """Ad -> impressions, clicks, conversions, in the records of the log up to number ``last``."""

    by_ad: dict[str, tuple[int, int, int]]
    last: int


class CampaignDay(msgspec.Struct, frozen=True, array_like=True):
    """A campaign's day in its own time zone, ISO 8601."""

    campaign_id: str
    day: str
    impressions: int
    clicks: int
    conversions: int
    charged_nanos: int


class ReportReply(msgspec.Struct, frozen=True, tag="reported"):
    """Days on which something happened, by campaign and time."""

    days: list[CampaignDay]


class EraseReply(msgspec.Struct, frozen=True, tag="erased"):
    """How many records and rows named the user; none does any more."""

    removed: int


class ErrorReply(msgspec.Struct, frozen=True, tag="failed"):
    """The disk would not take it; nothing of it was written."""

    why: str


WriterReply = AppendReply | LedgerReply | EventReply | RecordReply | CountsReply | ReportReply | EraseReply | ErrorReply


class ModelInfoRequest(msgspec.Struct, frozen=True, tag="hello"):
    """A worker asks what there is. Becomes `ModelInfoReply`."""


class ModelInfoReply(msgspec.Struct, frozen=True, tag="greeting"):
    """The objects that the model knows, by the numbers of all other messages, and the version of the model."""

    object_ids: list[str]
    version: str


class GenerateRequest(msgspec.Struct, frozen=True, tag="wanted"):
    """A question: who (id, and what they did, oldest first), when, and which objects may be shown.

    ``eligible`` has a bit for each object of the catalogue (`numpy.packbits`); ``until_s`` is a time of the machine's
    monotonic clock, which its processes share.
    """

    user_id: str
    recent: tuple[ProfileEvent, ...]
    now_us: int
    eligible: bytes
    top: int
    until_s: float


class GenerateReply(msgspec.Struct, frozen=True, tag="generated"):
    """An answer: objects of the catalogue, best first, with log-probabilities; nothing where there was no time."""

    objects: list[int]
    log_p: list[float]
    is_complete: bool
