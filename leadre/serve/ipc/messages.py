"""Messages between the processes of one bidder: each request has one reply.

Workers and management send requests to the writer, which replies after its data is durable. Workers send requests to
the model server, which replies before their deadline. All processes run the same release, so tags need no versions.
Lists that grow with the catalogue or with time are requested in parts of at most `MAX_ITEMS`, far below the largest
message (`leadre.serve.ipc.connection.MAX_FRAME_BYTES`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from leadre.auction.budget.messages import Lease, LeaseRequest, Release
from leadre.auction.pacing.contract import GoalFactors, Rate
from leadre.serve.events.records import RequestRecord
from leadre.store.contract import ProfileEvent
from leadre.types import EventKind

MAX_ITEMS = 20_000  # of one message; an ID has at most 512 bytes
MAX_BATCH_BYTES = 1 << 20  # of the records of one `AppendRequest`; a single larger record is a batch of its own


class AppendRequest(msgspec.Struct, frozen=True, tag="append"):
    """Append the records of answered bid requests to the event log. The reply is `AppendReply`."""

    records: list[RequestRecord]


class LedgerRequest(msgspec.Struct, frozen=True, tag="ledger"):
    """Lease budget for a worker, and take back what it releases. The reply is `LedgerReply`."""

    leases: list[LeaseRequest]
    releases: list[Release]


class EventRequest(msgspec.Struct, frozen=True, tag="event"):
    """Post one event of a bid. The reply is `EventReply`.

    ``token_kind``: the kind that the token is for, if it differs: a conversion may come with that of an impression.
    ``event_id`` is set for a conversion that the advertiser's server has sent. ``min_to_win_nanos``: the lowest price
    that would have won, of a win or loss that reports it. ``loss_reason``: that of OpenRTB; 0 = none is named.
    """

    kind: EventKind
    token: str
    at_us: int
    token_kind: EventKind | None = None
    price_nanos: int = 0
    event_id: str = ""
    value_nanos: int = 0
    min_to_win_nanos: int = 0
    loss_reason: int = 0


class RecordRequest(msgspec.Struct, frozen=True, tag="record"):
    """Look up a recent request by our ID or the caller's; "" is the newest. The reply is `RecordReply`."""

    request_id: str


class CountsRequest(msgspec.Struct, frozen=True, tag="counts"):
    """Read the impressions, clicks and conversions of ads, from number ``start`` on. The reply is `CountsReply`."""

    start: int = 0


class PacingRequest(msgspec.Struct, frozen=True, tag="pacing"):
    """Read the pacing of the campaigns with a plan that changed after number ``after``. The reply is `PacingReply`.

    ``instance``: that of the reply with the number; all campaigns have changed since another start of the writer.
    """

    after: int = 0
    instance: str = ""


class ShadingRequest(msgspec.Struct, frozen=True, tag="shading"):
    """Read the shading of all markets. The reply is `ShadingReply`."""


class ReportRequest(msgspec.Struct, frozen=True, tag="report"):
    """Read the days of campaigns that overlap [``from_us``, ``to_us``). The reply is `ReportReply`.

    ``after``: (campaign ID, day) of the last row of the previous reply.
    """

    campaigns: list[str]
    from_us: int
    to_us: int
    after: tuple[str, str] = ("", "")


class EraseRequest(msgspec.Struct, frozen=True, tag="erase"):
    """Name a user in no further reply and record, and close the log segment. The reply is `EraseReply`."""

    user_id: str


class ConfirmClockRequest(msgspec.Struct, frozen=True, tag="confirm_clock"):
    """Take the machine's wall time as right. The reply is `ClockReply`. ``by``: who confirms, as stderr names them."""

    by: str


WriterRequest = (
    AppendRequest
    | LedgerRequest
    | EventRequest
    | RecordRequest
    | CountsRequest
    | PacingRequest
    | ShadingRequest
    | ReportRequest
    | EraseRequest
    | ConfirmClockRequest
)


class AppendReply(msgspec.Struct, frozen=True, tag="append_reply"):
    """The records are durable."""


class LedgerReply(msgspec.Struct, frozen=True, tag="ledger_reply"):
    """One lease per `LeaseRequest`, in their order; None if the campaign's budget is exhausted."""

    leases: list[Lease | None]


class EventReply(msgspec.Struct, frozen=True, tag="event_reply"):
    """Outcome of an event: "new", "known" (a repetition, or not to be counted), or "refused" (its token is invalid)."""

    outcome: str


class RecordReply(msgspec.Struct, frozen=True, tag="record_reply"):
    """The record; None if the writer no longer remembers the request."""

    record: RequestRecord | None


class CountsReply(msgspec.Struct, frozen=True, tag="counts_reply"):
    """Ad ID -> (impressions, clicks, conversions), counted up to record number ``last`` of the event log.

    ``next_start``: the start of the next request; 0 after the last ad. ``failing``: the writer's background tasks that
    keep failing. ``is_whole``: no earlier record is missing.
    """

    by_ad: dict[str, tuple[int, int, int]]
    last: int
    next_start: int = 0
    failing: list[str] = []
    is_whole: bool = True


class GoalFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Cost and actions of a campaign since its goal was set. ``value_nanos``: of its conversions.

    ``expected_actions``: still to come. ``factors``: the parts of its multiplier.
    """

    cost_nanos: int
    actions: int
    value_nanos: int
    expected_actions: float
    factors: GoalFactors

    @property
    def cost_of_action_nanos(self) -> int | None:
        """Realised cost of an action; None before the first one."""
        return round(self.cost_nanos / self.actions) if self.actions else None

    @property
    def return_on_cost(self) -> float | None:
        """Realised value of conversions over cost; None before any cost."""
        return self.value_nanos / self.cost_nanos if self.cost_nanos else None


class CampaignPacing(msgspec.Struct, frozen=True, kw_only=True):
    """Pacing of one campaign as of its last tick: how it bids, and the money of its day.

    ``participate``, ``multiplier``: as in `leadre.auction.pacing.contract.Rate`. ``spent_nanos``: charged, or expected
    of bids that wait for their event. ``has_forecast``: whether the traffic of earlier days is known. The money is 0
    for a campaign without a plan. ``goal``: of a campaign with a goal.
    """

    campaign_id: str
    participate: float
    multiplier: float
    budget_nanos: int
    spent_nanos: int
    planned_nanos: int
    has_forecast: bool
    goal: GoalFigures | None = None

    @property
    def rate(self) -> Rate:
        """How it bids."""
        return Rate(self.participate, self.multiplier, None if self.goal is None else self.goal.factors)


class PacingReply(msgspec.Struct, frozen=True, tag="pacing_reply"):
    """The campaigns, oldest change first. ``last``: number of the last change. ``has_more``: others follow it.

    ``instance``: an ID of this start of the writer, within which changes are numbered.
    """

    campaigns: list[CampaignPacing]
    last: int
    instance: str
    has_more: bool = False


class MarketShading(msgspec.Struct, frozen=True, kw_only=True):
    """The best bids in the first-price auctions of one caller and currency, in nanos.

    ``edges``: values between groups of impressions. For each group ``breaks``: paced values above which the next of its
    ``bids`` is the best.
    """

    caller: str
    currency: str
    edges: list[float]
    breaks: list[list[float]]
    bids: list[list[float]]


class ShadingReply(msgspec.Struct, frozen=True, tag="shading_reply"):
    """The markets in which enough auctions were seen."""

    markets: list[MarketShading]


class CampaignDay(msgspec.Struct, frozen=True, array_like=True):
    """Totals of one campaign on one day (ISO 8601) of its own time zone."""

    campaign_id: str
    day: str
    impressions: int
    clicks: int
    conversions: int
    charged_nanos: int


class ReportReply(msgspec.Struct, frozen=True, tag="report_reply"):
    """Days with at least one event, sorted by campaign and day. ``has_more``: further days follow the last one.

    ``is_whole``: the totals have all events of the log.
    """

    days: list[CampaignDay]
    has_more: bool = False
    is_whole: bool = True


class EraseReply(msgspec.Struct, frozen=True, tag="erase_reply"):
    """The caller may erase the user from closed segments and tables, with `leadre.serve.events.erasure.erase`."""


class ErrorReply(msgspec.Struct, frozen=True, tag="error_reply"):
    """The disk refused the write: nothing of the request is durable. ``why`` is the operating system's message."""

    why: str


class ClockReply(msgspec.Struct, frozen=True, tag="clock_reply"):
    """The bidder's time, the machine's wall time, and the time by which data may be forgotten.

    ``doubt``: "jump" or "gap", as in `leadre.serve.processes.steady_clock`; "" without one. ``why`` is for people.
    """

    doubt: Literal["", "jump", "gap"]
    why: str
    now_us: int
    machine_us: int
    certain_us: int


WriterReply = (
    AppendReply
    | LedgerReply
    | EventReply
    | RecordReply
    | CountsReply
    | PacingReply
    | ShadingReply
    | ReportReply
    | EraseReply
    | ClockReply
    | ErrorReply
)


class ModelInfoRequest(msgspec.Struct, frozen=True, tag="model_info"):
    """Read the objects of the model server, from number ``start`` on. The reply is `ModelInfoReply`."""

    start: int = 0


class ModelInfoReply(msgspec.Struct, frozen=True, tag="model_info_reply"):
    """The objects that the model can generate, and its version. Other messages number objects by this list.

    ``next_start``: the start of the next request; 0 after the last object. ``instance``: an ID of this start of the
    server; a list of objects only grows within it.
    """

    object_ids: list[str]
    version: str
    next_start: int = 0
    instance: str = ""


class GenerateRequest(msgspec.Struct, frozen=True, tag="generate"):
    """Generate the ``top`` best objects for a user. The reply is `GenerateReply`.

    ``recent`` is the user's history, oldest first. ``eligible`` is a mask over the model's objects, one bit each
    (`numpy.packbits`). ``until_s`` is the deadline on the machine's monotonic clock, which its processes share.
    """

    user_id: str
    recent: tuple[ProfileEvent, ...]
    now_us: int
    eligible: bytes
    top: int
    until_s: float


class GenerateReply(msgspec.Struct, frozen=True, tag="generate_reply"):
    """Object numbers, best first, with log-probabilities; empty if the deadline passed before any was generated.

    ``is_complete`` is false if the deadline cut the beam search short.
    """

    objects: list[int]
    log_p: list[float]
    is_complete: bool
