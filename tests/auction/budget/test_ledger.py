"""No budget is overdrawn, whatever is asked, charged, refunded, released, forgotten, changed or repeated."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import date, datetime
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from leadre import database
from leadre.auction.budget import ledger
from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Budget, Charge, ChargeResult, Lease, LeaseRequest, Refund, Release
from leadre.errors import InputError

SECOND = 1_000_000
HOUR = 3600 * SECOND


def us(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp()) * SECOND


NOON = us("2026-03-10T12:00:00+00:00")


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as made:
        yield made
        assert made.verify() == []


def ask(books: Ledger, want: int, now_us: int = NOON, least: int = 1) -> Lease:
    (lease,) = books.apply([LeaseRequest(worker="w", campaign_id="c", want_nanos=want, least_nanos=least)], now_us)
    assert isinstance(lease, Lease)
    return lease


def charge(books: Ledger, event_id: str, nanos: int, lease_id: int = 0, at_us: int = NOON) -> ChargeResult:
    order = Charge(event_id=event_id, campaign_id="c", nanos=nanos, at_us=at_us, lease_id=lease_id)
    (charged,) = books.apply([order], at_us)
    assert isinstance(charged, ChargeResult)
    return charged


def test_a_lease_is_charged_and_what_is_over_comes_back(books: Ledger) -> None:
    books.set_budget("c", Budget(total_nanos=1000, hold_s=60), NOON)
    lease = ask(books, 100)
    assert (lease.nanos, lease.expires_at_us) == (100, NOON + 10 * SECOND)
    assert (books.held("c"), books.left("c", NOON)) == (100, 900)
    assert charge(books, "e1", 30, lease.lease_id) == ChargeResult(nanos=30, written_off_nanos=0, is_new=True)
    assert charge(books, "e1", 30, lease.lease_id) == ChargeResult(nanos=30, written_off_nanos=0, is_new=False)
    for _ in range(2):  # said twice, counted once
        books.apply([Refund(event_id="e2", campaign_id="c", lease_id=lease.lease_id, nanos=20)], NOON)
        assert (books.spent("c"), books.held("c")) == (30, 50)
    for _ in range(2):  # 40 were never bid
        books.apply([Release(lease_id=lease.lease_id, reserved_nanos=60)], NOON)
        assert (books.spent("c"), books.held("c"), books.left("c", NOON)) == (30, 10, 960)
    assert books.expire(NOON + 70 * SECOND - 1) == 0  # the bid at the lease's end may still be charged
    assert books.expire(NOON + 70 * SECOND) == 10
    assert (books.spent("c"), books.held("c"), books.left("c", NOON)) == (30, 0, 970)


def test_what_finds_no_budget_is_written_off(books: Ledger) -> None:
    books.set_budget("c", Budget(total_nanos=100), NOON)
    assert charge(books, "e1", 80) == ChargeResult(nanos=80, written_off_nanos=0, is_new=True)
    lease = ask(books, 15)
    assert lease.nanos == 20 // ledger.SHARE
    assert charge(books, "e2", 30) == ChargeResult(nanos=18, written_off_nanos=12, is_new=True)  # not the lease's two
    assert charge(books, "e3", 9, lease.lease_id) == ChargeResult(nanos=2, written_off_nanos=7, is_new=True)
    assert (books.spent("c"), books.written_off("c"), books.left("c", NOON)) == (100, 19, 0)
    assert books.apply([LeaseRequest(worker="w", campaign_id="c", want_nanos=1)], NOON) == [None]


def test_the_end_of_a_budget_is_leased_in_small_parts_but_never_less_than_a_bid(books: Ledger) -> None:
    books.set_budget("c", Budget(total_nanos=800), NOON)
    assert [ask(books, 500, least=50).nanos for _ in range(13)] == [100, 87, 76, 67, 58, 51, *[50] * 7]
    assert books.apply([LeaseRequest(worker="w", campaign_id="c", want_nanos=500, least_nanos=50)], NOON) == [None]
    assert books.left("c", NOON) == 11


def test_an_unknown_campaign_has_no_budget(books: Ledger) -> None:
    assert books.apply([LeaseRequest(worker="w", campaign_id="c", want_nanos=1)], NOON) == [None]
    assert charge(books, "e", 5) == ChargeResult(nanos=0, written_off_nanos=5, is_new=True)
    assert (books.left("c", NOON), books.spent("c")) == (0, 0)


def test_without_caps_everything_is_charged(books: Ledger) -> None:
    books.set_budget("c", Budget(), NOON)
    assert ask(books, 10**15).nanos == 10**15
    assert charge(books, "e", 10**15).nanos == 10**15


def test_a_day_is_one_of_the_account(books: Ledger) -> None:
    """Rome's 29 March 2026 has 23 hours: 23:00 UTC to 22:00 UTC."""
    rome = "Europe/Rome"
    starts, ends = us("2026-03-28T23:00:00+00:00"), us("2026-03-29T22:00:00+00:00")
    books.set_budget("c", Budget(daily_nanos=100, zone=rome), starts)
    last = ask(books, 10, starts - 1)
    assert last.expires_at_us == starts, "a lease ends with its day"
    charge(books, "late", 10, last.lease_id, at_us=starts + HOUR)  # belongs to the day of its bid
    charge(books, "e1", 70, at_us=starts)
    charge(books, "e2", 70, at_us=ends - 1)
    charge(books, "e3", 70, at_us=ends)
    found = {
        day: (books.spent("c", date(2026, 3, day)), books.written_off("c", date(2026, 3, day))) for day in (28, 29, 30)
    }
    assert found == {28: (10, 0), 29: (100, 40), 30: (70, 0)}
    assert books.left("c", ends - 1) == 0 and books.left("c", ends) == 30


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
def test_days_have_as_many_hours_as_their_zone_says(zone: str, day: date, hours: float) -> None:
    ends_us = ledger.day_ends_us(day, zone)
    starts_us = ends_us - round(hours * HOUR)
    assert [ledger.day_of(at, zone).day for at in (starts_us - 1, starts_us, ends_us - 1)] == [
        day.day - 1 or 31,
        day.day,
        day.day,
    ]
    assert ledger.day_of(ends_us, zone) > day


def test_a_budget_may_change(books: Ledger) -> None:
    books.set_budget("c", Budget(total_nanos=800, daily_nanos=400), NOON)
    first, second = ask(books, 40), ask(books, 40)
    charge(books, "e1", 30, first.lease_id)
    books.set_budget("c", Budget(total_nanos=800, daily_nanos=60), NOON)  # 80 are out: the newest lease gives 20
    assert (books.held("c"), books.left("c", NOON)) == (30, 0)
    assert charge(books, "e2", 40, second.lease_id) == ChargeResult(nanos=20, written_off_nanos=20, is_new=True)
    books.set_budget("c", Budget(total_nanos=10), NOON)  # what is charged stays charged
    assert (books.spent("c"), books.held("c"), books.left("c", NOON)) == (50, 0, 0)
    books.set_budget("c", Budget(total_nanos=70), NOON)
    assert books.left("c", NOON) == 20
    with pytest.raises(InputError, match="daily_nanos = -1; 0"):
        books.set_budget("c", Budget(daily_nanos=-1), NOON)
    with pytest.raises(InputError, match="'Mars/Base' is unknown; use an IANA name"):
        books.set_budget("c", Budget(zone="Mars/Base"), NOON)


def test_a_batch_is_whole_and_the_schema_itself_refuses_an_overdraft(books: Ledger) -> None:
    books.set_budget("c", Budget(total_nanos=100), NOON)
    good = Charge(event_id="e", campaign_id="c", nanos=60, at_us=NOON)
    with pytest.raises(AssertionError):
        books.apply([good, Charge(event_id="f", campaign_id="c", nanos=-1, at_us=NOON)], NOON)
    assert books.spent("c") == 0
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"), database.transaction(books.connection):
        books.connection.execute("UPDATE budgets SET charged_nanos = 101")


def test_forgetting_keeps_the_sums(books: Ledger) -> None:
    books.set_budget("c", Budget(total_nanos=100), NOON)
    lease = ask(books, 5)
    order = Charge(event_id="e", campaign_id="c", nanos=5, at_us=NOON, lease_id=lease.lease_id, known_until_us=NOON + 9)
    books.apply([order], NOON)
    books.forget(NOON + 8)
    assert books.knows("e", NOON + 8)
    for _ in range(2):  # forgotten or only past its time: the event is new again
        assert not books.knows("e", NOON + 9)
        books.forget(NOON + 9)
    books.forget(NOON + 31 * 24 * HOUR)
    assert books.connection.execute("SELECT count(*) FROM leases").fetchone() == (0,)
    assert books.spent("c") == 5 and charge(books, "e", 5).is_new and books.spent("c") == 10


def test_verify_finds_what_does_not_add_up(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as books:
        books.set_budget("c", Budget(total_nanos=100, daily_nanos=50), NOON)
        charge(books, "e", 20, ask(books, 6).lease_id)
        for change, fault in (
            ("UPDATE budgets SET charged_nanos = 1000", "more than its budget"),
            ("UPDATE days SET charged_nanos = 1000", "more than its day"),
            ("UPDATE days SET written_off_nanos = 3", "days do not sum to the campaign"),
            ("UPDATE leases SET held_nanos = 1", "leases do not sum to the day"),
            ("UPDATE entries SET charged_nanos = 21", "charges exceed the day"),
        ):
            books.connection.execute("PRAGMA ignore_check_constraints = ON")
            books.connection.execute("BEGIN")
            books.connection.execute(change)
            assert any(line.endswith(fault) for line in books.verify()), fault
            books.connection.execute("ROLLBACK")
        assert books.verify() == []


CAMPAIGNS = st.sampled_from(["a", "b"])
NANOS = st.integers(0, 60)


class Books(RuleBasedStateMachine):
    """Any order of orders, over two campaigns, against sums kept by hand."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.books = Ledger(self.folder / "ledger.db", lease_s=5)
        self.now_us = us("2026-10-24T22:30:00+00:00")  # Rome: a 25-hour day has just begun
        self.caps: dict[str, list[int]] = {"a": [0], "b": [0]}
        self.charges: dict[str, ChargeResult] = {}
        self.owed: dict[str, tuple[str, int]] = {}
        self.leases: list[Lease] = []

    @rule(campaign=CAMPAIGNS, total=st.integers(1, 300), daily=NANOS)
    def set_budget(self, campaign: str, total: int, daily: int) -> None:
        budget = Budget(total_nanos=total, daily_nanos=daily, zone="Europe/Rome", hold_s=20)
        self.books.set_budget(campaign, budget, self.now_us)
        self.caps[campaign].append(total)

    @rule(campaign=CAMPAIGNS, want=st.integers(1, 100), data=st.data())
    def ask(self, campaign: str, want: int, data: st.DataObject) -> None:
        least = data.draw(st.integers(1, want))
        left = self.books.left(campaign, self.now_us)
        order = LeaseRequest(worker="w", campaign_id=campaign, want_nanos=want, least_nanos=least)
        (lease,) = self.books.apply([order], self.now_us)
        if lease is None:
            assert left < least
        else:
            assert isinstance(lease, Lease) and least <= lease.nanos <= min(want, left)
            self.leases.append(lease)

    @rule(campaign=CAMPAIGNS, event=st.integers(0, 30), nanos=NANOS, which=st.integers(0, 9), ago=st.integers(0, 60))
    def charge(self, campaign: str, event: int, nanos: int, which: int, ago: int) -> None:
        lease_id = self.leases[-1 - which].lease_id if which < len(self.leases) else 0
        at_us = self.now_us - ago * SECOND
        order = Charge(event_id=f"e{event}", campaign_id=campaign, nanos=nanos, at_us=at_us, lease_id=lease_id)
        (charged,) = self.books.apply([order], self.now_us)
        assert isinstance(charged, ChargeResult)
        assert charged.is_new == (order.event_id not in self.charges)
        if charged.is_new:
            assert charged.nanos + charged.written_off_nanos == nanos
            self.charges[order.event_id] = charged
            self.owed[order.event_id] = (campaign, charged.nanos)

    @rule(event=st.integers(0, 9), nanos=NANOS, which=st.integers(0, 9))
    def refund(self, event: int, nanos: int, which: int) -> None:
        if which < len(self.leases):
            lease = self.leases[which]
            order = Refund(event_id=f"r{event}", campaign_id=lease.campaign_id, lease_id=lease.lease_id, nanos=nanos)
            self.books.apply([order], self.now_us)

    @rule(which=st.integers(0, 9), reserved=NANOS)
    def release(self, which: int, reserved: int) -> None:
        if which < len(self.leases):
            order = Release(lease_id=self.leases[which].lease_id, reserved_nanos=reserved)
            self.books.apply([order, order], self.now_us)

    @rule(seconds=st.sampled_from([1, 10, 3600, 90_000]), expire=st.booleans())
    def wait(self, seconds: int, expire: bool) -> None:
        self.now_us += seconds * SECOND
        if expire:
            self.books.expire(self.now_us)

    @rule()
    def reopen(self) -> None:
        self.books.close()
        self.books = Ledger(self.folder / "ledger.db", lease_s=5)

    @invariant()
    def nothing_is_overdrawn(self) -> None:
        assert self.books.verify() == []
        for campaign, caps in self.caps.items():
            spent = self.books.spent(campaign)
            assert spent == sum(nanos for owner, nanos in self.owed.values() if owner == campaign)
            assert spent <= max(caps)

    def teardown(self) -> None:
        if hasattr(self, "books"):
            self.books.expire(self.now_us + 30 * SECOND)
            assert [self.books.held(campaign) for campaign in self.caps] == [0, 0]
            self.books.close()
            shutil.rmtree(self.folder)


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)


def test_a_reader_sees_the_last_commit(books: Ledger, tmp_path: Path) -> None:
    books.set_budget("c", Budget(total_nanos=100), NOON)
    charge(books, "e", 7)
    with closing(database.connect(tmp_path / "ledger.db", ledger.MIGRATIONS, read_only=True)) as reader:
        assert reader.execute("SELECT charged_nanos FROM budgets").fetchall() == [(7,)]


def test_today_is_that_of_each_zone(books: Ledger, tmp_path: Path) -> None:
    """At 20:00 UTC it is tomorrow in Tokyo, where nothing has been charged yet."""
    evening = us("2026-03-10T20:00:00+00:00")
    for campaign_id, zone in (("utc", "UTC"), ("tokyo", "Asia/Tokyo"), ("more", "UTC"), ("none", "UTC")):
        books.set_budget(campaign_id, Budget(zone=zone), NOON)
    for campaign_id, nanos, at_us in (
        ("utc", 5, NOON),
        ("utc", 2, NOON - 24 * HOUR),
        ("tokyo", 9, NOON),
        ("more", 6, NOON),
    ):
        name = f"{campaign_id}-{at_us}"
        books.apply([Charge(event_id=name, campaign_id=campaign_id, nanos=nanos, at_us=at_us, lease_id=0)], NOON)
    with closing(database.connect(tmp_path / "ledger.db", ledger.MIGRATIONS, read_only=True)) as reader:
        found = ledger.today(reader, evening)
    assert [(each.campaign_id, each.charged_nanos, each.total_charged_nanos) for each in found] == [
        ("more", 6, 6),
        ("utc", 5, 7),
        ("tokyo", 0, 9),
    ]
