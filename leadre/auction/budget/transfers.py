"""The four orders of the ledger: lease, post, void and release. Each runs inside the caller's transaction.

They are the two-phase transfers of accounting: a lease reserves a part of a budget for the bids of one worker; an event
posts a part of the reservation as a charge; a lost bid voids its part; the worker releases what it never bid; and
`Ledger.expire` ends the rest when the last event of the lease can no longer come.
"""

from __future__ import annotations

import sqlite3

from leadre.auction.budget import balances
from leadre.auction.budget.days import day_ends_us, day_of
from leadre.auction.budget.messages import Charge, ChargeResult, Lease, LeaseRequest, Release, Void

MAX_SHARE = 8  # a lease takes at most 1/8 of the free budget, so that every worker gets a part of its end


def lease(connection: sqlite3.Connection, request: LeaseRequest, lease_us: int, now_us: int) -> Lease | None:
    """Reserve a part of a budget for one worker, for ``lease_us`` and not beyond the campaign's day.

    None if the campaign is unknown or less than ``request.min_nanos`` is free.
    """
    assert 0 < request.min_nanos <= request.max_nanos, request
    budget = connection.execute(
        "SELECT zone, hold_us, daily_nanos FROM budgets WHERE campaign_id = ?", (request.campaign_id,)
    ).fetchone()
    if budget is None:
        return None
    zone, pending_us, daily_nanos = budget
    day = day_of(now_us, zone)
    free_nanos = balances.free_nanos(connection, request.campaign_id, day.isoformat(), daily_nanos)
    if free_nanos < request.min_nanos:
        return None
    nanos = min(request.max_nanos, max(request.min_nanos, free_nanos // MAX_SHARE))
    expires_at_us = min(now_us + lease_us, day_ends_us(day, zone))
    balances.add(connection, request.campaign_id, day.isoformat(), reserved_nanos=nanos)
    inserted = connection.execute(
        "INSERT INTO leases (worker, campaign_id, day, granted_nanos, held_nanos, returns_at_us)"
        " VALUES (?1, ?2, ?3, ?4, ?4, ?5)",
        (request.worker, request.campaign_id, day.isoformat(), nanos, expires_at_us + pending_us),
    )
    assert inserted.lastrowid is not None
    return Lease(lease_id=inserted.lastrowid, campaign_id=request.campaign_id, nanos=nanos, expires_at_us=expires_at_us)


def post(connection: sqlite3.Connection, charge: Charge, now_us: int) -> ChargeResult:
    """Charge an event to its lease, then to the free budget; the rest is written off. A known event changes nothing.

    The charge belongs to the day of its lease, or without a lease to the day of the event.
    """
    assert charge.nanos >= 0, charge
    earlier = posted(connection, charge.event_id, now_us)
    if earlier is not None:
        return ChargeResult(nanos=earlier[0], written_off_nanos=earlier[1], is_new=False)
    if not charge.nanos:  # most events cost nothing: only their ID is stored
        _remember(connection, charge, "", 0, 0)
        return ChargeResult(nanos=0, written_off_nanos=0, is_new=True)
    lease = connection.execute(
        "SELECT day, held_nanos FROM leases WHERE lease_id = ? AND campaign_id = ?",
        (charge.lease_id, charge.campaign_id),
    ).fetchone()
    budget = connection.execute(
        "SELECT zone, daily_nanos FROM budgets WHERE campaign_id = ?", (charge.campaign_id,)
    ).fetchone()
    zone, daily_nanos = budget or ("UTC", 0)
    day, reserved_nanos = lease or (day_of(charge.at_us, zone).isoformat(), 0)
    from_lease_nanos = min(charge.nanos, reserved_nanos)
    free_nanos = balances.free_nanos(connection, charge.campaign_id, day, daily_nanos) if budget else 0
    charged_nanos = min(charge.nanos, from_lease_nanos + free_nanos)
    written_off_nanos = charge.nanos - charged_nanos
    if from_lease_nanos:
        connection.execute(
            "UPDATE leases SET held_nanos = held_nanos - ? WHERE lease_id = ?", (from_lease_nanos, charge.lease_id)
        )
    if budget:
        balances.add(
            connection,
            charge.campaign_id,
            day,
            reserved_nanos=-from_lease_nanos,
            charged_nanos=charged_nanos,
            written_off_nanos=written_off_nanos,
        )
    _remember(connection, charge, day, charged_nanos, written_off_nanos)
    return ChargeResult(nanos=charged_nanos, written_off_nanos=written_off_nanos, is_new=True)


def void(connection: sqlite3.Connection, order: Void, now_us: int) -> ChargeResult:
    """Return the reservation of a lost bid to its budget. A known event changes nothing."""
    assert order.nanos >= 0, order
    if posted(connection, order.event_id, now_us) is not None:
        return ChargeResult(nanos=0, written_off_nanos=0, is_new=False)
    values = (order.lease_id, order.campaign_id)
    balances.free_reserved(connection, order.nanos, "lease_id = ? AND campaign_id = ?", values)
    _remember(connection, order, "", 0, 0)
    return ChargeResult(nanos=0, written_off_nanos=0, is_new=True)


def release(connection: sqlite3.Connection, order: Release) -> None:
    """Return the part of a lease that its worker never reserved for a bid. The same order again changes nothing."""
    assert order.reserved_nanos >= 0, order
    lease = connection.execute("SELECT granted_nanos FROM leases WHERE lease_id = ?", (order.lease_id,)).fetchone()
    if lease is not None and lease[0] > order.reserved_nanos:
        balances.free_reserved(connection, lease[0] - order.reserved_nanos, "lease_id = ?", (order.lease_id,))
        connection.execute(
            "UPDATE leases SET granted_nanos = ? WHERE lease_id = ?", (order.reserved_nanos, order.lease_id)
        )


def posted(connection: sqlite3.Connection, event_id: str, now_us: int) -> tuple[int, int] | None:
    """(charged, written off) nanos of an event that was posted or voided and is still known, else None."""
    row: tuple[int, int] | None = connection.execute(
        "SELECT charged_nanos, written_off_nanos FROM entries WHERE event_id = ? AND known_until_us > ?",
        (event_id, now_us),
    ).fetchone()
    return row


def _remember(
    connection: sqlite3.Connection, order: Charge | Void, day: str, charged_nanos: int, written_off_nanos: int
) -> None:
    row = (order.event_id, order.campaign_id, day, order.known_until_us, charged_nanos, written_off_nanos)
    connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)", row)
