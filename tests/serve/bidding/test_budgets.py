"""Leases and releases of a worker reach the ledger, also if a message is lost; standby leases wait for auctions."""

import asyncio

import pytest

from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Budget, Lease, LeaseRequest, Release
from leadre.errors import PeerError
from leadre.serve.bidding.budgets import MAX_STANDBY, Budgets
from leadre.units import US_PER_S

from ..conftest import make_campaign


def test_release_is_sent_again_until_the_ledger_has_it():
    sent = []
    is_away = False

    async def send(orders):
        if is_away:
            raise PeerError("away")
        sent.extend(order for order in orders if isinstance(order, Release))
        requests = [order for order in orders if isinstance(order, LeaseRequest)]
        return [
            Lease(lease_id=1, campaign_id="c1", nanos=order.max_nanos, expires_at_us=US_PER_S) for order in requests
        ]

    async def main():
        nonlocal is_away
        budgets = Budgets("w", send)
        campaign = make_campaign(total_nanos=1_000)
        assert budgets.reserve(campaign, 10, 0) is None
        await budgets.renew(0)
        assert budgets.reserve(campaign, 10, 0) == 1
        is_away = True
        for _ in range(3):
            with pytest.raises(PeerError):
                await budgets.renew(2 * US_PER_S)  # the lease has expired with a remainder
        is_away = False
        await budgets.renew(2 * US_PER_S)
        assert sent == [Release(lease_id=1, reserved_nanos=10)]
        await budgets.renew(3 * US_PER_S)
        await budgets.close()
        assert len(sent) == 1

    asyncio.run(main())


class Clock:
    """The ledger of a campaign, and seconds that pass for its workers."""

    def __init__(self, folder, *workers, budget_nanos=1_000):
        self.ledger = Ledger(folder / "ledger.db")
        self.ledger.set_budget("c1", Budget(total_nanos=budget_nanos, pending_s=120), 0)
        self.workers = [Budgets(name, self.send, len(workers)) for name in workers]
        self.now_us = 0

    async def send(self, orders):
        releases = [order for order in orders if isinstance(order, Release)]
        requests = [order for order in orders if isinstance(order, LeaseRequest)]
        return self.ledger.apply([*releases, *requests], self.now_us)[len(releases) :]

    async def wait(self, seconds, act=lambda: None, workers=None):
        for _ in range(seconds):
            self.now_us += US_PER_S
            for worker in workers or self.workers:
                await worker.renew(self.now_us)
            self.ledger.expire(self.now_us)
            act()


@pytest.fixture
def clock(tmp_path):
    clocks = []

    def clock(*workers, **fields):
        clocks.append(Clock(tmp_path, *workers, **fields))
        return clocks[-1]

    yield clock
    for opened in clocks:
        assert opened.ledger.verify() == []
        opened.ledger.close()


CAMPAIGN = make_campaign(total_nanos=1_000)


def test_campaign_has_a_lease_of_few_bids_for_an_hour_after_its_last_auction(clock):
    day = clock("w")
    (worker,) = day.workers
    reserved = set()

    def check():
        assert worker.can_pay(CAMPAIGN, 10, day.now_us)
        reserved.add(day.ledger.reserved("c1"))

    async def main():
        worker.want(CAMPAIGN, 10, 0)
        await day.wait(1)
        await day.wait(3_500, check)
        assert max(reserved) <= 40
        await day.wait(300)
        assert not worker.can_pay(CAMPAIGN, 10, day.now_us) and day.ledger.reserved("c1") == 0

    asyncio.run(main())
    (rows,) = day.ledger.connection.execute("SELECT count(*) FROM leases").fetchone()
    assert rows == 0, "leases without a bid leave no row"


def test_last_money_of_a_budget_waits_in_no_idle_worker(clock):
    """Both were granted a lease while there was enough for both; then the busy one bids until the end."""
    day = clock("idle", "busy", budget_nanos=100)
    idle, busy = day.workers
    bids = 0

    def bid():
        nonlocal bids
        bids += busy.reserve(CAMPAIGN, 10, day.now_us) is not None

    async def main():
        for worker in day.workers:
            worker.want(CAMPAIGN, 10, 0)
        await day.wait(1)
        assert idle.can_pay(CAMPAIGN, 10, day.now_us) and busy.can_pay(CAMPAIGN, 10, day.now_us)
        await day.wait(2 * 60 + 10, bid)  # two standby leases
        assert bids == 10 and not idle.can_pay(CAMPAIGN, 10, day.now_us)

    asyncio.run(main())


def test_only_worker_keeps_the_last_bid_of_a_budget_for_the_next_auction(clock):
    day = clock("w", budget_nanos=10)
    (worker,) = day.workers

    async def main():
        worker.want(CAMPAIGN, 10, 0)
        await day.wait(100)
        assert worker.reserve(CAMPAIGN, 10, day.now_us)

    asyncio.run(main())


@pytest.mark.parametrize("end", ["pause", "close", "death"])
def test_standby_lease_returns(clock, end):
    day = clock("w")
    (worker,) = day.workers

    async def main():
        worker.want(CAMPAIGN, 10, 0)
        await day.wait(5)
        assert day.ledger.reserved("c1") == 40
        if end == "pause":
            worker.pause(["c1"])
            await day.wait(20)
        elif end == "close":
            await worker.close()
        else:
            await day.wait(60 + 120, workers=[Budgets("next", day.send)])
        assert day.ledger.reserved("c1") == 0
        worker.pause([])
        worker.want(CAMPAIGN, 10, day.now_us)
        await day.wait(20)
        assert day.ledger.reserved("c1") == 40, "it may bid again"

    asyncio.run(main())


def test_standby_lease_pays_the_highest_price_of_the_last_candidates(clock):
    day = clock("w", budget_nanos=100_000)
    (worker,) = day.workers

    async def main():
        for nanos in (10, 900, 20):
            worker.want(CAMPAIGN, nanos, day.now_us)
        await day.wait(300)
        assert worker.can_pay(CAMPAIGN, 900, day.now_us)
        worker.want(CAMPAIGN, 20, day.now_us)
        await day.wait(100)
        assert not worker.can_pay(CAMPAIGN, 900, day.now_us), "no more than the last auctions need"

    asyncio.run(main())


def test_latest_auctions_have_the_first_standby_leases(clock):
    sent = []

    async def send(orders):
        sent.extend(orders)
        return [None] * len(orders)

    async def main():
        worker = Budgets("w", send)
        for number in range(MAX_STANDBY + 5):
            worker.want(make_campaign(f"c{number}", total_nanos=100), 10, number)
        await worker.renew(US_PER_S)
        assert {order.campaign_id for order in sent} == {f"c{number}" for number in range(5, MAX_STANDBY + 5)}
        await worker.renew(2 * US_PER_S)
        assert {order.campaign_id for order in sent[MAX_STANDBY:]} == {f"c{number}" for number in range(5)}

    asyncio.run(main())
