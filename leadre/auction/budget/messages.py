"""Messages between workers, the event processor and the ledger. Money is in nanos of the campaign's currency."""

from __future__ import annotations

from dataclasses import dataclass

FOREVER = (1 << 63) - 1  # us
MAX_LEASE_NANOS = 10**18  # the largest budget of a campaign


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Caps of a campaign's charges, in total and per day; 0 = no cap. ``zone``: IANA time zone of its days.

    ``event_nanos``: the price of a click or conversion, of which bids reserve the expected value; 0 if bids reserve
    their whole price. ``pending_s``: seconds after the end of a lease in which it still reserves for bids whose
    event may come. A later event is charged to the free budget.
    """

    total_nanos: int = 0
    daily_nanos: int = 0
    zone: str = "UTC"
    pending_s: int = 120
    event_nanos: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseRequest:
    """A worker's request for budget. Result: a `Lease` of ``min_nanos`` to ``max_nanos``; None if that is not free.

    0 < ``min_nanos`` <= ``max_nanos`` <= `MAX_LEASE_NANOS`. ``is_standby``: no bid needs the lease yet. It is granted
    only if ``spared_nanos`` stay free, and lives longer.
    """

    worker: str
    campaign_id: str
    max_nanos: int
    min_nanos: int = 1
    is_standby: bool = False
    spared_nanos: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """A part of a budget, from which only one worker may bid, until ``expires_at_us``.

    ``free_nanos``: the part of the budget that can still be leased.
    """

    lease_id: int
    campaign_id: str
    nanos: int
    expires_at_us: int
    free_nanos: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A worker ends a lease. ``reserved_nanos``: the sum that its bids reserved; the rest is free again. Idempotent."""

    lease_id: int
    reserved_nanos: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Void:
    """Frees a lost bid's reservation. Each ``event_id`` counts once, as in `Charge`. Result: a `ChargeResult` of 0."""

    event_id: str
    campaign_id: str
    nanos: int
    lease_id: int = 0  # 0 = none
    known_until_us: int = FOREVER


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """Nanos that an advertiser owes for an event. Each ``event_id`` counts once. Result: a `ChargeResult`.

    ``reserved_nanos``: of the lease, for the bid. No bid is charged twice, so what its charge leaves of them is free.
    """

    event_id: str
    campaign_id: str
    nanos: int
    at_us: int
    lease_id: int = 0  # 0 = none
    known_until_us: int = FOREVER  # until then a repeated event_id is ignored
    reserved_nanos: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ChargeResult:
    """Nanos charged, and nanos owed beyond the budget and so written off. ``is_new``: False for a repeated event."""

    nanos: int
    written_off_nanos: int
    is_new: bool


LedgerOrder = LeaseRequest | Release | Void | Charge
LedgerResult = Lease | ChargeResult | None
