"""Budgets that cannot be overdrawn: `charged + held <= cap` for every campaign and every day, in each commit.

Bid workers do not ask the ledger for each bid. They *lease* slices of a budget (`LeaseRequest` -> `Lease`), reserve
from them in
memory (`leadre.auction.budget.leases`), and what they hold nobody else can spend. An event turns a part of what is
held into a `Charge`; a `Refund` (the bid lost) and a `Release` (never bid) give it back; `Ledger.expire` takes back
whatever is
still held when the last event of the lease's bids can no longer come, be the worker alive or not. A charge that finds
neither its lease nor free budget is written off. The two CHECK constraints of the schema hold the promise itself: a
mistake here fails a commit, it does not cost an advertiser money.

A day is a calendar day in the campaign's time zone, so it may have 23 or 25 hours. A lease ends with its day, and its
charges belong to that day, however late they come. Nothing here knows a user.
"""

from __future__ import annotations

import sqlite3
import zoneinfo
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Self

from leadre import database
from leadre.auction.budget.messages import (
    Budget,
    Charge,
    ChargeResult,
    Lease,
    LeaseRequest,
    LedgerOrder,
    LedgerResult,
    Refund,
    Release,
)
from leadre.errors import InputError

NO_CAP = 1 << 62  # nanos; stands for "no cap", two of them still fit into an int64
SHARE = 8  # one lease takes at most this part of what is free, so that the end of a budget reaches every worker
SECOND_US = 1_000_000
REMEMBER_LEASE_US = 30 * 86_400 * SECOND_US  # after its end: a late charge still finds the day of its bid

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE budgets (
        campaign_id TEXT PRIMARY KEY, zone TEXT NOT NULL, hold_us INTEGER NOT NULL, daily_nanos INTEGER NOT NULL,
        cap_nanos INTEGER NOT NULL, charged_nanos INTEGER NOT NULL DEFAULT 0, held_nanos INTEGER NOT NULL DEFAULT 0,
        written_off_nanos INTEGER NOT NULL DEFAULT 0,
        CHECK (charged_nanos >= 0 AND held_nanos >= 0 AND charged_nanos + held_nanos <= cap_nanos)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE days (
        campaign_id TEXT NOT NULL REFERENCES budgets, day TEXT NOT NULL,
        cap_nanos INTEGER NOT NULL, charged_nanos INTEGER NOT NULL DEFAULT 0, held_nanos INTEGER NOT NULL DEFAULT 0,
        written_off_nanos INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (campaign_id, day),
        CHECK (charged_nanos >= 0 AND held_nanos >= 0 AND charged_nanos + held_nanos <= cap_nanos)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE leases (
        lease_id INTEGER PRIMARY KEY AUTOINCREMENT, worker TEXT NOT NULL, campaign_id TEXT NOT NULL, day TEXT NOT NULL,
        granted_nanos INTEGER NOT NULL, held_nanos INTEGER NOT NULL, returns_at_us INTEGER NOT NULL,
        CHECK (held_nanos BETWEEN 0 AND granted_nanos),
        FOREIGN KEY (campaign_id, day) REFERENCES days
    ) STRICT;
    CREATE INDEX open_leases ON leases (campaign_id, day) WHERE held_nanos > 0;
    CREATE INDEX leases_by_return ON leases (returns_at_us);
    CREATE TABLE entries (
        event_id TEXT PRIMARY KEY, campaign_id TEXT NOT NULL, day TEXT NOT NULL, known_until_us INTEGER NOT NULL,
        charged_nanos INTEGER NOT NULL, written_off_nanos INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX entries_by_time ON entries (known_until_us);
    CREATE TABLE log (number INTEGER NOT NULL) STRICT;
    INSERT INTO log VALUES (0)
    """,
)


class Ledger:
    """The books, in one process. Methods return after the disk has what they did; `apply` shares one commit."""

    def __init__(self, path: Path, *, lease_s: float = 10.0) -> None:
        self.connection = database.connect(path, MIGRATIONS)
        self._lease_us = round(lease_s * SECOND_US)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.connection.close()

    def set_budget(self, campaign_id: str, budget: Budget, now_us: int) -> None:
        """Write down a campaign's budget, or change it; today's cap changes with it, those of past days stay.

        What is charged stays charged. A cap below what workers hold takes it from their newest leases; what they go on
        to spend is written off. InputError for an unknown time zone or an amount out of range.
        """
        self.set_budgets({campaign_id: budget}, now_us)

    def set_budgets(self, budgets: Mapping[str, Budget], now_us: int) -> None:
        """The same for many campaigns, with one commit. A campaign that is not here is never charged."""
        for campaign_id, budget in budgets.items():
            for name in ("total_nanos", "daily_nanos", "hold_s"):
                if not 0 <= getattr(budget, name) < NO_CAP:
                    raise InputError(f"campaign {campaign_id}: {name} = {getattr(budget, name)}; 0 (no cap) or more")
        with database.transaction(self.connection):
            for campaign_id, budget in budgets.items():
                self._set_budget(campaign_id, budget, now_us)

    def _set_budget(self, campaign_id: str, budget: Budget, now_us: int) -> None:
        today = day_of(now_us, budget.zone).isoformat()
        total, daily = budget.total_nanos or NO_CAP, budget.daily_nanos or NO_CAP
        self.connection.execute(
            "INSERT INTO budgets (campaign_id, zone, hold_us, daily_nanos, cap_nanos) VALUES (?1, ?2, ?3, ?4, ?5)"
            " ON CONFLICT DO UPDATE SET zone = ?2, hold_us = ?3, daily_nanos = ?4",
            (campaign_id, budget.zone, budget.hold_s * SECOND_US, daily, total),
        )
        days = self.connection.execute(
            "SELECT day, charged_nanos + held_nanos FROM days WHERE campaign_id = ? AND day >= ?",
            (campaign_id, today),
        ).fetchall()
        for day, taken in days:
            self._take_back(taken - daily, "campaign_id = ? AND day = ?", (campaign_id, day))
        self.connection.execute(
            "UPDATE days SET cap_nanos = max(?3, charged_nanos) WHERE campaign_id = ?1 AND day >= ?2",
            (campaign_id, today, daily),
        )
        (taken,) = self.connection.execute(
            "SELECT charged_nanos + held_nanos FROM budgets WHERE campaign_id = ?", (campaign_id,)
        ).fetchone()
        self._take_back(taken - total, "campaign_id = ?", (campaign_id,))
        self.connection.execute(
            "UPDATE budgets SET cap_nanos = max(?2, charged_nanos) WHERE campaign_id = ?1", (campaign_id, total)
        )

    def apply(self, orders: Sequence[LedgerOrder], now_us: int) -> list[LedgerResult]:
        """Carry out a batch in order, with one commit: all of it or, where an error is raised, nothing."""
        with database.transaction(self.connection):
            return [self.enter(order, now_us) for order in orders]

    def enter(self, order: LedgerOrder, now_us: int) -> LedgerResult:
        """Carry out one order inside a transaction of the caller, who may have more to write in the same commit."""
        if isinstance(order, LeaseRequest):
            return self._lease(order, now_us)
        if isinstance(order, Charge):
            return self._charge(order, now_us)
        if isinstance(order, Refund):
            return self._refund(order, now_us)
        self._release(order)
        return None

    def knows(self, event_id: str, now_us: int) -> bool:
        """Whether an event has been charged or refunded and is still remembered."""
        return self._entry(event_id, now_us) is not None

    @property
    def log_number(self) -> int:
        """The last record of the event log that is in the books; set it in the transaction that books it."""
        (number,) = self.connection.execute("SELECT number FROM log").fetchone()
        return int(number)

    @log_number.setter
    def log_number(self, number: int) -> None:
        self.connection.execute("UPDATE log SET number = ?", (number,))

    def expire(self, now_us: int) -> int:
        """Return what is held by leases whose last charge could have come by now; the nanos returned."""
        with database.transaction(self.connection):
            return self._take_back(NO_CAP, "returns_at_us <= ?", (now_us,))

    def forget(self, now_us: int) -> None:
        """Forget events that need not be known any more, and leases long ended; sums stay."""
        long_ago_us = now_us - REMEMBER_LEASE_US
        with database.transaction(self.connection):
            self.connection.execute("DELETE FROM entries WHERE known_until_us <= ?", (now_us,))
            self.connection.execute("DELETE FROM leases WHERE returns_at_us <= ? AND held_nanos = 0", (long_ago_us,))

    def spent(self, campaign_id: str, day: date | None = None) -> int:
        """Nanos charged, in all or on a day of the campaign's zone."""
        return self._sum("charged_nanos", campaign_id, day)

    def held(self, campaign_id: str, day: date | None = None) -> int:
        """Nanos that leases hold, bid or not."""
        return self._sum("held_nanos", campaign_id, day)

    def written_off(self, campaign_id: str, day: date | None = None) -> int:
        """Nanos that came too late for the budget and that nobody pays."""
        return self._sum("written_off_nanos", campaign_id, day)

    def left(self, campaign_id: str, now_us: int) -> int:
        """Nanos that could be leased now; `NO_CAP` or near it where nothing caps, 0 for an unknown campaign."""
        found = self.connection.execute(
            "SELECT zone, daily_nanos FROM budgets WHERE campaign_id = ?", (campaign_id,)
        ).fetchone()
        if found is None:
            return 0
        return self._free(campaign_id, day_of(now_us, found[0]).isoformat(), found[1])

    def verify(self) -> list[str]:
        """What does not add up, one line each; empty when the books are in order. Reads everything."""
        checks = {
            "more than its budget": "SELECT campaign_id, '' FROM budgets WHERE charged_nanos + held_nanos > cap_nanos",
            "more than its day": "SELECT campaign_id, day FROM days WHERE charged_nanos + held_nanos > cap_nanos",
            "days do not sum to the campaign": """
                SELECT campaign_id, '' FROM budgets AS b WHERE (charged_nanos, held_nanos, written_off_nanos) IS NOT
                (SELECT ifnull(sum(charged_nanos), 0), ifnull(sum(held_nanos), 0), ifnull(sum(written_off_nanos), 0)
                FROM days WHERE campaign_id = b.campaign_id)""",
            "leases do not sum to the day": """
                SELECT campaign_id, day FROM days AS d WHERE held_nanos IS NOT (SELECT ifnull(sum(held_nanos), 0)
                FROM leases WHERE campaign_id = d.campaign_id AND day = d.day)""",
            "charges exceed the day": """
                SELECT campaign_id, day FROM days AS d WHERE charged_nanos < (SELECT ifnull(sum(charged_nanos), 0)
                FROM entries WHERE campaign_id = d.campaign_id AND day = d.day)""",
        }
        return [
            f"campaign {campaign_id} {day}: {fault}"
            for fault, query in checks.items()
            for campaign_id, day in self.connection.execute(query)
        ]

    def _lease(self, ask: LeaseRequest, now_us: int) -> Lease | None:
        assert 0 < ask.least_nanos <= ask.want_nanos, ask
        found = self.connection.execute(
            "SELECT zone, hold_us, daily_nanos FROM budgets WHERE campaign_id = ?", (ask.campaign_id,)
        ).fetchone()
        if found is None:
            return None
        zone, hold_us, daily = found
        day = day_of(now_us, zone)
        free = self._free(ask.campaign_id, day.isoformat(), daily)
        if free < ask.least_nanos:
            return None
        nanos = min(ask.want_nanos, max(ask.least_nanos, free // SHARE))
        expires_at_us = min(now_us + self._lease_us, day_ends_us(day, zone))
        self._book(ask.campaign_id, day.isoformat(), held=nanos)
        made = self.connection.execute(
            "INSERT INTO leases (worker, campaign_id, day, granted_nanos, held_nanos, returns_at_us)"
            " VALUES (?1, ?2, ?3, ?4, ?4, ?5)",
            (ask.worker, ask.campaign_id, day.isoformat(), nanos, expires_at_us + hold_us),
        )
        assert made.lastrowid is not None
        return Lease(lease_id=made.lastrowid, campaign_id=ask.campaign_id, nanos=nanos, expires_at_us=expires_at_us)

    def _charge(self, charge: Charge, now_us: int) -> ChargeResult:
        assert charge.nanos >= 0, charge
        known = self._entry(charge.event_id, now_us)
        if known is not None:
            return ChargeResult(nanos=known[0], written_off_nanos=known[1], is_new=False)
        if not charge.nanos:  # most events cost nothing and are only to be known
            self._enter(charge, "", 0, 0)
            return ChargeResult(nanos=0, written_off_nanos=0, is_new=True)
        lease = self.connection.execute(
            "SELECT day, held_nanos FROM leases WHERE lease_id = ? AND campaign_id = ?",
            (charge.lease_id, charge.campaign_id),
        ).fetchone()
        found = self.connection.execute(
            "SELECT zone, daily_nanos FROM budgets WHERE campaign_id = ?", (charge.campaign_id,)
        ).fetchone()
        zone, daily = found or ("UTC", 0)
        day, held = lease or (day_of(charge.at_us, zone).isoformat(), 0)
        from_lease = min(charge.nanos, held)
        free = self._free(charge.campaign_id, day, daily) if found else 0
        booked = min(charge.nanos, from_lease + free)
        lost = charge.nanos - booked
        if from_lease:
            self.connection.execute(
                "UPDATE leases SET held_nanos = held_nanos - ? WHERE lease_id = ?", (from_lease, charge.lease_id)
            )
        if found:
            self._book(charge.campaign_id, day, held=-from_lease, charged=booked, written_off=lost)
        self._enter(charge, day, booked, lost)
        return ChargeResult(nanos=booked, written_off_nanos=lost, is_new=True)

    def _refund(self, refund: Refund, now_us: int) -> ChargeResult:
        assert refund.nanos >= 0, refund
        if self._entry(refund.event_id, now_us) is not None:
            return ChargeResult(nanos=0, written_off_nanos=0, is_new=False)
        which = (refund.lease_id, refund.campaign_id)
        self._take_back(refund.nanos, "lease_id = ? AND campaign_id = ?", which)
        self._enter(refund, "", 0, 0)
        return ChargeResult(nanos=0, written_off_nanos=0, is_new=True)

    def _release(self, release: Release) -> None:
        assert release.reserved_nanos >= 0, release
        lease = self.connection.execute(
            "SELECT granted_nanos FROM leases WHERE lease_id = ?", (release.lease_id,)
        ).fetchone()
        if lease is not None and lease[0] > release.reserved_nanos:
            self._take_back(lease[0] - release.reserved_nanos, "lease_id = ?", (release.lease_id,))
            self.connection.execute(
                "UPDATE leases SET granted_nanos = ? WHERE lease_id = ?",
                (release.reserved_nanos, release.lease_id),
            )

    def _take_back(self, nanos: int, where: str, values: tuple[object, ...]) -> int:
        """Return up to so much of what the leases ``where`` hold, the newest first; how much that was."""
        if nanos <= 0:
            return 0
        leases = self.connection.execute(
            "SELECT lease_id, campaign_id, day, held_nanos FROM leases"
            f" WHERE held_nanos > 0 AND {where} ORDER BY lease_id DESC",
            values,
        ).fetchall()
        wanted = nanos
        for lease_id, campaign_id, day, held in leases:
            back = min(held, nanos)
            if not back:
                break
            self.connection.execute(
                "UPDATE leases SET held_nanos = held_nanos - ? WHERE lease_id = ?", (back, lease_id)
            )
            self._book(campaign_id, day, held=-back)
            nanos -= back
        return wanted - nanos

    def _book(self, campaign_id: str, day: str, *, held: int = 0, charged: int = 0, written_off: int = 0) -> None:
        """Add to the sums of a campaign and its day, which begins with the daily cap of now."""
        self.connection.execute(
            "INSERT OR IGNORE INTO days (campaign_id, day, cap_nanos)"
            " SELECT campaign_id, ?2, daily_nanos FROM budgets WHERE campaign_id = ?1",
            (campaign_id, day),
        )
        for table, which in (("budgets", "campaign_id = ?"), ("days", "campaign_id = ? AND day = ?")):
            self.connection.execute(
                f"UPDATE {table} SET held_nanos = held_nanos + ?, charged_nanos = charged_nanos + ?,"
                f" written_off_nanos = written_off_nanos + ? WHERE {which}",
                (held, charged, written_off, campaign_id, day)[: 3 + which.count("?")],
            )

    def _free(self, campaign_id: str, day: str, daily_nanos: int) -> int:
        """What neither charges nor leases have taken, of the campaign and the day (its cap, if it has not begun)."""
        query = "SELECT cap_nanos - charged_nanos - held_nanos FROM"
        (total,) = self.connection.execute(f"{query} budgets WHERE campaign_id = ?", (campaign_id,)).fetchone()
        today = self.connection.execute(
            f"{query} days WHERE campaign_id = ? AND day = ?", (campaign_id, day)
        ).fetchone()
        return int(min(total, today[0] if today else daily_nanos))

    def _entry(self, event_id: str, now_us: int) -> tuple[int, int] | None:
        found: tuple[int, int] | None = self.connection.execute(
            "SELECT charged_nanos, written_off_nanos FROM entries WHERE event_id = ? AND known_until_us > ?",
            (event_id, now_us),
        ).fetchone()
        return found

    def _enter(self, order: Charge | Refund, day: str, charged: int, written_off: int) -> None:
        row = (order.event_id, order.campaign_id, day, order.known_until_us, charged, written_off)
        self.connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)", row)

    def _sum(self, column: str, campaign_id: str, day: date | None) -> int:
        table, extra = ("budgets", "") if day is None else ("days", " AND day = ?")
        values = (campaign_id,) if day is None else (campaign_id, day.isoformat())
        found = self.connection.execute(f"SELECT {column} FROM {table} WHERE campaign_id = ?{extra}", values).fetchone()
        return int(found[0]) if found else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SpendToday:
    """What a campaign was charged on the day that it is in its zone, and in all."""

    campaign_id: str
    charged_nanos: int
    total_charged_nanos: int


def today(connection: sqlite3.Connection, now_us: int) -> list[SpendToday]:
    """All campaigns that were ever charged, the most of today first; for whoever reads the ledger beside its writer."""
    zones = [zone for (zone,) in connection.execute("SELECT DISTINCT zone FROM budgets")]
    query = (
        "SELECT b.campaign_id, ifnull(d.charged_nanos, 0), b.charged_nanos FROM budgets AS b"
        " LEFT JOIN days AS d ON d.campaign_id = b.campaign_id AND d.day = ? WHERE b.zone = ? AND b.charged_nanos > 0"
    )
    rows = [row for zone in zones for row in connection.execute(query, (day_of(now_us, zone).isoformat(), zone))]
    return [
        SpendToday(campaign_id=name, charged_nanos=charged, total_charged_nanos=total)
        for name, charged, total in sorted(rows, key=lambda row: (-row[1], row[0]))
    ]


def day_of(at_us: int, zone: str) -> date:
    """The calendar day of an instant in an IANA zone. InputError for a zone that nobody knows."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)).astimezone(_zone(zone)).date()


def day_ends_us(day: date, zone: str) -> int:
    """The first instant after a day of a zone."""
    midnight = datetime.combine(day + timedelta(days=1), time(), _zone(zone))
    return (midnight - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)  # which keeps those it has read
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InputError(f"time zone {name!r} is unknown; use an IANA name such as Europe/Rome") from error
