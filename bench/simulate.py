"""Claim: a simulated day of 100,000 requests and 200 paced campaigns takes 1/600 of a day of processor time.

    python bench/simulate.py [--requests N] [--prices FILE]

Sends N requests from noon on through worker, writer and ledger, as `leadre evaluate simulate` does with its default
market, and measures processor time, as shared cores make wall time longer. Figures: milliseconds a request, requests a
second, and how many times faster than the clock a whole day is at that rate. The state folder is in memory where the
system has /dev/shm. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

from leadre.evaluate.simulation import prices, world
from leadre.evaluate.simulation.bidder import Bidder
from leadre.evaluate.simulation.exchange import Exchange
from leadre.evaluate.simulation.options import MarketOptions
from leadre.evaluate.simulation.run import MEMORY
from leadre.serve.settings import Settings
from leadre.units import S_PER_DAY


async def seconds(folder: Path, law: prices.Prices, requests: int) -> float:
    """Processor time of the requests."""
    options = MarketOptions()
    objects = [f"object-{number}" for number in range(1_000)]
    market = world.draw(options, objects, objects, law, 0)
    auctions = world.auctions(options, law, 0, 0)
    noon = len(auctions.at_us_N) // 2
    auctions = auctions.part(noon, noon + requests)
    async with Bidder(folder, market, Settings(public_url="https://ads.test"), 0) as bidder:
        exchange = Exchange(bidder, market, 0)
        started_s = time.process_time()
        log = await exchange.run_day(auctions, lambda n=1, note="": None)
        used_s = time.process_time() - started_s
    assert (log.paid_nanos_N > 0).any()
    return used_s


def main(requests: int, path: Path | None) -> None:
    law = prices.built_in() if path is None else prices.read(path)
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        each_s = asyncio.run(seconds(Path(folder) / "state", law, requests)) / requests
    times = S_PER_DAY / (MarketOptions().requests * each_s)
    print(json.dumps({"ms": round(1000 * each_s, 2), "requests_per_s": round(1 / each_s), "times": round(times)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--requests", type=int, default=1_500)
    parser.add_argument("--prices", type=Path, default=None, help="as of `leadre evaluate simulate`")
    arguments = parser.parse_args()
    main(arguments.requests, arguments.prices)
