"""Campaigns of the soak: an account each, budgets that end half-way, and groups of users with lists of their ads."""

from __future__ import annotations

import time
from dataclasses import dataclass

from leadre.store.contract import StoredList

from ..bidder import Bidder

# Names of groups -> (share of the requests, users with a list, fields of the campaign); budgets are for one second.
GROUPS: dict[str, tuple[float, int, dict[str, object]]] = {
    "open": (0.2, 50, {"bid_type": "cpm", "bid_nanos": 3_000_000}),
    "scarce": (0.15, 50, {"bid_type": "cpm", "bid_nanos": 2_500_001, "total_nanos": 5_000_000}),
    "daily": (0.1, 50, {"bid_type": "cpm", "bid_nanos": 2_999_999, "daily_nanos": 3_000_000, "zone": "Asia/Kolkata"}),
    "capped": (0.1, 100, {"bid_type": "cpm", "bid_nanos": 4_000_000, "cap_per_day": 3}),
    "clicks": (0.1, 50, {"bid_type": "cpc", "bid_nanos": 40_000_000, "total_nanos": 14_000_000}),
    "orders": (0.1, 50, {"bid_type": "cpa", "bid_nanos": 90_000_007, "total_nanos": 16_000_000}),
    "paused": (0.05, 20, {"bid_type": "cpm", "bid_nanos": 5_000_000}),
    "greedy": (0.02, 10, {"bid_type": "cpm", "bid_nanos": 10**16, "total_nanos": 10**18}),  # the largest amounts
}
FAR = -20.0  # log-probability of the ad for when the group's own cannot be bid
USUAL_RATE = 40.0  # requests a second for which the budgets are


@dataclass(frozen=True)
class Group:
    """Users whose lists begin with one ad, and that ad's campaign."""

    share: float
    users: tuple[str, ...]
    campaign_id: str
    ad_id: str
    bid_type: str
    bid_nanos: int
    total_nanos: int
    daily_nanos: int
    cap_per_day: int


def create(bidder: Bidder, seconds: float, rate: float) -> dict[str, Group]:
    """Create all campaigns, and store the lists of their users. Budgets are for about half of the run."""
    groups = {}
    for name, (share, users, fields) in GROUPS.items():
        scaled = dict(fields)
        for field in ("total_nanos", "daily_nanos") if name != "greedy" else ():
            if field in fields:
                scaled[field] = round(int(str(fields[field])) * seconds * rate / USUAL_RATE)
        campaign_id, ad_id = bidder.campaign(**scaled)
        numbers = {key: int(str(scaled.get(key, 0))) for key in ("total_nanos", "daily_nanos", "cap_per_day")}
        groups[name] = Group(
            share=share,
            users=tuple(f"soak-{name}-{number:04d}" for number in range(users)),
            campaign_id=campaign_id,
            ad_id=ad_id,
            bid_type=str(fields["bid_type"]),
            bid_nanos=int(str(fields["bid_nanos"])),
            **numbers,
        )
    bidder.list_for("soak-first", groups["open"].ad_id)  # on return the workers have read all campaigns
    store = bidder.store()
    version = store.versions().current
    assert version is not None
    fallback = groups["open"].ad_id
    for group in groups.values():
        ads = (group.ad_id, fallback) if group.ad_id != fallback else (fallback,)
        stored = StoredList(version, time.time_ns() // 1000, ads, (0.0, FAR)[: len(ads)])
        store.put_lists(version, dict.fromkeys(group.users, stored))
    store.close()
    return groups
