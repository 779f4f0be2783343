"""Claim: a bidder with few requests has a lease for its best candidate, and standby leases cost the writer little.

    python bench/leases.py [--requests N] [--prices FILE]

First, days of 100,000, 10,000 and 1,000 requests through worker, writer and ledger of `leadre evaluate simulate`, with
200 campaigns without a plan and budgets of 50 to 90 % of demand, from noon on: the share of requests whose best
candidate has no lease, and that of requests with a bid, in the second half of N requests, with standby leases and
without. Then one worker whose 10,000 campaigns are candidates in turn, for 4 simulated minutes: processor time of
ledger and worker for a second. Folders are in memory where the system has /dev/shm. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Budget, Lease, LedgerOrder
from leadre.evaluate.simulation import prices, world
from leadre.evaluate.simulation.bidder import Bidder
from leadre.evaluate.simulation.exchange import NOBODY, Exchange
from leadre.evaluate.simulation.options import MarketOptions
from leadre.evaluate.simulation.run import MEMORY
from leadre.serve.bidding import budgets
from leadre.serve.processes.renewals import BUDGETS_S
from leadre.serve.settings import Settings
from leadre.types import Campaign, Verdict
from leadre.units import US_PER_S

CAMPAIGNS, MINUTES, WANTED = 10_000, 4, 100  # campaigns that are candidates in a second


async def shares(folder: Path, law: prices.Prices, density: int, requests: int) -> tuple[float, float]:
    """(share of requests whose best candidate has no lease, share with a bid) at requests a day."""
    options = MarketOptions(requests=density, budget_low=0.5, budget_high=0.9, plan="asap", burst=1.0)
    objects = [f"object-{number}" for number in range(1_000)]
    market = world.draw(options, objects, objects, law, 0)
    auctions = world.auctions(replace(options, requests=max(density, 2 * requests)), law, 0, 0)
    noon = len(auctions.at_us_N) // 2
    auctions = auctions.part(noon, noon + requests, slower=len(auctions.at_us_N) / density)
    async with Bidder(folder, market, Settings(public_url="https://ads.test"), 0) as bidder:
        log = await Exchange(bidder, market, 0).run_day(auctions, lambda n=1, note="": None)
    judged = slice(requests // 2, None)
    return (
        float((log.verdict_N[judged] == Verdict.NO_BUDGET.code).mean()),
        float((log.campaign_N[judged] != NOBODY).mean()),
    )


async def load(folder: Path) -> tuple[float, float, float]:
    """(ms of the ledger, ms of the worker, leases) for a second of a worker whose campaigns are candidates in turn."""
    now_us = 0
    ledger_s = 0.0
    leases = 0
    campaigns = [
        Campaign(
            campaign_id=f"c{n}", advertiser_id="a", name="Campaign", bid_type="cpm", bid_nanos=10**6, daily_nanos=10**12
        )
        for n in range(CAMPAIGNS)
    ]
    with Ledger(folder / "ledger.db") as ledger:
        ledger.set_budgets({campaign.campaign_id: Budget(daily_nanos=10**12) for campaign in campaigns}, now_us)

        async def send(orders: Sequence[LedgerOrder]) -> Sequence[Lease | None]:
            nonlocal ledger_s, leases
            started_s = time.process_time()
            results = ledger.apply(orders, now_us)
            ledger_s += time.process_time() - started_s
            granted = [result for result in results if isinstance(result, Lease)]
            leases += len(granted)
            return granted

        worker = budgets.Budgets("w", send)
        seconds = 60 * MINUTES
        warm_s = 60
        started_s = time.process_time()
        for second in range(warm_s + seconds):
            if second == warm_s:
                started_s = time.process_time()
                ledger_s = 0.0
                leases = 0
            for number in range(WANTED):
                worker.want(campaigns[(WANTED * second + number) % CAMPAIGNS], 1_000_000, now_us)
            for _ in range(round(1 / BUDGETS_S)):
                await worker.renew(now_us)
                now_us += round(BUDGETS_S * US_PER_S)
        worker_s = time.process_time() - started_s - ledger_s
        assert ledger.verify() == []
    return 1000 * ledger_s / seconds, 1000 * worker_s / seconds, leases / seconds


def main(requests: int, path: Path | None) -> None:
    law = prices.built_in() if path is None else prices.read(path)
    figures: dict[str, float] = {}
    most = budgets.MAX_STANDBY
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        for density in (100_000, 10_000, 1_000):
            for kind, budgets.MAX_STANDBY in (("without", 0), ("with", most)):
                without_lease, bids = asyncio.run(shares(Path(name) / f"{density}-{kind}", law, density, requests))
                figures[f"no_lease_{density}_{kind}"] = round(without_lease, 3)
                figures[f"bids_{density}_{kind}"] = round(bids, 3)
        ledger_ms, worker_ms, leases = asyncio.run(load(Path(name)))
    figures |= {"ledger_ms": round(ledger_ms, 2), "worker_ms": round(worker_ms, 2), "leases_per_s": round(leases, 1)}
    print(json.dumps(figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--prices", type=Path, default=None, help="as of `leadre evaluate simulate`")
    arguments = parser.parse_args()
    main(arguments.requests, arguments.prices)
