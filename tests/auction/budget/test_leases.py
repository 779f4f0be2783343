"""Leases in a worker's memory, of one worker and of eight that are killed at random."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

import msgspec
import pytest

from leadre.auction.budget.leases import RETRY_US, LeasedBudget
from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import (
    MAX_LEASE_NANOS,
    Budget,
    Charge,
    Lease,
    LeaseRequest,
    LedgerOrder,
    Release,
    Void,
)
from leadre.units import US_PER_DAY, US_PER_S


def lease(number: int, nanos: int, expires_at_us: int = 10 * US_PER_S) -> Lease:
    return Lease(lease_id=number, campaign_id="c", nanos=nanos, expires_at_us=expires_at_us)


def test_lease_of_a_time_to_come_pays_no_bid_though_another_was_accepted_since() -> None:
    """The clock was set back between the request and the reply of the second lease."""
    day = US_PER_DAY
    budget = LeasedBudget("w", "c")
    assert budget.lease_request(1_000, 20 * day) is not None
    budget.accept(lease(1, 10_000, 20 * day + 10 * US_PER_S), 20 * day)
    assert budget.reserve(6_000, 20 * day) == 1
    assert budget.lease_request(1_000, 20 * day) is not None
    budget.accept(lease(2, 1_000, 12 * day + 10 * US_PER_S), 12 * day)
    assert budget.reserve(1_500, 12 * day) == 0
    assert budget.reserve(1_000, 12 * day) == 2
    assert [release.lease_id for release in budget.releases(12 * day)] == [1]


def test_bids_reserve_from_a_lease_until_it_is_used_up() -> None:
    budget = LeasedBudget("w", "c")
    assert budget.reserve(10, 0) == 0
    assert budget.lease_request(10, 0) == LeaseRequest(worker="w", campaign_id="c", max_nanos=40, min_nanos=10)
    assert budget.lease_request(10, 0) is None, "a reply is awaited"
    budget.accept(lease(1, 40), 0)
    assert budget.reserve(10, 0) == budget.reserve(10, 0) == 1 and budget.lease_request(10, 0) is None
    assert budget.reserve(10, 0) == 1
    assert budget.lease_request(10, 0) is not None, "less than half is left"
    assert budget.reserve(11, 0) == 0 and budget.reserve(10, 0) == 1 and budget.left_nanos(0) == 0
    budget.accept(None, 0)
    assert budget.lease_request(10, RETRY_US - 1) is None
    assert budget.lease_request(10, RETRY_US) is not None


def test_clock_that_is_set_back_ends_leases_of_the_future_and_the_wait_for_the_next() -> None:
    ahead_us = 8 * US_PER_DAY
    budget = LeasedBudget("w", "c")
    budget.lease_request(10, ahead_us)
    budget.accept(lease(1, 40, expires_at_us=ahead_us + 10 * US_PER_S), ahead_us)
    assert budget.reserve(10, ahead_us - US_PER_S) == 1, "a correction of a second ends no lease"
    assert budget.reserve(10, 0) == 0
    assert budget.releases(0) == [Release(lease_id=1, reserved_nanos=10)]
    budget.lease_request(10, ahead_us)
    budget.accept(None, ahead_us)
    assert budget.lease_request(10, 0) is not None


def test_remainder_of_an_ended_lease_is_released_once() -> None:
    budget = LeasedBudget("w", "c")
    budget.lease_request(10, 0)
    budget.accept(lease(1, 40, expires_at_us=US_PER_S), 0)
    assert budget.reserve(10, US_PER_S - 1) == 1
    assert budget.reserve(10, US_PER_S) == 0
    assert budget.releases(US_PER_S) == [Release(lease_id=1, reserved_nanos=10)] and budget.releases(US_PER_S) == []
    budget.lease_request(10, US_PER_S)
    budget.accept(lease(2, 40), US_PER_S)
    assert budget.close() == [Release(lease_id=2, reserved_nanos=0)] and budget.close() == []


def test_leases_grow_with_demand_and_shrink_without_it() -> None:
    budget = LeasedBudget("w", "c")
    for number in range(1, 5):  # each used up within a second
        request = budget.lease_request(10, number)
        assert request is not None and request.max_nanos == (40, 40, 80, 160)[number - 1]
        budget.accept(lease(number, request.max_nanos), number)
        while budget.reserve(10, number):
            pass
    assert budget.lease_nanos == 320
    budget.accept(lease(9, 320), 5 * US_PER_S)
    budget.releases(10 * US_PER_S)  # most of it was not reserved
    assert budget.lease_nanos == 160


def test_remainder_too_small_for_a_bid_is_released_when_the_next_lease_arrives() -> None:
    budget = LeasedBudget("w", "c")
    budget.accept(lease(1, 45), 0)
    for _ in range(4):
        budget.reserve(10, 0)
    budget.accept(lease(2, 40), 0)
    assert budget.releases(0) == [Release(lease_id=1, reserved_nanos=40)]
    assert budget.left_nanos(0) == 40


def test_request_is_bounded_by_the_budget_however_fast_its_end_is_bid(tmp_path: Path) -> None:
    """A lease near the end of a budget is small, and used up at once; a larger request does not make it larger."""
    bid_nanos = 2_000_000
    total_nanos = 2_000 * bid_nanos
    budget = LeasedBudget("w", "c")
    encode = msgspec.msgpack.Encoder().encode
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.set_budget("c", Budget(total_nanos=total_nanos), 0)
        for now_us in range(0, 4 * US_PER_S, US_PER_S // 20):  # every renewal of a worker
            request = budget.lease_request(bid_nanos, now_us)
            if request is None:
                continue
            assert encode(request) and request.max_nanos <= total_nanos
            (granted,) = ledger.apply([request], now_us)
            assert granted is None or isinstance(granted, Lease)
            budget.accept(granted, now_us)
            while lease_id := budget.reserve(bid_nanos, now_us):
                charge = Charge(event_id=f"{now_us}", campaign_id="c", nanos=1, at_us=now_us, lease_id=lease_id)
                ledger.apply([charge, Release(lease_id=lease_id, reserved_nanos=1)], now_us)  # its budget is free again
        assert 0 < ledger.spent("c") < total_nanos


def test_request_is_bounded_by_the_largest_lease_of_a_message() -> None:
    budget = LeasedBudget("w", "c")
    for now_us in range(1, 100):
        request = budget.lease_request(MAX_LEASE_NANOS // 3, now_us)
        assert request is not None and request.min_nanos <= request.max_nanos <= MAX_LEASE_NANOS
        budget.accept(lease(now_us, request.max_nanos), now_us)
        while budget.reserve(MAX_LEASE_NANOS // 3, now_us):
            pass


# Eight workers and the ledger, in real time: a bid is charged within PENDING_S or not at all. Its events are on their
# way for up to EVENT_S; the rest of PENDING_S is for a machine that is busy.
LEASE_S, PENDING_S, EVENT_S = 0.3, 2, 0.6


def work(name: str, seed: int, pipe: Connection) -> None:
    """A worker that bids as fast as its leases allow. Sends orders, and (lease, price) for each bid."""
    rng = random.Random(seed)
    budget = LeasedBudget(name, "c")
    while True:
        now_us = time.time_ns() // 1000
        price = rng.randint(50, 150)
        if lease_id := budget.reserve(price, now_us):
            pipe.send((lease_id, price))
        if request := budget.lease_request(150, now_us):
            pipe.send(request)
        for release in budget.releases(now_us):
            pipe.send(release)
        if pipe.poll(0 if lease_id else 0.01):
            budget.accept(pipe.recv(), time.time_ns() // 1000)


@dataclass
class Market:
    """The exchange: wins, losses and their events, some repeated, within `EVENT_S` of the bid."""

    rng: random.Random
    bids: int = 0
    pending: list[tuple[float, LedgerOrder]] = field(default_factory=list)

    def bid(self, lease_id: int, price: int) -> None:
        self.bids += 1
        event_id = f"bid-{self.bids}"
        fate = self.rng.random()
        if fate < 0.6:
            order: LedgerOrder = Charge(event_id=event_id, campaign_id="c", nanos=price, at_us=0, lease_id=lease_id)
        elif fate < 0.8:
            order = Void(event_id=event_id, campaign_id="c", lease_id=lease_id, nanos=price)
        else:
            return  # lost without a notice
        for _ in range(self.rng.choice((1, 1, 2))):
            self.pending.append((time.time() + self.rng.uniform(0, EVENT_S), order))

    def due(self) -> list[LedgerOrder]:
        now = time.time()
        due = [order for at, order in self.pending if at <= now]
        self.pending = [entry for entry in self.pending if entry[0] > now]
        return due


def serve_once(ledger: Ledger, market: Market, workers: Collection[Connection]) -> None:
    """Receive what the workers have sent, apply it in one batch with the market's due events, reply with leases."""
    orders = market.due()
    requesters = []
    for pipe in wait(list(workers), timeout=0.02):
        assert isinstance(pipe, Connection)
        for _ in range(50):
            if not pipe.poll():
                break
            message = pipe.recv()
            if isinstance(message, tuple):
                market.bid(*message)
            else:
                orders.append(message)
                requesters += [pipe] if isinstance(message, LeaseRequest) else []
    results = ledger.apply(orders, time.time_ns() // 1000)
    leases = [result for order, result in zip(orders, results, strict=True) if isinstance(order, LeaseRequest)]
    for pipe, leased in zip(requesters, leases, strict=True):
        pipe.send(leased)
    ledger.expire(time.time_ns() // 1000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("max_s", "total_nanos"), [(600, 1_000_000), pytest.param(1200, 20_000_000, marks=pytest.mark.soak)]
)
def test_eight_workers_killed_at_random_spend_exactly_the_budget(tmp_path: Path, max_s: int, total_nanos: int) -> None:
    rng = random.Random(1)
    market = Market(random.Random(2))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # else each worker imports this file by itself
    workers: dict[Connection, multiprocessing.process.BaseProcess] = {}

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(f"w{len(workers)}", rng.randrange(1 << 30), theirs), daemon=True)
        process.start()
        theirs.close()
        workers[ours] = process

    def stop(pipe: Connection) -> None:
        process = workers.pop(pipe)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        pipe.close()

    kills = 0
    ends_at = time.time() + max_s
    next_kill = time.time() + 2
    with Ledger(tmp_path / "ledger.db", lease_s=LEASE_S) as ledger:
        ledger.set_budget("c", Budget(total_nanos=total_nanos, pending_s=PENDING_S), time.time_ns() // 1000)
        for _ in range(8):
            start()
        while time.time() < ends_at:
            if ledger.spent("c") >= 0.99 * total_nanos:
                ends_at = min(ends_at, time.time() + 2)  # demand does not end with the budget
            serve_once(ledger, market, workers)
            if time.time() > next_kill:
                stop(rng.choice(list(workers)))
                start()
                kills += 1
                next_kill = time.time() + rng.uniform(0.1, 0.4)
        for pipe in list(workers):
            stop(pipe)
        ledger.apply([order for _, order in market.pending], time.time_ns() // 1000)
        ledger.expire(time.time_ns() // 1000 + (PENDING_S + 1) * US_PER_S)
        assert ledger.verify() == [] and ledger.reserved("c") == 0
        charged = ledger.spent("c")
        assert kills >= 3 and ledger.written_off("c") == 0, "a lease could pay every bid"
        assert 0.99 * total_nanos <= charged <= total_nanos, (charged, kills, market.bids)
