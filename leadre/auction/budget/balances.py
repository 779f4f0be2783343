"""Balances of campaigns and of their days: cap, charged, reserved, written off. The caller opens the transaction.

A reserved amount is stored in three rows, of its lease, of the lease's day and of its campaign, which change together.
"""

from __future__ import annotations

import sqlite3

from leadre.auction.budget.days import day_of
from leadre.auction.budget.messages import Budget
from leadre.auction.budget.schema import NO_CAP
from leadre.units import US_PER_S


def set_budget(connection: sqlite3.Connection, campaign_id: str, budget: Budget, now_us: int) -> None:
    """Store a campaign's budget and apply it to today and later days. Reservations above the new caps are freed."""
    today = day_of(now_us, budget.zone).isoformat()
    total_nanos = budget.total_nanos or NO_CAP
    daily_nanos = budget.daily_nanos or NO_CAP
    connection.execute(
        "INSERT INTO budgets (campaign_id, zone, hold_us, daily_nanos, cap_nanos) VALUES (?1, ?2, ?3, ?4, ?5)"
        " ON CONFLICT DO UPDATE SET zone = ?2, hold_us = ?3, daily_nanos = ?4",
        (campaign_id, budget.zone, budget.pending_s * US_PER_S, daily_nanos, total_nanos),
    )
    days = connection.execute(
        "SELECT day, charged_nanos + held_nanos FROM days WHERE campaign_id = ? AND day >= ?", (campaign_id, today)
    ).fetchall()
    for day, used_nanos in days:
        free_reserved(connection, used_nanos - daily_nanos, "campaign_id = ? AND day = ?", (campaign_id, day))
    connection.execute(
        "UPDATE days SET cap_nanos = max(?3, charged_nanos) WHERE campaign_id = ?1 AND day >= ?2",
        (campaign_id, today, daily_nanos),
    )
    (used_nanos,) = connection.execute(
        "SELECT charged_nanos + held_nanos FROM budgets WHERE campaign_id = ?", (campaign_id,)
    ).fetchone()
    free_reserved(connection, used_nanos - total_nanos, "campaign_id = ?", (campaign_id,))
    connection.execute(
        "UPDATE budgets SET cap_nanos = max(?2, charged_nanos) WHERE campaign_id = ?1", (campaign_id, total_nanos)
    )


def free_nanos(connection: sqlite3.Connection, campaign_id: str, day: str, daily_nanos: int) -> int:
    """Nanos neither charged nor reserved: the lesser of campaign and day. ``daily_nanos``: cap of a new day."""
    query = "SELECT cap_nanos - charged_nanos - held_nanos FROM"
    (of_campaign,) = connection.execute(f"{query} budgets WHERE campaign_id = ?", (campaign_id,)).fetchone()
    of_day = connection.execute(f"{query} days WHERE campaign_id = ? AND day = ?", (campaign_id, day)).fetchone()
    return int(min(of_campaign, of_day[0] if of_day else daily_nanos))


def add(
    connection: sqlite3.Connection,
    campaign_id: str,
    day: str,
    *,
    reserved_nanos: int = 0,
    charged_nanos: int = 0,
    written_off_nanos: int = 0,
) -> None:
    """Add to the sums of a campaign and of a day. A new day gets the current daily budget as its cap.

    The written-off sums saturate at `NO_CAP`; the caps bound the others.
    """
    connection.execute(
        "INSERT OR IGNORE INTO days (campaign_id, day, cap_nanos)"
        " SELECT campaign_id, ?2, daily_nanos FROM budgets WHERE campaign_id = ?1",
        (campaign_id, day),
    )
    for table, where in (("budgets", "campaign_id = ?"), ("days", "campaign_id = ? AND day = ?")):
        connection.execute(
            f"UPDATE {table} SET held_nanos = held_nanos + ?, charged_nanos = charged_nanos + ?,"
            f" written_off_nanos = min(written_off_nanos + ?, {NO_CAP}) WHERE {where}",
            (reserved_nanos, charged_nanos, min(written_off_nanos, NO_CAP), campaign_id, day)[: 3 + where.count("?")],
        )


def free_reserved(connection: sqlite3.Connection, nanos: int, where: str, values: tuple[object, ...]) -> int:
    """Free up to ``nanos`` that leases reserve, newest lease first. Returns the nanos freed.

    ``where``: the SQL condition that selects the leases, with ``values`` for its parameters.
    """
    if nanos <= 0:
        return 0
    leases = connection.execute(
        "SELECT lease_id, campaign_id, day, held_nanos FROM leases"
        f" WHERE held_nanos > 0 AND {where} ORDER BY lease_id DESC",
        values,
    ).fetchall()
    left_nanos = nanos
    for lease_id, campaign_id, day, reserved_nanos in leases:
        freed_nanos = min(reserved_nanos, left_nanos)
        if not freed_nanos:
            break
        connection.execute("UPDATE leases SET held_nanos = held_nanos - ? WHERE lease_id = ?", (freed_nanos, lease_id))
        add(connection, campaign_id, day, reserved_nanos=-freed_nanos)
        left_nanos -= freed_nanos
    return nanos - left_nanos
