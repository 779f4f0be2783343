"""No order of leases, charges, voids, releases, changes and repetitions overdraws a budget."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import date, datetime
from pathlib import Path

import pytest

from leadre import database
from leadre.auction.budget import days, headroom, schema, sums, transfers
from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import (
    Budget,
    Charge,
    ChargeResult,
    Lease,
    LeaseRequest,
    Release,
    Void,
)
from leadre.errors import InputError
from leadre.units import US_PER_HOUR, US_PER_S


def us(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp()) * US_PER_S


NOON = us("2026-03-10T12:00:00+00:00")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as ledger:
        yield ledger
        assert ledger.verify() == []


def request_lease(ledger: Ledger, max_nanos: int, now_us: int = NOON, min_nanos: int = 1) -> Lease:
    (lease,) = ledger.apply(
        [LeaseRequest(worker="w", campaign_id="c", max_nanos=max_nanos, min_nanos=min_nanos)], now_us
    )
    assert isinstance(lease, Lease)
    return lease


def charge(ledger: Ledger, event_id: str, nanos: int, lease_id: int = 0, at_us: int = NOON) -> ChargeResult:
    order = Charge(event_id=event_id, campaign_id="c", nanos=nanos, at_us=at_us, lease_id=lease_id)
    (charged,) = ledger.apply([order], at_us)
    assert isinstance(charged, ChargeResult)
    return charged


def test_charges_come_from_the_lease_and_the_rest_of_it_returns(ledger: Ledger) -> None:
    ledger.set_budget("c", Budget(total_nanos=1000, pending_s=60), NOON)
    lease = request_lease(ledger, 100)
    assert (lease.nanos, lease.expires_at_us) == (100, NOON + 10 * US_PER_S)
    assert (ledger.reserved("c"), ledger.left("c", NOON)) == (100, 900)
    assert charge(ledger, "e1", 30, lease.lease_id) == ChargeResult(nanos=30, written_off_nanos=0, is_new=True)
    assert charge(ledger, "e1", 30, lease.lease_id) == ChargeResult(nanos=30, written_off_nanos=0, is_new=False)
    for _ in range(2):  # a repeated void counts once
        ledger.apply([Void(event_id="e2", campaign_id="c", lease_id=lease.lease_id, nanos=20)], NOON)
        assert (ledger.spent("c"), ledger.reserved("c")) == (30, 50)
    for _ in range(2):  # no bid reserved the other 40
        ledger.apply([Release(lease_id=lease.lease_id, reserved_nanos=60)], NOON)
        assert (ledger.spent("c"), ledger.reserved("c"), ledger.left("c", NOON)) == (30, 10, 960)
    assert ledger.expire(NOON + 70 * US_PER_S - 1) == 0  # the bid at the lease's end may still be charged
    assert ledger.expire(NOON + 70 * US_PER_S) == 10
    assert (ledger.spent("c"), ledger.reserved("c"), ledger.left("c", NOON)) == (30, 0, 970)


def test_charge_above_the_free_budget_is_written_off(ledger: Ledger) -> None:
    ledger.set_budget("c", Budget(total_nanos=100), NOON)
    assert charge(ledger, "e1", 80) == ChargeResult(nanos=80, written_off_nanos=0, is_new=True)
    lease = request_lease(ledger, 15)
    assert lease.nanos == 20 // transfers.MAX_SHARE
    assert charge(ledger, "e2", 30) == ChargeResult(
        nanos=18, written_off_nanos=12, is_new=True
    )  # the 2 of the lease stay reserved
    assert charge(ledger, "e3", 9, lease.lease_id) == ChargeResult(nanos=2, written_off_nanos=7, is_new=True)
    assert (ledger.spent("c"), ledger.written_off("c"), ledger.left("c", NOON)) == (100, 19, 0)
    assert ledger.apply([LeaseRequest(worker="w", campaign_id="c", max_nanos=1)], NOON) == [None]


@pytest.mark.parametrize("budget", [Budget(), Budget(total_nanos=1), Budget(daily_nanos=10**18)])
def test_sums_saturate_instead_of_overflowing(ledger: Ledger, budget: Budget) -> None:
    """An overflow fails the commit of every later batch, also for events of other campaigns."""
    ledger.set_budget("c", budget, NOON)
    for number in range(40):
        at_us = NOON + number % 3 * 24 * US_PER_HOUR
        charge = Charge(event_id=f"{number}", campaign_id="c", nanos=10**18, at_us=at_us)
        assert ledger.apply([charge], at_us)
    owed_nanos = ledger.spent("c") + ledger.written_off("c")
    assert schema.NO_CAP <= owed_nanos <= 2 * schema.NO_CAP
    assert ledger.verify() == []


def test_leases_shrink_with_the_free_budget_down_to_the_minimum(ledger: Ledger) -> None:
    ledger.set_budget("c", Budget(total_nanos=800), NOON)
    assert [request_lease(ledger, 500, min_nanos=50).nanos for _ in range(13)] == [100, 87, 76, 67, 58, 51, *[50] * 7]
    assert ledger.apply([LeaseRequest(worker="w", campaign_id="c", max_nanos=500, min_nanos=50)], NOON) == [None]
    assert ledger.left("c", NOON) == 11


def test_unknown_campaign_has_no_budget(ledger: Ledger) -> None:
    assert ledger.apply([LeaseRequest(worker="w", campaign_id="c", max_nanos=1)], NOON) == [None]
    assert charge(ledger, "e", 5) == ChargeResult(nanos=0, written_off_nanos=5, is_new=True)
    assert (ledger.left("c", NOON), ledger.spent("c")) == (0, 0)


def test_budget_without_caps_is_charged_in_full(ledger: Ledger) -> None:
    ledger.set_budget("c", Budget(), NOON)
    assert request_lease(ledger, 10**15).nanos == 10**15
    assert charge(ledger, "e", 10**15).nanos == 10**15


def test_daily_budget_follows_the_days_of_the_zone(ledger: Ledger) -> None:
    """Rome's 29 March 2026 has 23 hours: 23:00 UTC to 22:00 UTC."""
    rome = "Europe/Rome"
    starts = us("2026-03-28T23:00:00+00:00")
    ends = us("2026-03-29T22:00:00+00:00")
    ledger.set_budget("c", Budget(daily_nanos=100, zone=rome), starts)
    last = request_lease(ledger, 10, starts - 1)
    assert last.expires_at_us == starts, "the lease ends with its day"
    charge(ledger, "late", 10, last.lease_id, at_us=starts + US_PER_HOUR)  # belongs to the day of its bid
    charge(ledger, "e1", 70, at_us=starts)
    charge(ledger, "e2", 70, at_us=ends - 1)
    charge(ledger, "e3", 70, at_us=ends)
    sums_of_days = {
        day: (ledger.spent("c", date(2026, 3, day)), ledger.written_off("c", date(2026, 3, day)))
        for day in (28, 29, 30)
    }
    assert sums_of_days == {28: (10, 0), 29: (100, 40), 30: (70, 0)}
    assert ledger.left("c", ends - 1) == 0 and ledger.left("c", ends) == 30


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("UTC", date(2026, 3, 29), 24),
        ("Europe/Rome", date(2026, 3, 29), 23),
        ("Europe/Rome", date(2026, 10, 25), 25),
        ("America/New_York", date(2026, 11, 1), 25),
        ("Africa/Cairo", date(2026, 4, 24), 23),  # midnight does not exist on this day
        ("Australia/Lord_Howe", date(2026, 4, 5), 24.5),
    ],
)
def test_day_has_the_hours_of_its_zone(zone: str, day: date, hours: float) -> None:
    ends_us = days.day_ends_us(day, zone)
    starts_us = ends_us - round(hours * US_PER_HOUR)
    assert [days.day_of(at, zone).day for at in (starts_us - 1, starts_us, ends_us - 1)] == [
        day.day - 1 or 31,
        day.day,
        day.day,
    ]
    assert days.day_of(ends_us, zone) > day


def test_cut_budget_pays_the_bids_that_wait_for_their_event(ledger: Ledger) -> None:
    """Else an account gets impressions for nothing: bid, cut, shown."""
    ledger.set_budget("c", Budget(total_nanos=800, daily_nanos=400), NOON)
    first = request_lease(ledger, 40)
    second = request_lease(ledger, 40)
    charge(ledger, "e1", 30, first.lease_id)
    for cut in (Budget(total_nanos=800, daily_nanos=1), Budget(total_nanos=1, daily_nanos=400), Budget(total_nanos=1)):
        ledger.set_budget("c", cut, NOON)
        assert (ledger.reserved("c"), ledger.left("c", NOON)) == (50, 0)
        assert ledger.apply([LeaseRequest(worker="w", campaign_id="c", max_nanos=1)], NOON) == [None]
    assert charge(ledger, "e2", 40, second.lease_id) == ChargeResult(nanos=40, written_off_nanos=0, is_new=True)
    assert charge(ledger, "e3", 5).written_off_nanos == 5, "an event without a lease takes nothing from the bids of one"
    ledger.apply([Void(event_id="v", campaign_id="c", lease_id=first.lease_id, nanos=4)], NOON)
    assert charge(ledger, "e4", 10, first.lease_id) == ChargeResult(nanos=6, written_off_nanos=4, is_new=True), (
        "what a lost bid returns is above the budget"
    )
    assert (ledger.spent("c"), ledger.reserved("c"), caps(ledger)) == (76, 0, [76, schema.NO_CAP])
    ledger.set_budget("c", Budget(total_nanos=90, daily_nanos=80), NOON)
    assert (ledger.left("c", NOON), caps(ledger)) == (4, [90, 80])
    with pytest.raises(InputError, match="daily_nanos = -1; 0"):
        ledger.set_budget("c", Budget(daily_nanos=-1), NOON)
    with pytest.raises(InputError, match="'Mars/Base' is unknown; use an IANA name"):
        ledger.set_budget("c", Budget(zone="Mars/Base"), NOON)


def caps(ledger: Ledger) -> list[int]:
    """The caps in force: of the campaign and of its one day."""
    query = "SELECT cap_nanos FROM budgets UNION ALL SELECT cap_nanos FROM days"
    return [cap_nanos for (cap_nanos,) in ledger.connection.execute(query)]


def test_cap_in_force_falls_as_reservations_return(ledger: Ledger) -> None:
    ledger.set_budget("c", Budget(total_nanos=800, pending_s=60), NOON)
    lease = request_lease(ledger, 100)
    charge(ledger, "e", 30, lease.lease_id)
    ledger.set_budget("c", Budget(total_nanos=10, pending_s=60), NOON)
    assert caps(ledger)[0] == 100
    ledger.apply([Release(lease_id=lease.lease_id, reserved_nanos=80)], NOON)
    assert caps(ledger)[0] == 80
    ledger.expire(NOON + 70 * US_PER_S)
    assert caps(ledger)[0] == 30
    assert charge(ledger, "late", 1).written_off_nanos == 1


def test_click_takes_the_expected_value_of_other_bids(ledger: Ledger) -> None:
    """A click of 100 whose bid reserved 2; bids wait for a whole click that is left."""
    ledger.set_budget("c", Budget(total_nanos=250, event_nanos=100), NOON)
    leases = [request_lease(ledger, 9, min_nanos=2) for _ in range(3)]
    assert ledger.reserved("c") == sum(lease.nanos for lease in leases)
    for number, lease in enumerate(leases):
        charged = charge(ledger, f"click {number}", 100, lease.lease_id)
        assert charged.nanos == (100, 100, 50)[number]
    assert (ledger.spent("c"), ledger.reserved("c"), ledger.written_off("c")) == (250, 0, 50)
    ledger.set_budget("c", Budget(total_nanos=349, event_nanos=100), NOON)
    assert ledger.left("c", NOON) == 0, "less than a click is left"
    ledger.set_budget("c", Budget(total_nanos=350, event_nanos=100), NOON)
    assert request_lease(ledger, 90, min_nanos=90).nanos == 90, "one bid owes one click at most"
    assert ledger.apply([LeaseRequest(worker="w", campaign_id="c", max_nanos=1)], NOON) == [None]


@pytest.mark.parametrize("events", [1, 2, 5, 20, 100, 500])
def test_pending_bids_seldom_owe_more_events_than_are_left(events: int) -> None:
    """Against the sum of the Poisson distribution itself."""
    mean = headroom.reservable_nanos(events * 1_000 + 999, 1_000) / 1_000
    exceeding = 1 - sum(math.exp(-mean + k * math.log(mean) - math.lgamma(k + 1)) for k in range(events + 1))
    assert 0.04 < exceeding < 0.06
    assert headroom.reservable_nanos(999, 1_000) == 0


def test_failed_order_undoes_its_batch_and_the_schema_refuses_an_overdraft(ledger: Ledger) -> None:
    ledger.set_budget("c", Budget(total_nanos=100), NOON)
    good = Charge(event_id="e", campaign_id="c", nanos=60, at_us=NOON)
    with pytest.raises(AssertionError):
        ledger.apply([good, Charge(event_id="f", campaign_id="c", nanos=-1, at_us=NOON)], NOON)
    assert ledger.spent("c") == 0
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"), database.transaction(ledger.connection):
        ledger.connection.execute("UPDATE budgets SET charged_nanos = 101")


def test_forget_keeps_the_sums(ledger: Ledger) -> None:
    ledger.set_budget("c", Budget(total_nanos=100), NOON)
    lease = request_lease(ledger, 5)
    order = Charge(event_id="e", campaign_id="c", nanos=5, at_us=NOON, lease_id=lease.lease_id, known_until_us=NOON + 9)
    ledger.apply([order], NOON)
    ledger.forget(NOON + 8)
    assert ledger.knows("e", NOON + 8)
    for _ in range(2):  # past its time the event is new again, deleted or not
        assert not ledger.knows("e", NOON + 9)
        ledger.forget(NOON + 9)
    ledger.forget(NOON + 31 * 24 * US_PER_HOUR)
    assert ledger.connection.execute("SELECT count(*) FROM leases").fetchone() == (0,)
    assert ledger.spent("c") == 5 and charge(ledger, "e", 5).is_new and ledger.spent("c") == 10


def test_forget_deletes_a_limited_number_of_events_in_a_call(ledger: Ledger) -> None:
    ledger.set_budget("c", Budget(), NOON)
    known = [Charge(event_id=f"e{n}", campaign_id="c", nanos=0, at_us=NOON, known_until_us=NOON + n) for n in range(10)]
    ledger.apply(known, NOON)
    assert [ledger.forget(NOON + 6, limit=3) for _ in range(4)] == [3, 3, 1, 0]
    assert [ledger.knows(order.event_id, NOON - 1) for order in known] == [False] * 7 + [True] * 3


def test_verify_finds_wrong_sums(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.set_budget("c", Budget(total_nanos=100, daily_nanos=50), NOON)
        charge(ledger, "e", 20, request_lease(ledger, 6).lease_id)
        for change, fault in (
            ("UPDATE budgets SET charged_nanos = 1000", "more than its budget"),
            ("UPDATE days SET charged_nanos = 1000", "more than its day"),
            ("UPDATE days SET written_off_nanos = 3", "days do not sum to the campaign"),
            ("UPDATE leases SET held_nanos = 1", "leases do not sum to the day"),
            ("UPDATE entries SET charged_nanos = 21", "charges exceed the day"),
        ):
            ledger.connection.execute("PRAGMA ignore_check_constraints = ON")
            ledger.connection.execute("BEGIN")
            ledger.connection.execute(change)
            assert any(line.endswith(fault) for line in ledger.verify()), fault
            ledger.connection.execute("ROLLBACK")
        assert ledger.verify() == []


def test_read_only_connection_sees_the_last_commit(ledger: Ledger, tmp_path: Path) -> None:
    ledger.set_budget("c", Budget(total_nanos=100), NOON)
    charge(ledger, "e", 7)
    with closing(database.connect(tmp_path / "ledger.db", schema.MIGRATIONS, read_only=True)) as reader:
        assert reader.execute("SELECT charged_nanos FROM budgets").fetchall() == [(7,)]


def test_spend_today_uses_the_day_of_each_zone(ledger: Ledger, tmp_path: Path) -> None:
    """At 20:00 UTC the next day has begun in Tokyo, without a charge so far."""
    evening = us("2026-03-10T20:00:00+00:00")
    for campaign_id, zone in (("utc", "UTC"), ("tokyo", "Asia/Tokyo"), ("more", "UTC"), ("none", "UTC")):
        ledger.set_budget(campaign_id, Budget(zone=zone), NOON)
    for campaign_id, nanos, at_us in (
        ("utc", 5, NOON),
        ("utc", 2, NOON - 24 * US_PER_HOUR),
        ("tokyo", 9, NOON),
        ("more", 6, NOON),
    ):
        name = f"{campaign_id}-{at_us}"
        ledger.apply([Charge(event_id=name, campaign_id=campaign_id, nanos=nanos, at_us=at_us, lease_id=0)], NOON)
    with closing(database.connect(tmp_path / "ledger.db", schema.MIGRATIONS, read_only=True)) as reader:
        spends = sums.spend_today(reader, evening)
    assert [(spend.campaign_id, spend.charged_nanos, spend.total_charged_nanos) for spend in spends] == [
        ("more", 6, 6),
        ("utc", 5, 7),
        ("tokyo", 0, 9),
    ]
