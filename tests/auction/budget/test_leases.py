"""What a worker does with its leases, alone and among eight that are killed at random."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pytest

from leadre.auction.budget.leases import RETRY_US, LeasedBudget
from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Budget, Charge, Lease, LeaseRequest, LedgerOrder, Refund, Release

SECOND = 1_000_000


def lease(number: int, nanos: int, expires_at_us: int = 10 * SECOND) -> Lease:
    return Lease(lease_id=number, campaign_id="c", nanos=nanos, expires_at_us=expires_at_us)


def test_a_slice_is_reserved_from_until_it_is_used_up() -> None:
    mine = LeasedBudget("w", "c")
    assert mine.reserve(10, 0) == 0
    assert mine.ask(10, 0) == LeaseRequest(worker="w", campaign_id="c", want_nanos=40, least_nanos=10)
    assert mine.ask(10, 0) is None, "an answer is due"
    mine.take(lease(1, 40), 0)
    assert mine.reserve(10, 0) == mine.reserve(10, 0) == 1 and mine.ask(10, 0) is None
    assert mine.reserve(10, 0) == 1
    assert mine.ask(10, 0) is not None, "less than half is left"
    assert mine.reserve(11, 0) == 0 and mine.reserve(10, 0) == 1 and mine.left_nanos(0) == 0
    mine.take(None, 0)
    assert mine.ask(10, RETRY_US - 1) is None
    assert mine.ask(10, RETRY_US) is not None


def test_an_ended_lease_is_not_bid_from_and_its_rest_is_released_once() -> None:
    mine = LeasedBudget("w", "c")
    mine.ask(10, 0)
    mine.take(lease(1, 40, expires_at_us=SECOND), 0)
    assert mine.reserve(10, SECOND - 1) == 1
    assert mine.reserve(10, SECOND) == 0
    assert mine.releases(SECOND) == [Release(lease_id=1, reserved_nanos=10)] and mine.releases(SECOND) == []
    mine.ask(10, SECOND)
    mine.take(lease(2, 40), SECOND)
    assert mine.close() == [Release(lease_id=2, reserved_nanos=0)] and mine.close() == []


def test_leases_grow_with_demand_and_shrink_without() -> None:
    mine = LeasedBudget("w", "c")
    for number in range(1, 5):  # each used up within a second
        asked = mine.ask(10, number)
        assert asked is not None and asked.want_nanos == (40, 40, 80, 160)[number - 1]
        mine.take(lease(number, asked.want_nanos), number)
        while mine.reserve(10, number):
            pass
    assert mine.want_nanos == 320
    mine.take(lease(9, 320), 5 * SECOND)
    mine.releases(10 * SECOND)  # most of it was not needed
    assert mine.want_nanos == 160


def test_a_rest_that_pays_for_no_bid_goes_back_when_the_next_lease_comes() -> None:
    mine = LeasedBudget("w", "c")
    mine.take(lease(1, 45), 0)
    for _ in range(4):
        mine.reserve(10, 0)
    mine.take(lease(2, 40), 0)
    assert mine.releases(0) == [Release(lease_id=1, reserved_nanos=40)]
    assert mine.left_nanos(0) == 40


# Eight workers and the ledger, in real time: a bid is charged within the hold or not at all.
LEASE_S, HOLD_S = 0.3, 1


def work(name: str, seed: int, pipe: Connection) -> None:
    """Bid as fast as leases and the ledger's answers allow. Sends orders, and (lease, price) for each bid."""
    rng = random.Random(seed)
    mine = LeasedBudget(name, "c")
    while True:
        now_us = time.time_ns() // 1000
        price = rng.randint(50, 150)
        if lease_id := mine.reserve(price, now_us):
            pipe.send((lease_id, price))
        if asked := mine.ask(150, now_us):
            pipe.send(asked)
        for release in mine.releases(now_us):
            pipe.send(release)
        if pipe.poll(0 if lease_id else 0.01):
            mine.take(pipe.recv(), time.time_ns() // 1000)


@dataclass
class Market:
    """The other side: wins, losses and their events, some twice, within the hold after the bid."""

    rng: random.Random
    bids: int = 0
    pending: list[tuple[float, LedgerOrder]] = field(default_factory=list)

    def bid(self, lease_id: int, price: int) -> None:
        self.bids += 1
        event_id, fate = f"bid-{self.bids}", self.rng.random()
        if fate < 0.6:
            order: LedgerOrder = Charge(event_id=event_id, campaign_id="c", nanos=price, at_us=0, lease_id=lease_id)
        elif fate < 0.8:
            order = Refund(event_id=event_id, campaign_id="c", lease_id=lease_id, nanos=price)
        else:
            return  # lost, and nobody says so
        for _ in range(self.rng.choice((1, 1, 2))):
            self.pending.append((time.time() + self.rng.uniform(0, 0.6 * HOLD_S), order))

    def due(self) -> list[LedgerOrder]:
        now = time.time()
        due = [order for at, order in self.pending if at <= now]
        self.pending = [entry for entry in self.pending if entry[0] > now]
        return due


@pytest.mark.slow
@pytest.mark.parametrize(
    ("most_s", "total_nanos"), [(120, 2_000_000), pytest.param(1200, 20_000_000, marks=pytest.mark.soak)]
)
def test_eight_workers_killed_at_random_spend_the_budget_and_no_more(
    tmp_path: Path, most_s: int, total_nanos: int
) -> None:
    rng, market = random.Random(1), Market(random.Random(2))
    context = multiprocessing.get_context("forkserver")
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

    kills, ends_at, next_kill = 0, time.time() + most_s, time.time() + 2
    with Ledger(tmp_path / "ledger.db", lease_s=LEASE_S) as books:
        books.set_budget("c", Budget(total_nanos=total_nanos, hold_s=HOLD_S), time.time_ns() // 1000)
        for _ in range(8):
            start()
        while time.time() < ends_at:
            if books.spent("c") >= 0.99 * total_nanos:
                ends_at = min(ends_at, time.time() + 2)  # demand goes on where there is no budget
            orders, asking = market.due(), []
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
                        asking += [pipe] if isinstance(message, LeaseRequest) else []
            answers = books.apply(orders, time.time_ns() // 1000)
            leases = [answer for order, answer in zip(orders, answers, strict=True) if isinstance(order, LeaseRequest)]
            for pipe, answer in zip(asking, leases, strict=True):
                pipe.send(answer)
            books.expire(time.time_ns() // 1000)
            if time.time() > next_kill:
                stop(rng.choice(list(workers)))
                start()
                kills, next_kill = kills + 1, time.time() + rng.uniform(0.1, 0.4)
        for pipe in list(workers):
            stop(pipe)
        books.apply([order for _, order in market.pending], time.time_ns() // 1000)
        books.expire(time.time_ns() // 1000 + (HOLD_S + 1) * SECOND)
        assert books.verify() == [] and books.held("c") == 0
        charged = books.spent("c")
        assert kills >= 3 and books.written_off("c") == 0, "no bid was made that its lease could not pay"
        assert 0.99 * total_nanos <= charged <= total_nanos, (charged, kills, market.bids)
