"""Budgets that cannot be overdrawn: ``charged + reserved <= cap`` for every campaign and every day, in each commit.

The cap in force is the budget of the account. After a cut it is above it by what live bids have reserved, and falls as
their reservations are charged or return.

A worker does not call the ledger for each bid. It *leases* a part of a budget (`LeaseRequest` -> `Lease`) and reserves
from the lease in its own memory (`leadre.auction.budget.leases`); no other worker can spend that part. An event *posts*
a `Charge` against the lease; a lost bid *voids* its reservation (`Void`); the worker *releases* the part that it never
bid (`Release`). `Ledger.expire` ends the rest when the last event of the lease's bids can no longer come, whether the
worker is alive or not. A charge above its lease and above the free budget is written off. Two CHECK constraints of the
schema enforce the guarantee itself: an error in this code fails a commit and costs no advertiser money.

A day is a calendar day in the campaign's time zone, so it may have 23 or 25 hours. A lease ends with its day, and its
charges belong to that day, however late they come. The ledger stores no user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Self

from leadre import database
from leadre.auction.budget import sums, transfers
from leadre.auction.budget.balances import Balances, free_reserved, set_budget
from leadre.auction.budget.messages import Budget, Charge, LeaseRequest, LedgerOrder, LedgerResult, Void
from leadre.auction.budget.schema import MIGRATIONS, NO_CAP
from leadre.errors import InputError
from leadre.units import US_PER_DAY, US_PER_S

LEASE_S = 10.0  # so long a worker without bids holds back what it leased for many
STANDBY_S = 60.0  # so long it holds back a few bids; renewals of 10,000 campaigns cost the writer little
KEEP_LEASE_US = 30 * US_PER_DAY  # after its end: a late charge still finds the day of its bid


class Ledger:
    """The ledger's only writer. A method returns after its commit is on the disk; `apply` commits once for a batch."""

    def __init__(self, path: Path, *, lease_s: float = LEASE_S, standby_s: float = STANDBY_S) -> None:
        self.connection = database.connect(path, MIGRATIONS)
        self._lease_us = round(lease_s * US_PER_S)
        self._standby_us = round(standby_s * US_PER_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.connection.close()

    def set_budget(self, campaign_id: str, budget: Budget, now_us: int) -> None:
        """Store or change a campaign's budget, and that of today; the budgets of past days do not change.

        A cut ends new leases at once. It takes nothing from bids that wait for their event: the cap in force is the
        highest of the budget and of what is charged and reserved, and falls as reservations return. InputError for an
        unknown zone or an amount out of range.
        """
        self.set_budgets({campaign_id: budget}, now_us)

    def set_budgets(self, budgets: Mapping[str, Budget], now_us: int) -> None:
        """`set_budget` for many campaigns in one commit. A campaign without a budget is never charged."""
        for campaign_id, budget in budgets.items():
            for name in ("total_nanos", "daily_nanos", "pending_s", "event_nanos"):
                if not 0 <= getattr(budget, name) < NO_CAP:
                    raise InputError(f"campaign {campaign_id}: {name} = {getattr(budget, name)}; 0 (no cap) or more")
        with database.transaction(self.connection):
            for campaign_id, budget in budgets.items():
                set_budget(self.connection, campaign_id, budget, now_us)

    def apply(self, orders: Sequence[LedgerOrder], now_us: int) -> list[LedgerResult]:
        """Execute a batch in order, with one commit. If an order raises, none of the batch is stored."""
        with database.transaction(self.connection):
            balances = Balances(self.connection)
            results = [self._execute(balances, order, now_us) for order in orders]
            balances.store()
            return results

    def _execute(self, balances: Balances, order: LedgerOrder, now_us: int) -> LedgerResult:
        """Execute one order. ``now_us`` dates a lease; for an event, keys known beyond it are repetitions."""
        if isinstance(order, LeaseRequest):
            lease_us = self._standby_us if order.is_standby else self._lease_us
            return transfers.lease(balances, order, lease_us, now_us)
        if isinstance(order, Charge):
            return transfers.post(balances, order, now_us)
        if isinstance(order, Void):
            return transfers.void(balances, order, now_us)
        transfers.release(balances, order)
        return None

    def knows(self, event_id: str, now_us: int) -> bool:
        """Whether an event was posted or voided and is still known."""
        return Balances(self.connection).event(event_id, now_us) is not None

    @property
    def log_number(self) -> int:
        """Number of the last record of the event log in the sums. Set it in the transaction that posts the record."""
        (number,) = self.connection.execute("SELECT number FROM log").fetchone()
        return int(number)

    @log_number.setter
    def log_number(self, number: int) -> None:
        self.connection.execute("UPDATE log SET number = ?", (number,))

    def expire(self, now_us: int, after_us: int = 0) -> int:
        """Return the reservations of leases whose last charge could have come by now; the nanos returned.

        Leases whose last charge could have come by ``after_us`` stay.
        """
        with database.transaction(self.connection):
            condition = "returns_at_us > ? AND returns_at_us <= ?"
            return free_reserved(self.connection, NO_CAP, condition, (after_us, now_us))

    def forget(self, now_us: int, limit: int = 1_000) -> int:
        """Delete events past their ``known_until_us``, and leases that ended long ago; the sums stay.

        At most ``limit`` of each in a call, so that no call delays the others; the number of deleted rows.
        """
        with database.transaction(self.connection):
            return sum(
                self.connection.execute(
                    f"DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} WHERE {condition} LIMIT ?)",
                    (before_us, limit),
                ).rowcount
                for table, key, condition, before_us in (
                    ("entries", "event_id", "known_until_us <= ?", now_us),
                    ("leases", "lease_id", "returns_at_us <= ? AND held_nanos = 0", now_us - KEEP_LEASE_US),
                )
            )

    def spent(self, campaign_id: str, day: date | None = None) -> int:
        """Nanos charged, in all or on a day of the campaign's zone."""
        return sums.sum_of(self.connection, "charged_nanos", campaign_id, day)

    def reserved(self, campaign_id: str, day: date | None = None) -> int:
        """Nanos reserved by leases, whether a bid uses them or not."""
        return sums.sum_of(self.connection, "held_nanos", campaign_id, day)

    def written_off(self, campaign_id: str, day: date | None = None) -> int:
        """Nanos owed for events that came when no budget was left; no advertiser pays them."""
        return sums.sum_of(self.connection, "written_off_nanos", campaign_id, day)

    def left(self, campaign_id: str, now_us: int) -> int:
        """Nanos that can be leased now; `NO_CAP` or near it if nothing is capped, 0 for an unknown campaign."""
        return sums.left_nanos(self.connection, campaign_id, now_us)

    def verify(self) -> list[str]:
        """One line for each sum that is wrong, none for a correct ledger. Reads every row."""
        return sums.audit(self.connection)
