"""No order of leases, charges, voids, releases, cuts, raises and repetitions charges above the cap in force."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Budget, Charge, ChargeResult, Lease, LeaseRequest, Release, Void
from leadre.units import US_PER_S

BEGIN_US = 1_792_881_000 * US_PER_S  # 2026-10-24T22:30Z: in Rome, a day of 25 hours has just begun
EVENT_NANOS = {"impressions": 0, "clicks": 40}
CAMPAIGNS = st.sampled_from(list(EVENT_NANOS))
NANOS = st.integers(0, 60)
WHICH = st.integers(0, 9)  # of the newest leases; one that does not exist is no lease


class LedgerMachine(RuleBasedStateMachine):
    """Random orders for a campaign of impressions and one of clicks, against sums kept by hand."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.ledger = Ledger(self.folder / "ledger.db", lease_s=5)
        self.now_us = BEGIN_US
        self.budget_nanos = dict.fromkeys(EVENT_NANOS, 0)
        self.ceiling_nanos = dict.fromkeys(EVENT_NANOS, 0)  # the cap in force when the budget was last set
        self.charged_nanos = dict.fromkeys(EVENT_NANOS, 0)
        self.written_off_nanos = dict.fromkeys(EVENT_NANOS, 0)
        self.known: set[str] = set()
        self.leases: list[Lease] = []

    def used_nanos(self, campaign: str) -> int:
        return self.ledger.spent(campaign) + self.ledger.reserved(campaign)

    def lease_of(self, which: int) -> Lease | None:
        return self.leases[-1 - which] if which < len(self.leases) else None

    def reserved_by(self, lease: Lease) -> int:
        query = "SELECT held_nanos FROM leases WHERE lease_id = ?"
        (nanos,) = self.ledger.connection.execute(query, (lease.lease_id,)).fetchone()
        return int(nanos)

    @rule(campaign=CAMPAIGNS, total=st.integers(1, 300), daily=NANOS)
    def set_budget(self, campaign: str, total: int, daily: int) -> None:
        """A raise, or a cut down to one nano."""
        before = self.used_nanos(campaign)
        budget = Budget(
            total_nanos=total,
            daily_nanos=daily,
            zone="Europe/Rome",
            pending_s=20,
            event_nanos=EVENT_NANOS[campaign],
        )
        self.ledger.set_budget(campaign, budget, self.now_us)
        assert self.used_nanos(campaign) == before, "no change of a budget takes what bids reserve"
        self.budget_nanos[campaign] = total
        self.ceiling_nanos[campaign] = max(total, before)

    @rule(campaign=CAMPAIGNS, max_nanos=st.integers(1, 100), data=st.data())
    def lease(self, campaign: str, max_nanos: int, data: st.DataObject) -> None:
        min_nanos = data.draw(st.integers(1, max_nanos))
        left = self.ledger.left(campaign, self.now_us)
        is_only_bid = not self.ledger.reserved(campaign) and left and min_nanos <= EVENT_NANOS[campaign]
        order = LeaseRequest(worker="w", campaign_id=campaign, max_nanos=max_nanos, min_nanos=min_nanos)
        (lease,) = self.ledger.apply([order], self.now_us)
        if lease is None:
            assert left < min_nanos
        else:
            assert isinstance(lease, Lease)
            assert min_nanos <= lease.nanos <= min(max_nanos, max(left, min_nanos if is_only_bid else 0))
            assert self.used_nanos(campaign) <= self.budget_nanos[campaign], "a cut ends new leases"
            self.leases.append(lease)

    @rule(
        campaign=CAMPAIGNS, event=st.integers(0, 60), nanos=NANOS, reserved=NANOS, which=WHICH, ago=st.integers(0, 60)
    )
    def charge(self, campaign: str, event: int, nanos: int, reserved: int, which: int, ago: int) -> None:
        """An event in time, late, repeated, without its lease, or with the lease of another campaign."""
        lease = self.lease_of(which)
        held = self.reserved_by(lease) if lease and lease.campaign_id == campaign else 0
        order = Charge(
            event_id=f"e{event}",
            campaign_id=campaign,
            nanos=nanos,
            at_us=self.now_us - ago * US_PER_S,
            lease_id=lease.lease_id if lease else 0,
            reserved_nanos=reserved,
        )
        (charged,) = self.ledger.apply([order], self.now_us)
        assert isinstance(charged, ChargeResult)
        assert charged.is_new == (order.event_id not in self.known)
        if charged.is_new:
            assert charged.nanos + charged.written_off_nanos == nanos
            assert charged.nanos >= min(nanos, held), "a bid's own reservation pays it, whatever the budget is now"
            self.known.add(order.event_id)
            self.charged_nanos[campaign] += charged.nanos
            self.written_off_nanos[campaign] += charged.written_off_nanos

    @rule(event=st.integers(0, 9), nanos=NANOS, which=WHICH)
    def void(self, event: int, nanos: int, which: int) -> None:
        if (lease := self.lease_of(which)) is not None:
            order = Void(event_id=f"v{event}", campaign_id=lease.campaign_id, lease_id=lease.lease_id, nanos=nanos)
            self.ledger.apply([order], self.now_us)

    @rule(which=WHICH, reserved=NANOS)
    def release(self, which: int, reserved: int) -> None:
        if (lease := self.lease_of(which)) is not None:
            order = Release(lease_id=lease.lease_id, reserved_nanos=reserved)
            self.ledger.apply([order, order], self.now_us)

    @rule(seconds=st.sampled_from([1, 10, 3600, 90_000]), expire=st.booleans())
    def wait(self, seconds: int, expire: bool) -> None:
        self.now_us += seconds * US_PER_S
        if expire:
            self.ledger.expire(self.now_us)

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.folder / "ledger.db", lease_s=5)

    @invariant()
    def every_nano_is_accounted_for_under_the_cap_in_force(self) -> None:
        assert self.ledger.verify() == []
        rows = self.ledger.connection.execute("SELECT campaign_id, cap_nanos FROM budgets").fetchall()
        assert dict(rows) == {name: max(self.budget_nanos[name], self.used_nanos(name)) for name, _ in rows}
        for campaign, ceiling_nanos in self.ceiling_nanos.items():
            assert self.ledger.spent(campaign) == self.charged_nanos[campaign] <= ceiling_nanos
            if ceiling_nanos:  # a campaign without a budget is unknown: its events leave no sum
                assert self.ledger.written_off(campaign) <= self.written_off_nanos[campaign]

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.expire(self.now_us + 30 * US_PER_S)
            assert [self.ledger.reserved(campaign) for campaign in EVENT_NANOS] == [0, 0]
            self.ledger.close()
            shutil.rmtree(self.folder)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)
