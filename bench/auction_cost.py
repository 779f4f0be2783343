"""Claim: pacing and shading add less than 100 us of processor time to a request of 20 candidates.

    python bench/auction_cost.py

Times functions of `leadre.auction` by themselves: the rates of 20 paced campaigns and the
product with their values, the shaded bids of 20 values by a win curve in eight groups, and the charge of each of five
slots by GSP and by VCG. Microseconds of processor time, the median of `TURNS` turns, in which the parts alternate.

Then it times whole bid decisions on 20 candidates with their log records, by two bidders in turns: ``off``, whose
campaigns have a budget alone, and ``on``, whose campaigns have a plan and shade a first price, by a law of eight
groups. The difference is to be under 100 us.

Ends with one line of JSON: ``paced_us``, ``shaded_us``, ``gsp_us``, ``vcg_us``, ``off_us``, ``on_us``, and
``added_us``, the median of the differences of a turn.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from leadre.auction.budget.messages import Lease, LeaseRequest, LedgerOrder
from leadre.auction.pacing.contract import Rate, rate_of, start
from leadre.auction.pacing.registry import PACERS
from leadre.auction.shading import Feedback, WinCurves, fit_by_value, fit_histogram
from leadre.clock import ManualClock
from leadre.serve.bidding.budgets import Budgets
from leadre.serve.bidding.charge import charge
from leadre.serve.bidding.context import Bidder, Market
from leadre.serve.bidding.exploration import ExplorationDraws
from leadre.serve.bidding.pace import campaign_rates
from leadre.serve.bidding.ranking import RankingGuard
from leadre.serve.bidding.record import record
from leadre.serve.bidding.respond import respond
from leadre.serve.bidding.shade import NO_SHADING, Shading
from leadre.serve.bidding.user_store import UserStore
from leadre.serve.bidding.value import ad_prices
from leadre.serve.callers.party import Party
from leadre.serve.catalogue import eligibility
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.catalogue.objects import ObjectIndex
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import MarketShading
from leadre.serve.protocol import openrtb
from leadre.serve.settings import Settings
from leadre.store import open_store
from leadre.store.contract import StoredList
from leadre.types import Ad, Campaign

CANDIDATES = 20
SLOTS = 5
TURNS = 200
CALLS = 20  # of one turn


def law() -> tuple[np.ndarray, WinCurves]:
    """Values of impressions, and the win curves of their price."""
    generator = np.random.default_rng(0)
    value_N = np.exp(generator.normal(4.0, 0.5, 5_000))
    feedback = Feedback.of_prices(value_N, np.exp(generator.normal(3.0, 1.0, 5_000)))
    return value_N, fit_by_value(fit_histogram, feedback, value_N, groups=8)


def parts(value_N: np.ndarray, curves: WinCurves) -> dict[str, Callable[[], object]]:
    """The calls by name."""
    pacer = PACERS["mirror"]
    states = [start(pacer) for _ in range(CANDIDATES)]
    value_K = value_N[:CANDIDATES]
    nanos_K = np.sort((value_K * 1_000_000).astype(np.int64))[::-1]
    log_score_K = np.zeros(CANDIDATES)
    effects = (1.0, 0.8, 0.6, 0.5, 0.4)

    def paced() -> object:
        return value_K * np.array([rate_of(pacer, state).multiplier for state in states])

    def charged(mechanism: str) -> Callable[[], object]:
        return lambda: [
            charge(mechanism, effects[slot:], nanos_K[slot:], nanos_K[slot:], log_score_K[slot:], 1)
            for slot in range(SLOTS)
        ]

    return {
        "paced": paced,
        "shaded": lambda: curves.shade(value_K),
        "gsp": charged("gsp"),
        "vcg": charged("vcg"),
    }


def market(value_N: np.ndarray, curves: WinCurves) -> MarketShading:
    """The law of the price of one caller, in nanos of values around a CPM of 2."""
    scale = 2_000_000 / float(np.median(value_N))
    hulls = [curve.hull for curve in curves.curves]
    return MarketShading(
        caller="exchange",
        currency="USD",
        edges=(curves.edges * scale).tolist(),
        breaks=[(breaks * scale).tolist() for breaks, _ in hulls],
        bids=[(bids * scale).tolist() for _, bids in hulls],
    )


def catalogue_of(folder: Path, terms: dict[str, object]) -> CatalogueSnapshot:
    """A campaign with a budget and these terms for each of the ads."""
    database = ManageDatabase(folder / "manage.db")
    campaigns = CampaignStore(database)
    for number in range(CANDIDATES):
        names = {"campaign_id": f"c{number}", "advertiser_id": "acme"}
        money = {"bid_nanos": 2_000_000 + 10_000 * number, "daily_nanos": 10**15}
        campaigns.put_campaign(Campaign(**names, **money, name="c", bid_type="cpm", **terms))
        page = "https://acme.test/"
        campaigns.put_ad(Ad(**names, ad_id=f"a{number}", object_id=f"o{number}", title="Ad", landing_url=page))
    return eligibility.load(database.connection)


def leased(clock: ManualClock, loop: asyncio.AbstractEventLoop) -> Budgets:
    """Leases that pay for all bids."""
    leases = itertools.count(1)

    async def lend(orders: Sequence[LedgerOrder]) -> Sequence[Lease | None]:
        requests = [order for order in orders if isinstance(order, LeaseRequest)]
        return [
            Lease(lease_id=next(leases), campaign_id=request.campaign_id, nanos=10**12, expires_at_us=2**62)
            for request in requests
        ]

    budgets = Budgets("bench", lend)
    for number in range(CANDIDATES):
        budgets.request_lease(f"c{number}", 3_000_000)
    loop.run_until_complete(budgets.renew(clock.wall_us))
    return budgets


def decisions(folder: Path, terms: dict[str, object], shading: Shading) -> Callable[[], object]:
    """Bid decisions of a bidder whose campaigns have these terms, and their records."""
    clock = ManualClock(1_772_366_400_000_000)
    loop = asyncio.new_event_loop()
    catalogue = catalogue_of(folder, terms)
    store = open_store(f"lmdb:{folder / 'lists'}")
    ads = tuple(f"a{number}" for number in range(CANDIDATES))
    store.put_lists("v", {"u": StoredList("v", 1, ads, tuple(-0.1 * number for number in range(CANDIDATES)))})
    store.switch("v")
    rates = {f"c{number}": Rate(multiplier=0.5 + 0.02 * number) for number in range(CANDIDATES)}
    prices_A = ad_prices(catalogue, {}).expected_nanos_A
    objects = ObjectIndex((), catalogue.ads, "")
    numbers = itertools.count()
    bidder = Bidder(
        settings=Settings(public_url="https://ads.test"),
        market=Market(catalogue, prices_A, objects, pacing=campaign_rates(catalogue, rates), shading=shading),
        user_store=UserStore(store, clock),
        budgets=leased(clock, loop),
        generate=None,
        encrypt=TokenKeys({1: bytes(32)}).encrypt_each,
        new_id=lambda: f"id-{next(numbers)}",
        draws=ExplorationDraws(bytes(32)),
        clock=clock,
        ranking=RankingGuard(clock),
    )
    imp = {"id": "1", "banner": {"w": 300, "h": 250}}
    request = openrtb.read(json.dumps({"id": "r", "at": 1, "imp": [imp], "user": {"id": "u"}}).encode())
    party = Party(name="exchange", share="exchange")

    def decide() -> object:
        decision = loop.run_until_complete(respond(request, bidder, clock.wall_us, 1.0, party))
        assert len(decision.rendered) == 1, decision.reason
        return record(request, decision, clock.wall_us, "", is_degraded=False, caller=party.name)

    return decide


def main() -> None:
    value_N, curves = law()
    calls = parts(value_N, curves)
    folders = [Path(tempfile.mkdtemp()) for _ in range(2)]
    calls["off"] = decisions(folders[0], {}, NO_SHADING)
    calls["on"] = decisions(folders[1], {"plan": "even", "shading": True}, Shading.of([market(value_N, curves)]))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            began_s = time.process_time()
            for _ in range(CALLS):
                call()
            times[name].append((time.process_time() - began_s) / CALLS * 1e6)
    result = {f"{name}_us": round(statistics.median(row), 1) for name, row in times.items()}
    added = [on - off for on, off in zip(times["on"], times["off"], strict=True)]
    result["added_us"] = round(statistics.median(added), 1)
    for folder in folders:
        shutil.rmtree(folder)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
