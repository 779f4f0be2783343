"""Records of the event log: requests with their bids, events with their charges, and status changes of ads.

Tags and field names on the disk are those of the first release; ``msgspec.field(name=...)`` maps a renamed field. A new
field has a default, so that logs of earlier releases are read.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import msgspec

from leadre.auction.pacing.contract import GoalFactors
from leadre.types import Bid, Candidate, Outcome, Verdict

NANO = 10**9  # rates of tokens and records are in billionths


class RankedCandidates(msgspec.Struct, frozen=True, array_like=True):
    """The ranker's part of a request; the tuples are in the order of the candidates.

    ``event``: the action whose probability `RequestRecord.scores` has. ``is_price``: it prices the bids that pay for
    the event. ``log_odds``: before calibration; None for a candidate that was not scored. ``log_fit``: that of
    `leadre.serve.bidding.value.Values`.
    """

    event: str
    is_price: bool
    log_odds: tuple[float | None, ...]
    is_new: tuple[bool, ...]
    log_fit: tuple[float, ...]


class PacedCampaign(msgspec.Struct, frozen=True, array_like=True):
    """How a campaign with a plan bid in a request: the probability to take part, and the factor of its value.

    ``eligible``: imps in which it could have bid. ``goal``: as in `Rate`. ``is_absent``: it took no part; False in logs
    up to November 2026.
    """

    campaign_id: str
    participate: float
    multiplier: float
    eligible: int
    goal: GoalFactors | None = None
    is_absent: bool = False


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, tag="answered"):
    """A request and the bids for it. ``request_id`` is the bidder's own; an exchange may use its own ID twice."""

    request_id: str
    at_us: int
    user_id: str = ""  # "" if it is unknown or may not be stored
    placements: dict[str, str] = {}  # imp -> the publisher's name for it
    candidates: tuple[Candidate, ...] = ()
    scores: tuple[float | None, ...] = ()  # calibrated probabilities of the candidates; empty without a ranker
    verdicts: dict[str, tuple[Verdict, ...]] = {}  # imp -> the verdict on each candidate
    bids: tuple[Bid, ...] = ()  # the selected ads, with propensity and price
    reason: str = ""  # of a no-bid
    caller_request_id: str = msgspec.field(default="", name="asked_id")
    # Fields of the request that decide the bid, as `leadre.serve.bidding.record` selects them.
    request: dict[str, Any] = msgspec.field(default_factory=dict, name="asked")
    is_known: bool = False  # the user's list or profile was looked up
    is_degraded: bool = False  # the store was down
    is_cut: bool = False  # the deadline ended the generation
    versions: dict[str, str] = {}  # artifact -> version
    is_test: bool = False
    ranked: RankedCandidates | None = None
    paced: tuple[PacedCampaign, ...] = ()
    caller: str = ""  # the exchange of a first-price auction
    squashing: float = 1.0  # power of the rates in the order of the candidates


class AssumedRate(msgspec.Struct, frozen=True, array_like=True):
    """The probability of an event for one impression, as a bid assumed it, in billionths."""

    event: Literal["click", "conv"]
    nano: int

    @property
    def p(self) -> float:
        """The probability."""
        return self.nano / NANO


class EventRecord(msgspec.Struct, frozen=True, kw_only=True, tag="happened"):
    """An event and its effect. Events of the same ``key`` are one event until ``known_until_us``."""

    key: str
    outcome: Outcome
    lease_id: int = 0
    owed_nanos: int = 0  # the price of the event; ``outcome.charge_nanos`` is the part that the budget paid
    void_nanos: int = msgspec.field(default=0, name="refund_nanos")  # reservation of a lost bid that returns
    reserved_nanos: int = 0  # of the lease, for a bid that the event charges; 0 in logs up to November 2026
    known_until_us: int = 0
    is_test: bool = False
    is_training: bool = False  # may be written to the tables for training
    min_to_win_nanos: int = 0  # the lowest price that would have won, if a win or loss reports it
    loss_reason: int = 0  # OpenRTB's; 0 = none is named
    bid_at_us: int = 0  # time of the bid, of an impression, bill, click or conversion
    # Of the bid: on clicks, conversions, and the one event by which its impression counts (`outcomes.decide`).
    rate: AssumedRate | None = None
    earlier_conversion: Literal["", "page", "server"] = ""  # of a click: who sent one before this, which is a server's
    click_key: str = ""  # of a conversion from a server: the click whose one charge is used up from then on
    sale_key: str = ""  # of the first conversion of a click from a server: later ones are further sales


class StatusRecord(msgspec.Struct, frozen=True, kw_only=True, tag="switched"):
    """An ad that started or stopped to be live; the live inventory of any moment follows from these records."""

    at_us: int
    ad_id: str
    is_live: bool


class RequestTag(msgspec.Struct, frozen=True, tag="answered"):
    """A `RequestRecord` whose fields are not read, as where events alone are counted."""


class EventTag(msgspec.Struct, frozen=True, tag="happened"):
    """An `EventRecord` whose fields are not read."""


class StatusTag(msgspec.Struct, frozen=True, tag="switched"):
    """A `StatusRecord` whose fields are not read."""


Record = RequestRecord | EventRecord | StatusRecord
encode = msgspec.msgpack.Encoder().encode
_TAG_DECODER = msgspec.msgpack.Decoder(RequestTag | EventTag | StatusTag)
_DECODER: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


def decode(data: bytes) -> Record:
    """The record of its msgpack. msgspec.DecodeError for anything else."""
    return _DECODER.decode(data)


def user_of(record: Record) -> str:
    """The user that a record names; "" if it names none."""
    if isinstance(record, RequestRecord):
        return record.user_id
    return record.outcome.user_id if isinstance(record, EventRecord) else ""


def is_request(data: bytes) -> bool:
    """Whether the msgpack of a record is that of a `RequestRecord`. msgspec.DecodeError for that of no record."""
    return isinstance(_TAG_DECODER.decode(data), RequestTag)


def without_user(record: RequestRecord) -> RequestRecord:
    """The record with user_id and segments removed."""
    request = {name: value for name, value in record.request.items() if name != "segments"}
    return msgspec.structs.replace(record, user_id="", request=request)


def without(record: Record, user_id: str) -> Record:
    """The record with a user removed: the same object if it does not name this user."""
    if isinstance(record, RequestRecord) and record.user_id == user_id:
        return without_user(record)
    if isinstance(record, EventRecord) and record.outcome.user_id == user_id:
        return msgspec.structs.replace(
            record, outcome=dataclasses.replace(record.outcome, user_id=""), is_training=False
        )
    return record
