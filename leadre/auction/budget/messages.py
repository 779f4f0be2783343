"""Messages between workers, the event processor and the ledger. Money is in nanos of the campaign's currency."""

from __future__ import annotations

from dataclasses import dataclass

FOREVER = (1 << 63) - 1  # us


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Caps of a campaign's charges, in all and for a day; 0 = no cap. ``zone``: an IANA name.

    ``pending_s``: for how long after a lease's end its bids may still be charged to it; at least the token's lifetime.
    """

    total_nanos: int = 0
    daily_nanos: int = 0
    zone: str = "UTC"
    pending_s: int = 600


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseRequest:
    """A worker's request for budget. Result: a `Lease` of ``min_nanos`` to ``max_nanos``, None if less is free."""

    worker: str
    campaign_id: str
    max_nanos: int
    min_nanos: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """A part of a budget that only its worker may bid from, before ``expires_at_us``."""

    lease_id: int
    campaign_id: str
    nanos: int
    expires_at_us: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A worker's end of a lease. ``reserved_nanos`` is the sum that its bids reserved: the rest returns. Idempotent."""

    lease_id: int
    reserved_nanos: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Void:
    """The end of a lost bid's reservation. An ``event_id`` counts once, as in `Charge`. Result: `ChargeResult` of 0."""

    event_id: str
    campaign_id: str
    nanos: int
    lease_id: int = 0  # 0 = none
    known_until_us: int = FOREVER


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """Nanos that an advertiser owes for an event at ``at_us``. An ``event_id`` counts once. Result: `ChargeResult`."""

    event_id: str
    campaign_id: str
    nanos: int
    at_us: int
    lease_id: int = 0  # 0 = none
    known_until_us: int = FOREVER  # the event_id is new again from then on


@dataclass(frozen=True, kw_only=True, slots=True)
class ChargeResult:
    """Nanos charged and written off. ``is_new`` is False for an event that was known already."""

    nanos: int
    written_off_nanos: int
    is_new: bool


LedgerOrder = LeaseRequest | Release | Void | Charge
LedgerResult = Lease | ChargeResult | None
