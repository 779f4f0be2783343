"""Claim: the rates of 10,000 paced campaigns cost worker and writer what changed, not what there is.

    python bench/pacing_refresh.py

One writer's `PacingState` over a ledger and one worker's rates, with `CAMPAIGNS` campaigns under a plan, whose ticks
are spread over a minute. Of each second: the writer's tick, and the reply with msgpack both ways and the worker's rates
of it, from the changes and from all campaigns. Milliseconds of processor time, medians of `SECONDS`.
Ends with one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from leadre.auction.budget.ledger import Ledger
from leadre.auction.pacing.contract import Rate
from leadre.clock import ManualClock
from leadre.serve.bidding.pace import CampaignRates, campaign_rates
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.ipc.messages import MAX_ITEMS, PacingReply
from leadre.serve.paths import StatePaths
from leadre.serve.processes.catalogue_sync import CatalogueSync
from leadre.serve.processes.pacing_state import PacingState
from leadre.types import Ad, Campaign
from leadre.units import US_PER_S

CAMPAIGNS, SECONDS = 10_000, 30
NOON_US = 1_772_366_400_000_000


def fill(paths: StatePaths) -> None:
    database = ManageDatabase(paths.manage_database)
    campaigns = [
        Campaign(
            campaign_id=f"c{n}",
            advertiser_id="acme",
            name="c",
            bid_type="cpm",
            bid_nanos=10**6,
            daily_nanos=10**10,
            plan="even",
        )
        for n in range(CAMPAIGNS)
    ]
    page = "https://acme.test/"
    ads = [
        Ad(ad_id=f"a{n}", object_id="o", campaign_id=f"c{n}", advertiser_id="acme", title="Ad", landing_url=page)
        for n in range(CAMPAIGNS)
    ]
    added = CampaignStore(database).add(campaigns, ads)
    assert not added.refused, added.refused[:3]
    database.close()


def read(state: PacingState, after: int, instance: str) -> PacingReply:
    """The reply as a worker decodes it."""
    encoded = msgspec.msgpack.encode(state.changes(after, instance, MAX_ITEMS))
    return msgspec.msgpack.decode(encoded, type=PacingReply)


def rates_of(reply: PacingReply) -> dict[str, Rate]:
    return {paced.campaign_id: Rate(paced.participate, paced.multiplier) for paced in reply.campaigns}


def measure(state: PacingState, ledger: Ledger, catalogue: CatalogueSnapshot) -> dict[str, float]:
    times: dict[str, list[float]] = {"tick": [], "changes": [], "all": []}

    def timed(name: str, call: Callable[[], CampaignRates | None]) -> CampaignRates | None:
        began_s = time.process_time()
        result = call()
        times[name].append(1000 * (time.process_time() - began_s))
        return result

    now_us = NOON_US
    for _ in range(70):  # all have ticked, and their ticks are spread
        state.tick(ledger.connection, now_us)
        now_us += US_PER_S
    seen = read(state, 0, "")
    rates = campaign_rates(catalogue, rates_of(seen))
    assert rates is not None
    known = rates

    def changed() -> CampaignRates:
        nonlocal seen
        seen = read(state, seen.last, seen.instance)
        return known.changed(catalogue, rates_of(seen))

    for _ in range(SECONDS):
        timed("tick", lambda: state.tick(ledger.connection, now_us))  # noqa: B023
        whole = timed("all", lambda: campaign_rates(catalogue, rates_of(read(state, 0, ""))))
        updated = timed("changes", changed)
        assert whole is not None and updated is not None and whole.logged_C == updated.logged_C
        known = updated
        now_us += US_PER_S
    return {f"{name}_ms": round(statistics.median(row), 2) for name, row in times.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = StatePaths(folder=folder, store=f"lmdb:{folder / 'lists'}")
        fill(paths)
        with Ledger(paths.ledger) as ledger:
            sync = CatalogueSync(paths, ledger, 600, ManualClock(NOON_US))
            sync.set_budgets(NOON_US)
            print(json.dumps(measure(PacingState(sync, 600), ledger, sync.catalogue)))
            sync.close()


if __name__ == "__main__":
    main()
