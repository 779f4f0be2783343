"""A synthetic market for load: campaigns, ads and a list for every user, written as management and batches write them.

Half of the campaigns have a budget that no load exhausts, some a frequency cap, a country, a type of device or hours;
banners have one to three sizes. A request has three imps of one page and blocks a category and a domain.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leadre.serve.bidding.user_store import EVERYBODY
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.paths import StatePaths
from leadre.store import open_store
from leadre.store.contract import Profile, ProfileEvent, StoredList
from leadre.types import Ad, Campaign, Size, Targeting
from leadre.units import US_PER_DAY

VERSION = "bench"
LISTED = 100  # ads of a user's list
ADS_A_CAMPAIGN = 10
EVENTS = 60  # of a user's history
PAGE = 5_000  # users written at once
SIZES: tuple[Size, ...] = ((300, 250), (728, 90), (320, 50), (160, 600), (970, 250))
IMP_SIZES: tuple[tuple[Size, ...], ...] = (((300, 250), (160, 600)), ((728, 90), (970, 250)), ((320, 50),))
COUNTRIES = ("DEU", "FRA", "USA")
PHONE = 4  # OpenRTB device type


def write(folder: Path, users: int, ads: int, objects: Sequence[str] = (), seed: int = 0) -> None:
    """Fill a state folder with ``ads`` ads and lists of ``users`` users, ``user_id`` by number.

    ``objects``: those of the ads, in turn; users then have histories of `EVENTS` events on them.
    """
    paths = StatePaths(folder=folder, store=f"lmdb:{folder / 'lists'}")
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    database = ManageDatabase(paths.manage_database)
    campaigns = [_campaign(number, rng) for number in range(ads // ADS_A_CAMPAIGN)]
    added = CampaignStore(database).add(campaigns, [_ad(number, rng, objects) for number in range(ads)])
    database.close()
    assert added.ads == ads, added
    store = open_store(paths.store)
    log_p = np.log(1 / np.arange(1, LISTED + 1) / 5)
    ad_ids = [ad_id(number) for number in range(ads)]
    for page in _pages(users):
        store.put_lists(VERSION, {user: _list(ad_ids, log_p, rng) for user in page})
        if objects:
            store.write_profiles(*(_profile(user, objects, rng) for user in page if user != EVERYBODY))
    store.switch(VERSION)
    store.close()


def user_id(number: int) -> str:
    return f"user-{number}"


def ad_id(number: int) -> str:
    return f"ad-{number:06d}"


def request(name: str, user: str, tmax_ms: int = 100) -> dict[str, Any]:
    """A bid request in OpenRTB's JSON; ``name`` is its ID and the site's."""
    imps = [
        {
            "id": str(number),
            "banner": {"format": [{"w": w, "h": h} for w, h in sizes]},
            "bidfloor": 0.1,
            "tagid": f"place-{number}",
            "secure": 1,
        }
        for number, sizes in enumerate(IMP_SIZES, start=1)
    ]
    return {
        "id": name,
        "imp": imps,
        "site": {"domain": f"{name}.example", "page": "https://site.example/a", "cat": ["IAB7-39"]},
        "device": {"geo": {"country": COUNTRIES[0]}, "devicetype": PHONE, "ip": "203.0.113.7"},
        "regs": {"gdpr": 0},  # without it the country decides
        "user": {"buyeruid": user},
        "bcat": ["IAB25"],
        "badv": ["brand-7.example"],
        "cur": ["USD"],
        "tmax": tmax_ms,
    }


def _pages(users: int) -> Iterator[list[str]]:
    user_ids = [EVERYBODY, *map(user_id, range(users))]
    for start in range(0, len(user_ids), PAGE):
        yield user_ids[start : start + PAGE]


def _list(ad_ids: list[str], log_p: np.ndarray[Any, Any], rng: np.random.Generator) -> StoredList:
    chosen = rng.integers(0, len(ad_ids), 2 * LISTED).tolist()
    best = list(dict.fromkeys(chosen))[:LISTED]
    return StoredList(VERSION, time.time_ns() // 1000, tuple(ad_ids[ad] for ad in best), tuple(log_p.tolist()))


def _profile(user: str, objects: Sequence[str], rng: np.random.Generator) -> Profile:
    now_us = time.time_ns() // 1000
    days_ago = np.sort(rng.integers(1, 90, EVENTS))[::-1]
    chosen = rng.integers(0, len(objects), EVENTS)
    recent = tuple(
        ProfileEvent(objects[number], now_us - day * US_PER_DAY, "ad")
        for number, day in zip(chosen.tolist(), days_ago.tolist(), strict=True)
    )
    return Profile(user, recent, updated_at_us=now_us)


def _campaign(number: int, rng: np.random.Generator) -> Campaign:
    draw = rng.random(5)
    return Campaign(
        campaign_id=f"campaign-{number}",
        advertiser_id=f"advertiser-{number % 300}",
        name=f"Campaign {number}",
        bid_type="cpm" if draw[0] < 0.5 else "cpc",
        bid_nanos=int(rng.integers(500_000, 4_000_000)) * (1 if draw[0] < 0.5 else 200),
        daily_nanos=10**15 if draw[1] < 0.5 else 0,
        cap_per_day=1000 if draw[2] < 0.05 else 0,
        targeting=Targeting(
            countries=frozenset(COUNTRIES[:2]) if draw[3] < 0.2 else frozenset(),
            device_types=frozenset({PHONE}) if draw[4] < 0.1 else frozenset(),
            hours=frozenset(range(24)) if draw[4] > 0.9 else frozenset(),
        ),
    )


def _ad(number: int, rng: np.random.Generator, objects: Sequence[str]) -> Ad:
    campaign = number // ADS_A_CAMPAIGN
    sizes = rng.choice(len(SIZES), int(rng.integers(1, 4)), replace=False).tolist()
    return Ad(
        ad_id=ad_id(number),
        object_id=objects[number % len(objects)] if objects else f"object-{number}",
        campaign_id=f"campaign-{campaign}",
        advertiser_id=f"advertiser-{campaign % 300}",
        title=f"Offer number {number} of this season",
        brand=f"Brand {campaign % 300}",
        landing_url=f"https://brand-{campaign % 300}.example/offers/{number}",
        image_url=f"https://brand-{campaign % 300}.example/images/{number}.png",
        adomain=f"brand-{campaign % 300}.example",
        iab_categories=(f"IAB{int(rng.integers(1, 26))}",),
        sizes=tuple(SIZES[size] for size in sizes),
    )
