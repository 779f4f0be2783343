"""The four orders of the ledger: lease, post, void and release.

They are the two-phase transfers of accounting: a lease reserves a part of a budget for the bids of one worker; an event
posts its bid's part of the reservation as a charge, and what it does not cost is free; a lost bid voids its part; the
worker releases what it never bid; and `Ledger.expire` ends the rest when the last event of the lease can no longer
come.
"""

from __future__ import annotations

from leadre.auction.budget.balances import Balances, KnownEvent, free_for_event
from leadre.auction.budget.days import day_ends_us, day_of
from leadre.auction.budget.messages import Charge, ChargeResult, Lease, LeaseRequest, Release, Void

MAX_SHARE = 8  # a lease takes at most 1/8 of the free budget, so that every worker gets a part of its end


def lease(balances: Balances, request: LeaseRequest, lease_us: int, now_us: int) -> Lease | None:
    """Reserve a part of a budget for one worker, for ``lease_us`` and not beyond the campaign's day.

    None if the campaign is unknown or less than ``request.min_nanos`` can be leased. A single bid owes one event at
    most, so a budget without reservations that has a whole event left pays one bid of any expected value.
    """
    assert 0 < request.min_nanos <= request.max_nanos, request
    budget = balances.budget(request.campaign_id)
    if budget is None:
        return None
    day = day_of(now_us, budget.zone)
    free_nanos = balances.leasable_nanos(request.campaign_id, day.isoformat())
    is_only_bid = free_nanos > 0 and not budget.sums.reserved_nanos
    if free_nanos < request.min_nanos and not (is_only_bid and request.min_nanos <= budget.event_nanos):
        return None
    nanos = min(request.max_nanos, max(request.min_nanos, free_nanos // MAX_SHARE))
    if request.is_standby and free_nanos - nanos < request.spared_nanos:
        return None
    expires_at_us = min(now_us + lease_us, day_ends_us(day, budget.zone))
    lease_id = balances.add_lease(request, day.isoformat(), nanos, expires_at_us + budget.pending_us)
    return Lease(
        lease_id=lease_id,
        campaign_id=request.campaign_id,
        nanos=nanos,
        expires_at_us=expires_at_us,
        free_nanos=max(0, free_nanos - nanos),
    )


def post(balances: Balances, charge: Charge, now_us: int) -> ChargeResult:
    """Charge an event to its lease, then to the free budget; the rest is written off. A known event changes nothing.

    An event of which bids reserve the expected value is charged to other leases, too: its debt is certain, theirs is
    expected.

    The charge belongs to the day of its lease, or without a lease to the day of the event.
    """
    assert charge.nanos >= 0 and charge.reserved_nanos >= 0, charge
    known = balances.event(charge.event_id, now_us)
    if known is not None:
        return ChargeResult(nanos=known.charged_nanos, written_off_nanos=known.written_off_nanos, is_new=False)
    day = ""
    charged_nanos = 0
    if charge.nanos:  # most events cost nothing: only their ID is stored
        day, charged_nanos = _charge(balances, charge)
    written_off_nanos = charge.nanos - charged_nanos
    balances.add_event(
        KnownEvent(charge.event_id, charge.campaign_id, day, charge.known_until_us, charged_nanos, written_off_nanos)
    )
    return ChargeResult(nanos=charged_nanos, written_off_nanos=written_off_nanos, is_new=True)


def _charge(balances: Balances, charge: Charge) -> tuple[str, int]:
    """Change the balances by a charge: (day to which it belongs, nanos that the budget paid)."""
    budget = balances.budget(charge.campaign_id)
    if budget is None:
        return day_of(charge.at_us, "UTC").isoformat(), 0
    lease = balances.lease(charge.lease_id)
    if lease is not None and lease.campaign_id == charge.campaign_id:
        day = lease.day
        balances.free(lease, max(charge.nanos, charge.reserved_nanos))
    else:
        day = day_of(charge.at_us, budget.zone).isoformat()
    if budget.event_nanos:
        free_for_event(balances, charge.campaign_id, day, charge.nanos)
    return day, balances.charge(charge.campaign_id, day, charge.nanos)


def void(balances: Balances, order: Void, now_us: int) -> ChargeResult:
    """Return the reservation of a lost bid to its budget. A known event changes nothing."""
    assert order.nanos >= 0, order
    if balances.event(order.event_id, now_us) is not None:
        return ChargeResult(nanos=0, written_off_nanos=0, is_new=False)
    lease = balances.lease(order.lease_id)
    if lease is not None and lease.campaign_id == order.campaign_id:
        balances.free(lease, order.nanos)
        balances.lower_caps()
    balances.add_event(KnownEvent(order.event_id, order.campaign_id, "", order.known_until_us))
    return ChargeResult(nanos=0, written_off_nanos=0, is_new=True)


def release(balances: Balances, order: Release) -> None:
    """Return the part of a lease that its worker never reserved for a bid. The same order again changes nothing."""
    assert order.reserved_nanos >= 0, order
    lease = balances.lease(order.lease_id)
    if lease is not None and lease.granted_nanos > order.reserved_nanos:
        balances.free(lease, lease.granted_nanos - order.reserved_nanos)
        balances.lower_caps()
        lease.granted_nanos = order.reserved_nanos
