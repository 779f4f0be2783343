"""A budget under `leadre serve` while its eight workers are killed at random, from the bid to the ledger."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import closing

import httpx
import pytest

from leadre import database
from leadre.auction.budget import schema
from leadre.auction.budget.ledger import Ledger
from leadre.serve.events import event_log
from leadre.serve.events.records import EventRecord
from leadre.store.contract import StoredList

from ..bidder import Bidder, event_urls, until

WORKERS, BID_NANOS, BUDGET_NANOS = 8, 2_000_000, 1_000_000_000
KILLS, CLIENTS = 15, 4
HOLD_S = 660  # a token's life and a standby lease's


class Demand:
    """Clients that request more than the budget can pay. Of 100 bids 80 are billed, 17 lost, 3 have no event."""

    def __init__(self, bidder):
        self.bidder = bidder
        self.bids = []
        self.billed = []
        self.is_over = threading.Event()

    def request_bids(self, seed):
        rng = random.Random(seed)
        while not self.is_over.wait(0.1):
            try:
                bids = self.bidder.fresh(tmax=5000)
            except httpx.TransportError:
                continue  # its worker has just been killed
            for bid in bids:
                if bid["cid"] != "scarce":
                    continue  # from the previous list for unknown users
                self.bids.append(bid["id"])
                urls = event_urls(bid)
                fate = rng.random()
                if fate < 0.8:
                    self.billed.append(bid["id"])
                    for _ in range(rng.choice((1, 1, 2))):
                        deliver(urls["bill"])
                elif fate < 0.97:
                    deliver(urls["loss"])


def deliver(url):
    """Send an event until it is acknowledged."""
    while True:
        try:
            if httpx.get(url, timeout=30).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)


def balance(bidder):
    """(charged, reserved, written off) of the campaign, in nanos."""
    with closing(database.connect(bidder.state / "ledger.db", schema.MIGRATIONS, read_only=True)) as reader:
        query = "SELECT charged_nanos, held_nanos, written_off_nanos FROM budgets WHERE campaign_id = 'scarce'"
        return reader.execute(query).fetchone() or (0, 0, 0)


@pytest.mark.soak
def test_eight_workers_killed_at_random_charge_the_budget_and_no_more(work, tmp_path):
    rng = random.Random(0)
    with Bidder(work, tmp_path / "state", "--workers", str(WORKERS), "--generate", "false") as bidder:
        campaign = {"name": "scarce", "advertiser_id": "a", "bid_type": "cpm", "bid_nanos": BID_NANOS}
        bidder.manage("PUT", "/campaigns/scarce", campaign | {"total_nanos": BUDGET_NANOS})
        ad = {"campaign_id": "scarce", "title": "Shoes", "landing_url": "https://a.example/shoes"}
        bidder.manage("PUT", "/ads/scarce", ad)
        with closing(bidder.store()) as store:
            version = store.versions().current
            store.put_lists(version, {"*": StoredList(version, 1, ("scarce",), (0.0,))})
        demand = Demand(bidder)
        clients = [threading.Thread(target=demand.request_bids, args=(seed,)) for seed in range(CLIENTS)]
        for client in clients:
            client.start()
        try:
            until(lambda: balance(bidder)[0] > 0, "charged")
            kills = 0
            while kills < KILLS or sum(balance(bidder)) < 0.95 * BUDGET_NANOS:
                until(lambda: len(bidder.pids("worker")) > WORKERS / 2, "workers restarted", bidder.said)
                os.kill(rng.choice(bidder.pids("worker")), signal.SIGKILL)
                kills += 1
                time.sleep(rng.uniform(0.5, 3))
                assert balance(bidder)[0] <= BUDGET_NANOS
            before = balance(bidder)  # reservations of killed workers return after their last token expires
            until(
                lambda: balance(bidder)[0] >= 0.99 * BUDGET_NANOS, "spent", lambda: str(balance(bidder)), 1.5 * HOLD_S
            )
        finally:
            demand.is_over.set()
            for client in clients:
                client.join()
    charged, held, written_off = balance(bidder)
    print(f"{kills} kills, {len(demand.bids)} bids, after the kills {before}, in the end {charged} charged")
    assert charged <= BUDGET_NANOS and charged + held <= BUDGET_NANOS
    assert written_off == 0, "no bid was made that its lease could not pay"
    assert charged == len(demand.billed) * BID_NANOS
    records = [entry.record for entry in event_log.read(bidder.state / "events")]
    recount = [record.outcome.charge_nanos for record in records if isinstance(record, EventRecord)]
    assert sum(recount) == charged
    with Ledger(bidder.state / "ledger.db") as books:
        assert books.verify() == []
        books.expire((int(time.time()) + HOLD_S + 10) * 1_000_000)
        assert books.reserved("scarce") == 0
