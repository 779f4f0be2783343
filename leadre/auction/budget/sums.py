"""Reading the ledger: sums of a campaign, of its day, of all campaigns today, and an audit of every sum."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import date
from typing import Literal

from leadre.auction.budget.balances import Balances
from leadre.auction.budget.days import day_of
from leadre.auction.budget.schema import NO_CAP

Column = Literal["charged_nanos", "held_nanos", "written_off_nanos"]

# Fault -> query for (campaign, day) that have it.
AUDIT = {
    "more than its budget": "SELECT campaign_id, '' FROM budgets WHERE charged_nanos + held_nanos > cap_nanos",
    "more than its day": "SELECT campaign_id, day FROM days WHERE charged_nanos + held_nanos > cap_nanos",
    "days do not sum to the campaign": """
        SELECT campaign_id, '' FROM budgets AS b WHERE (charged_nanos, held_nanos, written_off_nanos) IS NOT
        (SELECT ifnull(bounded_sum(charged_nanos), 0), ifnull(bounded_sum(held_nanos), 0),
        ifnull(bounded_sum(written_off_nanos), 0)
        FROM days WHERE campaign_id = b.campaign_id)""",
    "leases do not sum to the day": """
        SELECT campaign_id, day FROM days AS d WHERE held_nanos IS NOT (SELECT ifnull(bounded_sum(held_nanos), 0)
        FROM leases WHERE campaign_id = d.campaign_id AND day = d.day)""",
    "charges exceed the day": """
        SELECT campaign_id, day FROM days AS d WHERE charged_nanos < (SELECT ifnull(bounded_sum(charged_nanos), 0)
        FROM entries WHERE campaign_id = d.campaign_id AND day = d.day)""",
}


class BoundedSum:
    """SQL aggregate ``bounded_sum``: a sum that saturates at `NO_CAP`. SQLite's own fails above an int64."""

    def __init__(self) -> None:
        self._sum = 0

    def step(self, value: int) -> None:
        self._sum += value

    def finalize(self) -> int:
        return min(self._sum, NO_CAP)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpendToday:
    """Nanos charged to a campaign on the present day of its zone, and in all."""

    campaign_id: str
    charged_nanos: int
    total_charged_nanos: int


@dataclass(frozen=True, kw_only=True, slots=True)
class UsedBudget:
    """Nanos of a campaign, in all or on a day: charged, reserved by leases, and owed but written off."""

    charged_nanos: int = 0
    reserved_nanos: int = 0
    written_off_nanos: int = 0


def sum_of(connection: sqlite3.Connection, column: Column, campaign_id: str, day: date | None) -> int:
    """A sum of a campaign, in all or on a day of its zone; 0 for an unknown campaign or day."""
    if day is None:
        cursor = connection.execute(f"SELECT {column} FROM budgets WHERE campaign_id = ?", (campaign_id,))
    else:
        key = (campaign_id, day.isoformat())
        cursor = connection.execute(f"SELECT {column} FROM days WHERE campaign_id = ? AND day = ?", key)
    row = cursor.fetchone()
    return int(row[0]) if row else 0


def left_nanos(connection: sqlite3.Connection, campaign_id: str, now_us: int) -> int:
    """Nanos that can be leased now; `NO_CAP` or near it if nothing is capped, 0 for an unknown campaign."""
    balances = Balances(connection)
    budget = balances.budget(campaign_id)
    return balances.leasable_nanos(campaign_id, day_of(now_us, budget.zone).isoformat()) if budget else 0


def used_budget(connection: sqlite3.Connection, campaign_id: str, now_us: int) -> tuple[UsedBudget, UsedBudget]:
    """The sums of a campaign, in all and on the present day of its zone; of 0 for an unknown campaign."""
    balances = Balances(connection)
    budget = balances.budget(campaign_id)
    if budget is None:
        return UsedBudget(), UsedBudget()
    today = balances.day(campaign_id, day_of(now_us, budget.zone).isoformat())
    total, of_day = (
        UsedBudget(
            charged_nanos=used.charged_nanos,
            reserved_nanos=used.reserved_nanos,
            written_off_nanos=used.written_off_nanos,
        )
        for used in (budget.sums, today)
    )
    return total, of_day


def audit(connection: sqlite3.Connection) -> list[str]:
    """One line for each sum that is wrong, none for a correct ledger. Reads every row."""
    connection.create_aggregate("bounded_sum", 1, BoundedSum)
    return [
        f"campaign {campaign_id} {day}: {fault}"
        for fault, query in AUDIT.items()
        for campaign_id, day in connection.execute(query)
    ]


def spend_today(connection: sqlite3.Connection, now_us: int) -> list[SpendToday]:
    """All campaigns that were ever charged, by charges of today, highest first. A read-only connection is enough."""
    zones = [zone for (zone,) in connection.execute("SELECT DISTINCT zone FROM budgets")]
    query = (
        "SELECT b.campaign_id, ifnull(d.charged_nanos, 0), b.charged_nanos FROM budgets AS b"
        " LEFT JOIN days AS d ON d.campaign_id = b.campaign_id AND d.day = ? WHERE b.zone = ? AND b.charged_nanos > 0"
    )
    rows = [row for zone in zones for row in connection.execute(query, (day_of(now_us, zone).isoformat(), zone))]
    return [
        SpendToday(campaign_id=campaign_id, charged_nanos=charged_nanos, total_charged_nanos=total_nanos)
        for campaign_id, charged_nanos, total_nanos in sorted(rows, key=lambda row: (-row[1], row[0]))
    ]
