"""What passes between bid workers, events and the ledger: one message, one dataclass. Money is in nanos."""

from __future__ import annotations

from dataclasses import dataclass

FOREVER = (1 << 63) - 1  # us


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What caps a campaign's charges, in all and a day; 0 = no cap. ``zone``: an IANA name.

    ``hold_s``: how long after a bid its charge may still come from the lease, so no shorter than the token's life.
    """

    total_nanos: int = 0
    daily_nanos: int = 0
    zone: str = "UTC"
    hold_s: int = 600


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseRequest:
    """A worker wants to bid. It gets a `Lease` of ``least_nanos`` to ``want_nanos``, or None: the budget is used up."""

    worker: str
    campaign_id: str
    want_nanos: int
    least_nanos: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """A slice of a budget. Its worker alone may bid from it, before ``expires_at_us``."""

    lease_id: int
    campaign_id: str
    nanos: int
    expires_at_us: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """The worker bids no more from a lease, of which it has reserved so much in all: the rest returns. Idempotent."""

    lease_id: int
    reserved_nanos: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Refund:
    """A bid lost: what was reserved for it returns. One ``event_id`` counts once, as for a charge of 0."""

    event_id: str
    campaign_id: str
    nanos: int
    lease_id: int = 0  # 0 = none
    known_until_us: int = FOREVER


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """What an advertiser owes for an event at ``at_us``. One ``event_id`` counts once. Becomes `ChargeResult`."""

    event_id: str
    campaign_id: str
    nanos: int
    at_us: int
    lease_id: int = 0  # 0 = none
    known_until_us: int = FOREVER  # the event_id is new again from then on


@dataclass(frozen=True, kw_only=True, slots=True)
class ChargeResult:
    """What became of a charge: booked and written off. ``is_new`` is False for an event that was known already."""

    nanos: int
    written_off_nanos: int
    is_new: bool


LedgerOrder = LeaseRequest | Release | Refund | Charge
LedgerResult = Lease | ChargeResult | None
