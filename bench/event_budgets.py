"""Claim: a budget that pays for clicks or conversions is charged to its end, and pays each of them whole.

    python bench/event_budgets.py [BUDGETS]

Replays 1,000 budgets of 20 to 500 clicks over the real ledger and the leases of two workers. A bid reserves the
expected value of an impression, .5 % of a click. Every bid is shown and clicked with that chance, after an exponential
delay of 30 s on average. Demand would spend a budget in 30 minutes, and lasts a day at most. Then the same for a tenth
as many budgets of 20 to 100 conversions at a rate of .05 %, which come after six hours on average,
within seven days, for half a year. Figures, of all budgets and of those below 40 events (``small``):

- ``written_off``: share of the money owed for events that no budget paid; at most .01;
- ``charged``: share of the budgets that was charged; at least .99; ``over``: budgets charged above it; 0;
- ``hours``: median and longest time until less than an event was left.

Ends with one line of JSON.
"""

from __future__ import annotations

import heapq
import json
import random
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from leadre.auction.budget.leases import LeasedBudget
from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Budget, Charge, ChargeResult, Lease, LedgerOrder
from leadre.units import S_PER_DAY, S_PER_HOUR, US_PER_S

EVENT_NANOS = 1_000_000_007  # the price of a click or conversion
START_US = 1_773_100_800 * US_PER_S  # 2026-03-10T00:00:00Z
WORKERS = 2
TURNS = 12  # of a step


@dataclass(frozen=True, kw_only=True)
class Market:
    """Bids and events of a replay. ``spend_s``: seconds in which the demand would spend each budget."""

    rate: float = 0.005
    shown: float = 1.0
    delay_s: float = 30.0
    pending_s: int = 600
    spend_s: float = 1_800.0
    step_s: int = 20
    end_s: float = S_PER_DAY


@dataclass
class Campaign:
    """One budget with the leases of its workers."""

    campaign_id: str
    budget_nanos: int
    leased: list[LeasedBudget]
    bids_per_step: float
    clicks: list[tuple[int, int]] = field(default_factory=list)  # heap of (time in us, lease ID)
    waiting: list[int] = field(default_factory=list)  # bids of the step that each worker has not made
    owed: int = 0
    charged_nanos: int = 0
    ended_s: float = 0.0

    def is_live(self) -> bool:
        return self.budget_nanos - self.charged_nanos >= EVENT_NANOS


def replay(folder: Path, budgets_nanos: list[int], market: Market, seed: int = 0) -> list[Campaign]:
    """The campaigns after their budgets are spent, or the time is over and every event has come."""
    rng = random.Random(seed)
    nanos = int(EVENT_NANOS * market.rate)
    campaigns = [_campaign(f"c{number}", budget, market) for number, budget in enumerate(budgets_nanos)]
    with Ledger(folder / "ledger.db", lease_s=2 * market.step_s) as ledger:
        ledger.connection.execute("PRAGMA synchronous=OFF")  # no claim of this script is about power cuts
        ledger.set_budgets(
            {
                campaign.campaign_id: Budget(
                    total_nanos=campaign.budget_nanos, pending_s=market.pending_s, event_nanos=EVENT_NANOS
                )
                for campaign in campaigns
            },
            START_US,
        )
        second = 0
        active = campaigns
        while active:
            now_us = START_US + second * US_PER_S
            ledger.expire(now_us)
            bidding = [campaign for campaign in active if campaign.is_live() and second < market.end_s]
            for campaign in bidding:
                campaign.waiting = [round(campaign.bids_per_step / WORKERS + rng.random() - 0.5)] * WORKERS
            for turn in range(TURNS):  # leases grow within a step, as workers request them 20 times a second
                at_us = now_us + turn * US_PER_S // 20
                for campaign in bidding:
                    _bid(campaign, nanos, market, at_us, rng)
                has_lease = _exchange(ledger, active, bidding, nanos, at_us)
                if not has_lease or not any(any(campaign.waiting) for campaign in bidding):
                    break
            for campaign in bidding:
                if not campaign.is_live():
                    campaign.ended_s = second
            is_over = second >= market.end_s
            active = [campaign for campaign in active if campaign.clicks or (campaign.is_live() and not is_over)]
            second += market.step_s
        assert ledger.verify() == []
        for campaign in campaigns:
            assert ledger.spent(campaign.campaign_id) == campaign.charged_nanos
            owed_nanos = ledger.written_off(campaign.campaign_id) + campaign.charged_nanos
            assert owed_nanos == campaign.owed * EVENT_NANOS, "every nano is charged or written off"
    return campaigns


def _campaign(name: str, budget_nanos: int, market: Market) -> Campaign:
    bids = budget_nanos / EVENT_NANOS / market.rate / market.shown * market.step_s / market.spend_s
    leased = [LeasedBudget(f"w{worker}", name) for worker in range(WORKERS)]
    return Campaign(name, budget_nanos, leased, bids)


def _bid(campaign: Campaign, nanos: int, market: Market, now_us: int, rng: random.Random) -> None:
    """The waiting bids of a step, as far as the leases pay them."""
    for worker, leased in enumerate(campaign.leased):
        while campaign.waiting[worker]:
            lease_id = leased.reserve(nanos, now_us)
            if not lease_id:
                break
            campaign.waiting[worker] -= 1
            if rng.random() < market.rate * market.shown:
                delay_s = min(rng.expovariate(1 / market.delay_s), market.pending_s)
                heapq.heappush(campaign.clicks, (now_us + round(delay_s * US_PER_S), lease_id))


def _exchange(ledger: Ledger, active: list[Campaign], bidding: list[Campaign], nanos: int, now_us: int) -> bool:
    """One commit: the events that came, releases and lease requests. Returns whether a lease was granted."""
    orders: list[LedgerOrder] = []
    owners: list[Campaign | LeasedBudget | None] = []
    for campaign in active:
        while campaign.clicks and campaign.clicks[0][0] <= now_us:
            at_us, lease_id = heapq.heappop(campaign.clicks)
            key = f"{campaign.campaign_id}/{campaign.owed}"
            campaign.owed += 1
            orders.append(
                Charge(
                    event_id=key,
                    campaign_id=campaign.campaign_id,
                    nanos=EVENT_NANOS,
                    at_us=at_us,
                    lease_id=lease_id,
                    known_until_us=now_us,
                )
            )
            owners.append(campaign)
    for campaign in bidding:
        for leased in campaign.leased:
            releases = leased.releases(now_us)
            orders += releases
            owners += [None] * len(releases)
            if (request := leased.lease_request(nanos, now_us)) is not None:
                orders.append(request)
                owners.append(leased)
    has_lease = False
    for owner, result in zip(owners, ledger.apply(orders, now_us), strict=True):
        if isinstance(owner, Campaign):
            assert isinstance(result, ChargeResult)
            owner.charged_nanos += result.nanos
        elif isinstance(owner, LeasedBudget):
            has_lease = has_lease or isinstance(result, Lease)
            owner.accept(result if isinstance(result, Lease) else None, now_us)
    return has_lease


def figures(campaigns: list[Campaign]) -> dict[str, float]:
    """The figures of the claim."""
    owed_nanos = sum(campaign.owed for campaign in campaigns) * EVENT_NANOS
    charged_nanos = sum(campaign.charged_nanos for campaign in campaigns)
    ended = sorted(campaign.ended_s for campaign in campaigns if campaign.ended_s)
    return {
        "budgets": len(campaigns),
        "events": sum(campaign.owed for campaign in campaigns),
        "written_off": round(1 - charged_nanos / owed_nanos, 5),
        "charged": round(charged_nanos / sum(campaign.budget_nanos for campaign in campaigns), 5),
        "over": sum(campaign.charged_nanos > campaign.budget_nanos for campaign in campaigns),
        "unspent": sum(campaign.is_live() for campaign in campaigns),
        "hours": round(ended[len(ended) // 2] / S_PER_HOUR, 2) if ended else 0.0,
        "longest_hours": round(ended[-1] / S_PER_HOUR, 2) if ended else 0.0,
    }


def budgets_of(count: int, low: int, high: int, seed: int = 0) -> list[int]:
    """Random budgets of ``low`` to ``high`` events, every other of a whole number of them."""
    rng = random.Random(seed)
    return [
        rng.randint(low, high) * EVENT_NANOS + (number % 2) * rng.randrange(EVENT_NANOS // 2) for number in range(count)
    ]


def main(count: int = 1_000) -> dict[str, dict[str, float]]:
    results: dict[str, dict[str, float]] = {}
    conversions = Market(
        rate=0.0005,
        delay_s=6 * S_PER_HOUR,
        pending_s=7 * S_PER_DAY,
        spend_s=7 * S_PER_DAY,
        step_s=S_PER_HOUR,
        end_s=180 * S_PER_DAY,
    )
    for name, market, budgets in (
        ("clicks", Market(), budgets_of(count, 20, 500)),
        ("conversions", conversions, budgets_of(max(1, count // 10), 20, 100)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            campaigns = replay(Path(folder), budgets, market)
        results[name] = figures(campaigns)
        small = [campaign for campaign in campaigns if campaign.budget_nanos < 40 * EVENT_NANOS]
        if small:
            results[f"{name}_small"] = figures(small)
    return results


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:]))))
