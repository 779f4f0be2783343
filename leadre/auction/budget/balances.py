"""Balances of campaigns, their days and leases, and the known events, as one transaction reads and changes them.

A row is read once and written once, however many orders change it. The caller opens the transaction, and calls
`Balances.store` before it commits. A reserved amount is in three rows, of its lease, of the lease's day and
of its campaign, which change together.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from leadre.auction.budget.days import day_of
from leadre.auction.budget.headroom import reservable_nanos
from leadre.auction.budget.messages import Budget, LeaseRequest
from leadre.auction.budget.schema import NO_CAP
from leadre.units import US_PER_S

_STORE_BUDGETS = (
    "UPDATE budgets SET cap_nanos = ?, charged_nanos = ?, held_nanos = ?, written_off_nanos = ? WHERE campaign_id = ?"
)
_STORE_DAYS = (
    "INSERT INTO days (campaign_id, day, budget_nanos, cap_nanos, charged_nanos, held_nanos, written_off_nanos)"
    " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET cap_nanos = excluded.cap_nanos,"
    " charged_nanos = excluded.charged_nanos, held_nanos = excluded.held_nanos,"
    " written_off_nanos = excluded.written_off_nanos"
)
_STORE_LEASES = "UPDATE leases SET granted_nanos = ?, held_nanos = ? WHERE lease_id = ?"
_DELETE_LEASES = "DELETE FROM leases WHERE lease_id = ?"
_STORE_EVENTS = "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)"


@dataclass(slots=True)
class Sums:
    """Nanos of a campaign or of one of its days.

    The cap in force is the budget, or after a cut of the budget what was charged and reserved then: bids that wait for
    their event are paid. It falls with the reservations and never rises but by a new budget.
    """

    budget_nanos: int
    cap_nanos: int
    charged_nanos: int = 0
    reserved_nanos: int = 0
    written_off_nanos: int = 0

    @property
    def payable_nanos(self) -> int:
        """Nanos neither charged nor reserved under the cap in force, for an event."""
        return self.cap_nanos - self.charged_nanos - self.reserved_nanos

    def leasable_nanos(self, event_nanos: int) -> int:
        """Nanos of the budget for new leases, of bids that reserve the expected value of events of this price, or 0."""
        left_nanos = self.budget_nanos - self.charged_nanos
        if event_nanos:
            left_nanos = reservable_nanos(left_nanos, event_nanos)
        return max(0, left_nanos - self.reserved_nanos)

    def add(self, reserved_nanos: int, charged_nanos: int, written_off_nanos: int) -> None:
        """Add to the sums. The written-off sum saturates at `NO_CAP`; the cap bounds the others."""
        self.reserved_nanos += reserved_nanos
        self.charged_nanos += charged_nanos
        self.written_off_nanos = min(self.written_off_nanos + written_off_nanos, NO_CAP)

    def lower_cap(self) -> None:
        """Lower the cap in force to the budget, or to the sums above it."""
        self.cap_nanos = min(self.cap_nanos, max(self.budget_nanos, self.charged_nanos + self.reserved_nanos))


@dataclass(slots=True)
class CampaignBudget:
    """The budget of a campaign. ``daily_nanos``: budget of a new day; ``pending_us``: `Budget.pending_s`."""

    zone: str
    pending_us: int
    event_nanos: int
    daily_nanos: int
    sums: Sums


@dataclass(slots=True)
class OpenLease:
    """A lease, whose charges belong to ``day``, and the nanos that it still reserves.

    ``granted_nanos``: 0 after its end, if no bid reserved from it: then no event can name it, and its row is deleted.
    """

    lease_id: int
    campaign_id: str
    day: str
    granted_nanos: int
    reserved_nanos: int


class KnownEvent(NamedTuple):
    """An event that was posted or voided: a row of ``entries``. ``day``: of its charge; "" without one."""

    event_id: str
    campaign_id: str
    day: str
    known_until_us: int
    charged_nanos: int = 0
    written_off_nanos: int = 0


class Balances:
    """The rows that one transaction has read, with its changes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._budgets: dict[str, CampaignBudget | None] = {}
        self._days: dict[tuple[str, str], Sums] = {}
        self._leases: dict[int, OpenLease | None] = {}
        self._events: dict[str, KnownEvent | None] = {}
        self._changed_days: set[tuple[str, str]] = set()
        self._changed_by_order: set[tuple[str, str]] = set()  # since the last `lower_caps`
        self._changed_leases: set[int] = set()
        self._new_events: dict[str, KnownEvent] = {}

    def read_events(self, event_ids: Iterable[str]) -> None:
        """Read many events at once; `event` reads each other one by itself."""
        unread = dict.fromkeys(event_id for event_id in event_ids if event_id not in self._events)
        places = ", ".join("?" * len(unread))
        rows = self.connection.execute(f"SELECT * FROM entries WHERE event_id IN ({places})", tuple(unread))
        self._events |= unread
        self._events |= {row[0]: KnownEvent(*row) for row in rows}

    def event(self, event_id: str, now_us: int) -> KnownEvent | None:
        """An event that was posted or voided and is still known, else None."""
        if event_id not in self._events:
            self.read_events([event_id])
        event = self._events[event_id]
        return event if event is not None and event.known_until_us > now_us else None

    def add_event(self, event: KnownEvent) -> None:
        """Remember an event."""
        self._events[event.event_id] = self._new_events[event.event_id] = event

    def budget(self, campaign_id: str) -> CampaignBudget | None:
        """The budget of a campaign; None for an unknown one."""
        if campaign_id not in self._budgets:
            row = self.connection.execute(
                "SELECT zone, hold_us, event_nanos, daily_nanos,"
                " budget_nanos, cap_nanos, charged_nanos, held_nanos, written_off_nanos"
                " FROM budgets WHERE campaign_id = ?",
                (campaign_id,),
            ).fetchone()
            self._budgets[campaign_id] = CampaignBudget(row[0], row[1], row[2], row[3], Sums(*row[4:])) if row else None
        return self._budgets[campaign_id]

    def day(self, campaign_id: str, day: str) -> Sums:
        """The sums of a day of a known campaign. A new day has the current daily budget."""
        if (campaign_id, day) not in self._days:
            row = self.connection.execute(
                "SELECT budget_nanos, cap_nanos, charged_nanos, held_nanos, written_off_nanos FROM days"
                " WHERE campaign_id = ? AND day = ?",
                (campaign_id, day),
            ).fetchone()
            daily_nanos = self._known(campaign_id).daily_nanos
            self._days[campaign_id, day] = Sums(*row) if row else Sums(daily_nanos, daily_nanos)
        return self._days[campaign_id, day]

    def lease(self, lease_id: int) -> OpenLease | None:
        """A lease; None for an unknown one, and for number 0."""
        if lease_id not in self._leases:
            row = self.connection.execute(
                "SELECT lease_id, campaign_id, day, granted_nanos, held_nanos FROM leases WHERE lease_id = ?",
                (lease_id,),
            ).fetchone()
            self._leases[lease_id] = OpenLease(*row) if row else None
        return self._leases[lease_id]

    def leasable_nanos(self, campaign_id: str, day: str) -> int:
        """Nanos of a known campaign for new leases: the lesser of campaign and day."""
        event_nanos = self._known(campaign_id).event_nanos
        return min(sums.leasable_nanos(event_nanos) for sums in self._sums(campaign_id, day))

    def payable_nanos(self, campaign_id: str, day: str) -> int:
        """Nanos of a known campaign for an event: the lesser of campaign and day."""
        return min(sums.payable_nanos for sums in self._sums(campaign_id, day))

    def charge(self, campaign_id: str, day: str, nanos: int) -> int:
        """Charge what can be paid of an event, write the rest off, and lower the caps. Returns the nanos charged."""
        charged_nanos = min(nanos, self.payable_nanos(campaign_id, day))
        self._add(campaign_id, day, charged_nanos=charged_nanos, written_off_nanos=nanos - charged_nanos)
        self.lower_caps()
        return charged_nanos

    def free(self, lease: OpenLease, nanos: int) -> int:
        """Free up to ``nanos`` that a lease reserves. Returns the nanos freed.

        An event can be charged to them until `lower_caps`.
        """
        freed_nanos = max(0, min(lease.reserved_nanos, nanos))
        lease.reserved_nanos -= freed_nanos
        self._changed_leases.add(lease.lease_id)
        self._add(lease.campaign_id, lease.day, reserved_nanos=-freed_nanos)
        return freed_nanos

    def lower_caps(self) -> None:
        """End an order: caps in force that are above their budget fall with the reservations."""
        for campaign_id, day in self._changed_by_order:
            for sums in self._sums(campaign_id, day):
                sums.lower_cap()
        self._changed_by_order.clear()

    def add_lease(self, request: LeaseRequest, day: str, nanos: int, returns_at_us: int) -> int:
        """Reserve an amount for a new lease. Returns its ID."""
        self._add(request.campaign_id, day, reserved_nanos=nanos)
        self.store()  # the row of the lease refers to that of its day
        inserted = self.connection.execute(
            "INSERT INTO leases (worker, campaign_id, day, granted_nanos, held_nanos, returns_at_us)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (request.worker, request.campaign_id, day, nanos, nanos, returns_at_us),
        )
        assert inserted.lastrowid is not None
        lease = OpenLease(inserted.lastrowid, request.campaign_id, day, nanos, nanos)
        self._leases[lease.lease_id] = lease
        return lease.lease_id

    def store(self) -> None:
        """Write all changes."""
        days = [(key, self._days[key]) for key in sorted(self._changed_days)]
        budgets = {campaign_id: self._known(campaign_id).sums for (campaign_id, _), _ in days}
        leases = [lease for lease_id in self._changed_leases if (lease := self._leases[lease_id]) is not None]
        write = self.connection.executemany
        write(_STORE_BUDGETS, [(*_amounts(sums), campaign_id) for campaign_id, sums in budgets.items()])
        write(_STORE_DAYS, [(*key, sums.budget_nanos, *_amounts(sums)) for key, sums in days])
        write(_STORE_LEASES, [(lease.granted_nanos, lease.reserved_nanos, lease.lease_id) for lease in leases])
        write(_DELETE_LEASES, [(lease.lease_id,) for lease in leases if not lease.granted_nanos])
        write(_STORE_EVENTS, list(self._new_events.values()))
        self._changed_days.clear()
        self._changed_leases.clear()
        self._new_events.clear()

    def _add(
        self, campaign_id: str, day: str, *, reserved_nanos: int = 0, charged_nanos: int = 0, written_off_nanos: int = 0
    ) -> None:
        """Add to the sums of a known campaign and of a day."""
        for sums in self._sums(campaign_id, day):
            sums.add(reserved_nanos, charged_nanos, written_off_nanos)
        self._changed_days.add((campaign_id, day))
        self._changed_by_order.add((campaign_id, day))

    def _sums(self, campaign_id: str, day: str) -> tuple[Sums, Sums]:
        return self._known(campaign_id).sums, self.day(campaign_id, day)

    def _known(self, campaign_id: str) -> CampaignBudget:
        budget = self.budget(campaign_id)
        assert budget is not None, campaign_id
        return budget


def free_for_event(balances: Balances, campaign_id: str, day: str, nanos: int) -> None:
    """Free reservations of a campaign until ``nanos`` can be charged: of leases of the day first, newest first."""
    query = "SELECT lease_id FROM leases WHERE held_nanos > 0 AND campaign_id = ? ORDER BY day = ? DESC, lease_id DESC"
    if balances.payable_nanos(campaign_id, day) >= nanos:
        return
    for (lease_id,) in balances.connection.execute(query, (campaign_id, day)).fetchall():
        lease = balances.lease(lease_id)
        assert lease is not None
        balances.free(lease, nanos - balances.payable_nanos(campaign_id, day))
        if balances.payable_nanos(campaign_id, day) >= nanos:
            return


def _amounts(sums: Sums) -> tuple[int, int, int, int]:
    return sums.cap_nanos, sums.charged_nanos, sums.reserved_nanos, sums.written_off_nanos


def set_budget(connection: sqlite3.Connection, campaign_id: str, budget: Budget, now_us: int) -> None:
    """Store a campaign's budget and apply it to today and later days. Reservations stay, under a cap that has room."""
    today = day_of(now_us, budget.zone).isoformat()
    total_nanos = budget.total_nanos or NO_CAP
    daily_nanos = budget.daily_nanos or NO_CAP
    connection.execute(
        "INSERT INTO budgets (campaign_id, zone, hold_us, event_nanos, daily_nanos, budget_nanos, cap_nanos)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET zone = excluded.zone, hold_us = excluded.hold_us,"
        " event_nanos = excluded.event_nanos, daily_nanos = excluded.daily_nanos, budget_nanos = excluded.budget_nanos,"
        " cap_nanos = max(excluded.budget_nanos, charged_nanos + held_nanos)",
        (
            campaign_id,
            budget.zone,
            budget.pending_s * US_PER_S,
            budget.event_nanos,
            daily_nanos,
            total_nanos,
            total_nanos,
        ),
    )
    connection.execute(
        "UPDATE days SET budget_nanos = :daily, cap_nanos = max(:daily, charged_nanos + held_nanos)"
        " WHERE campaign_id = :campaign AND day >= :today",
        {"daily": daily_nanos, "campaign": campaign_id, "today": today},
    )


def free_reserved(connection: sqlite3.Connection, nanos: int, where: str, values: tuple[object, ...]) -> int:
    """Free up to ``nanos`` that leases reserve, newest lease first. Returns the nanos freed.

    ``where``: the SQL condition that selects the leases, with ``values`` for its parameters.
    """
    if nanos <= 0:
        return 0
    query = f"SELECT lease_id FROM leases WHERE held_nanos > 0 AND {where} ORDER BY lease_id DESC"
    balances = Balances(connection)
    left_nanos = nanos
    for (lease_id,) in connection.execute(query, values).fetchall():
        lease = balances.lease(lease_id)
        assert lease is not None
        left_nanos -= balances.free(lease, left_nanos)
        if not left_nanos:
            break
    balances.lower_caps()
    balances.store()
    return nanos - left_nanos
