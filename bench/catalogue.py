"""Claim: loading 20,000 ads and filtering them for a request cost a small multiple of the least possible work.

    python bench/catalogue.py

One core, processor time, medians. Each figure is a ratio, so that a busy or a slow machine changes it little:

- ``load_ratio``: `eligibility.load` of 1,000 campaigns with 20,000 ads, over reading the same rows from SQLite as
  tuples;
- ``eligible_ratio``: `CatalogueSnapshot.eligible` for one imp of a request with 103 blocked values, over one
  `numpy.logical_and` of two masks of 20,000 ads.

``load_s`` and ``eligible_us`` are the figures behind the ratios. Ends with one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from leadre import database
from leadre.serve.catalogue import database as schema
from leadre.serve.catalogue import eligibility
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.types import Ad, Campaign, Impression, Request, Targeting

NOON_US = 1_772_366_400_000_000  # 2026-03-01T12:00:00Z
CAMPAIGNS = 1_000
ADS = 20_000


def seconds(call: Callable[[], object], *, rounds: int) -> float:
    """Median processor time of one call."""
    times = []
    for _ in range(rounds):
        started_ns = time.process_time_ns()
        call()
        times.append((time.process_time_ns() - started_ns) / 1e9)
    return statistics.median(times)


def fill(path: Path) -> None:
    """Write the catalogue: a third of the campaigns without countries, every ad with two sizes and one category."""
    countries = [frozenset(), frozenset({"USA"}), frozenset({"DEU", "FRA"})]
    campaigns = [
        Campaign(
            campaign_id=f"c{number}",
            advertiser_id="acme",
            name="Autumn",
            bid_type="cpm",
            bid_nanos=2_000_000,
            targeting=Targeting(countries=countries[number % 3], hours=frozenset(range(20))),
        )
        for number in range(CAMPAIGNS)
    ]
    ads = [
        Ad(
            ad_id=f"a{number}",
            object_id=f"o{number}",
            campaign_id=f"c{number % CAMPAIGNS}",
            advertiser_id="acme",
            title="Shoes",
            landing_url="https://www.acme.test/shoes",
            iab_categories=(f"IAB{number % 26}-1",),
            sizes=((300, 250), (number % 9 + 1, 90)),
        )
        for number in range(ADS)
    ]
    manage_database = ManageDatabase(path)
    added = CampaignStore(manage_database).add(campaigns, ads)
    manage_database.close()
    assert added.ads == ADS, added


def main() -> None:
    request = Request(
        request_id="r",
        imps=(Impression(imp_id="1", sizes=((300, 250),)),),
        country="USA",
        blocked_categories=frozenset({"IAB7", "IAB25", "IAB26"}),
        blocked_domains=frozenset(f"bad{number}.test" for number in range(100)),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manage.db"
        fill(path)
        with closing(database.connect(path, schema.MIGRATIONS, read_only=True)) as connection:
            catalogue = eligibility.load(connection)
            load_s = seconds(lambda: eligibility.load(connection), rounds=7)
            tables = ("campaigns", "ads")
            read_s = seconds(
                lambda: [connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables], rounds=7
            )
    masks = [mask_A for mask_A, _ in [catalogue.eligible(request, request.imps[0], NOON_US)] * 2]
    assert 0 < masks[0].sum() < ADS
    eligible_s = seconds(lambda: [catalogue.eligible(request, request.imps[0], NOON_US) for _ in range(100)], rounds=15)
    and_s = seconds(lambda: [np.logical_and(*masks) for _ in range(1000)], rounds=15) / 10
    figures = {
        "ads": ADS,
        "load_ratio": round(load_s / read_s, 1),
        "eligible_ratio": round(eligible_s / and_s, 1),
        "load_s": round(load_s, 3),
        "eligible_us": round(eligible_s * 1e4, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
