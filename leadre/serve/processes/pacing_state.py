"""Pacing of all campaigns with a plan or a goal, in the writer: one state for all workers.

It follows from the event log and the ledger. A request record counts the auctions in which a campaign could have bid,
and opens its bids; an event closes them. A tick reads the charges of the day from the ledger and computes how a
campaign bids until the next one, by its plan and its goal (`goal_tracking`). The snapshot of the counters keeps the
state, so a start adds the log records behind it.
"""

from __future__ import annotations

import itertools
import secrets
import sqlite3
import zlib
from collections import Counter
from collections.abc import Collection
from datetime import date
from typing import Any, NamedTuple

import msgspec

from leadre import telemetry
from leadre.auction import goal
from leadre.auction.budget.days import SLOT_US, day_of_slot, quarters_of_day
from leadre.auction.budget.sums import sum_of
from leadre.auction.pacing import day as pacing_day
from leadre.auction.pacing import plan as plans
from leadre.auction.pacing.contract import MAX_EARLY, UNPACED, WAITING, Rate
from leadre.auction.pacing.day import CampaignDay, DayFigures, PacingRules
from leadre.auction.pacing.plan import FORECAST_DAYS, QUARTERS
from leadre.serve.events.records import EventRecord, RequestRecord
from leadre.serve.ipc.messages import CampaignPacing, GoalFigures, PacingReply
from leadre.serve.processes.catalogue_sync import CatalogueSync
from leadre.serve.processes.goal_tracking import GoalTracking
from leadre.serve.processes.open_money import OpenMoney, OpenSums
from leadre.serve.processes.pacing_snapshot import PacedSnapshot, Traffic, pack, unpack
from leadre.types import Campaign
from leadre.units import US_PER_S

TICK_US = 60 * US_PER_S  # between two ticks of a campaign; the ticks of campaigns are spread over it


STATES = ("wait", "less", "full")


class _Change(NamedTuple):
    """The pacing of a campaign, and the number of the change that it came with."""

    number: int
    pacing: CampaignPacing


class _Shown:
    """Campaigns as workers and management read them, oldest change first. ``states``: how many bid as in `STATES`."""

    def __init__(self) -> None:
        self._instance = secrets.token_hex(8)
        self._changes = 0
        self._by_campaign: dict[str, _Change] = {}
        self.states: Counter[str] = Counter()

    def set(self, pacing: CampaignPacing) -> None:
        self.remove(pacing.campaign_id)
        self._changes += 1
        self._by_campaign[pacing.campaign_id] = _Change(self._changes, pacing)
        self.states[_state(pacing)] += 1

    def remove(self, campaign_id: str) -> None:
        change = self._by_campaign.pop(campaign_id, None)
        if change is not None:
            self.states[_state(change.pacing)] -= 1

    def keep(self, campaign_ids: Collection[str]) -> None:
        """Remove all other campaigns."""
        for campaign_id in self._by_campaign.keys() - campaign_ids:
            self.remove(campaign_id)

    def changes(self, after: int, instance: str, limit: int) -> PacingReply:
        """The reply to a `PacingRequest`, of at most ``limit`` campaigns."""
        if instance != self._instance:
            after = 0
        newest_first = itertools.takewhile(lambda change: change.number > after, reversed(self._by_campaign.values()))
        changes = list(newest_first)[::-1]
        part = changes[:limit]
        return PacingReply(
            campaigns=[change.pacing for change in part],
            last=part[-1].number if part else after,
            instance=self._instance,
            has_more=len(part) < len(changes),
        )


class _TickTimes:
    """The time of the next tick of each campaign: spread over the minute, earlier after a burst of auctions or bids."""

    def __init__(self) -> None:
        self._due_us: dict[str, int] = {}
        self._until_early: dict[str, float] = {}  # auctions before an early tick
        self._until_now: dict[str, float] = {}  # nanos of bids before a tick at once

    def is_due(self, campaign_id: str, now_us: int) -> bool:
        """Whether a tick is due; if so, the next one is a minute later."""
        due_us = self._due_us.get(campaign_id, 0)
        if due_us - TICK_US <= now_us < due_us:
            return False
        is_first = campaign_id not in self._due_us
        offset_us = zlib.crc32(campaign_id.encode()) % TICK_US if is_first else 0
        self._due_us[campaign_id] = now_us + TICK_US - offset_us
        return True

    def set_burst(self, campaign_id: str, auctions: float, nanos: float) -> None:
        """The next tick is early after so many auctions, and at once after bids for so much money."""
        self._until_early[campaign_id] = auctions
        self._until_now[campaign_id] = nanos

    def add(self, campaign_id: str, eligible: int) -> None:
        """Count auctions; after a burst the next tick is brought forward."""
        if self._is_used_up(self._until_early, campaign_id, eligible):
            self._due_us[campaign_id] -= TICK_US - TICK_US // MAX_EARLY

    def add_bid(self, campaign_id: str, nanos: int, now_us: int) -> None:
        """Count the money of a bid; after a burst of bids the next tick is now."""
        if self._is_used_up(self._until_now, campaign_id, nanos):
            self._due_us[campaign_id] = now_us

    def _is_used_up(self, left: dict[str, float], campaign_id: str, amount: float) -> bool:
        """Take the amount off what is left; whether nothing is left now. The next tick sets it again."""
        if campaign_id not in left or campaign_id not in self._due_us:
            return False
        left[campaign_id] -= amount
        if left[campaign_id] > 0:
            return False
        del left[campaign_id]
        return True

    def forget(self, campaign_id: str) -> None:
        self._due_us.pop(campaign_id, None)
        self._until_early.pop(campaign_id, None)
        self._until_now.pop(campaign_id, None)

    def keep(self, campaign_ids: Collection[str]) -> None:
        """Forget all other campaigns."""
        for campaign_id in self._due_us.keys() - campaign_ids:
            self.forget(campaign_id)


class PacingState:
    """States of the campaigns with a plan or a goal. ``exp_s``: `Settings.exp_s`."""

    def __init__(self, catalogue_sync: CatalogueSync, exp_s: int) -> None:
        self._sync = catalogue_sync
        self._catalogue: object = None  # whose plans are followed
        self._campaigns: dict[str, Campaign] = {}  # with a plan or a goal
        self._planned: dict[str, Campaign] = {}
        self._aimed: dict[str, Campaign] = {}  # with a goal
        self._days: dict[str, CampaignDay] = {}
        self._shown = _Shown()
        self._traffic: dict[str, Traffic] = {}
        self._open = OpenMoney(exp_s)
        self._goals = GoalTracking()
        self._ticks = _TickTimes()
        self._last_us = 0  # time of the newest request

    def add(self, record: RequestRecord | EventRecord) -> None:
        """Add a record of the log: eligible auctions and bids of a request, or the effect of an event on its bid."""
        if record.is_test:
            return
        self._follow()
        if isinstance(record, EventRecord):
            campaign_id = record.outcome.campaign_id
            if (campaign := self._planned.get(campaign_id)) is not None:
                self._open.close(campaign, record.outcome)
            if (campaign := self._aimed.get(campaign_id)) is not None:
                self._goals.add_event(campaign, record)
            return
        self._last_us = record.at_us
        for paced in record.paced:
            if paced.eligible and paced.campaign_id in self._planned:
                zone = self._planned[paced.campaign_id].zone
                _count(self._traffic.setdefault(paced.campaign_id, {}), zone, paced.eligible, record.at_us)
                self._ticks.add(paced.campaign_id, paced.eligible)
        for bid in record.bids:
            if (campaign := self._planned.get(bid.campaign_id)) is not None:
                day, _, _ = day_of_slot(record.at_us // SLOT_US, campaign.zone)
                self._open.add(campaign, day.isoformat(), bid, record.at_us)
                self._ticks.add_bid(bid.campaign_id, bid.reserved_nanos or bid.price_nanos, record.at_us)

    def tick(self, ledger: sqlite3.Connection, now_us: int) -> None:
        """Compute the rates of the campaigns whose tick is due."""
        self._follow()
        self._open.expire(now_us)
        for campaign_id, campaign in self._campaigns.items():
            if not self._ticks.is_due(campaign_id, now_us):
                continue
            if campaign_id in self._planned:
                figures = _figures(ledger, campaign, self._open, self._traffic.get(campaign_id, {}), now_us)
                day = pacing_day.tick(self._days.get(campaign_id), _rules(campaign), figures)
                self._days[campaign_id] = day
                if campaign_id not in self._aimed:  # a goal learns once a minute
                    self._ticks.set_burst(campaign_id, day.burst, day.burst_nanos)
            if campaign_id in self._aimed:
                self._goals.tick(campaign, now_us)
            self._show(campaign_id, now_us)
        for state in STATES:
            telemetry.PACED_CAMPAIGNS.labels(state).set(self._shown.states[state])

    def changes(self, after: int, instance: str, limit: int) -> PacingReply:
        """The reply to a `PacingRequest`, of at most ``limit`` campaigns; the totals of goals are those of now."""
        reply = self._shown.changes(after, instance, limit)
        return msgspec.structs.replace(reply, campaigns=list(map(self._with_totals, reply.campaigns)))

    def snapshot(self) -> bytes:
        """The states, for `restore`."""
        self._follow()
        campaigns = [
            PacedSnapshot(
                campaign_id=name,
                day=self._days.get(name),
                traffic_Q=self._traffic.get(name, {}),
                sums=self._open.sums(name) if name in self._planned else OpenSums(),
                goal_state=self._goals.state(name),
            )
            for name in self._campaigns
        ]
        return pack(self._last_us, campaigns)

    def restore(self, packed: bytes) -> None:
        """Take over the states of a snapshot, as far as this release can read them."""
        self._follow()
        self._last_us, campaigns = unpack(packed, self._campaigns)
        for paced in campaigns:
            name = paced.campaign_id
            if name in self._planned:
                self._traffic[name] = paced.traffic_Q
                self._open.restore(self._planned[name], paced.sums, self._last_us)
                if paced.day is not None:
                    self._days[name] = paced.day
            is_known = name in self._days
            if name in self._aimed:
                goal_state = paced.goal_state
                is_known = goal_state is not None and self._goals.restore(self._aimed[name], goal_state)
            if is_known:
                self._show(name, self._last_us)

    def _follow(self) -> None:
        """Follow the catalogue: forget campaigns that have no plan or goal any more."""
        catalogue = self._sync.catalogue
        if catalogue is self._catalogue:
            return
        self._catalogue = catalogue
        self._planned = {c.campaign_id: c for c in catalogue.campaigns if c.has_plan}
        self._aimed = {c.campaign_id: c for c in catalogue.campaigns if c.has_goal}
        self._campaigns = self._planned | self._aimed
        self._shown.keep(self._campaigns.keys())
        by_campaign: tuple[tuple[dict[str, Any], dict[str, Campaign]], ...] = (
            (self._days, self._planned),
            (self._traffic, self._planned),
        )
        for states, kept in by_campaign:
            for campaign_id in states.keys() - kept.keys():
                del states[campaign_id]
        self._ticks.keep(self._campaigns.keys())
        self._open.keep(self._planned.keys())
        for campaign_id in self._goals.follow(self._aimed):  # the multiplier of another goal holds no more
            if campaign_id in self._campaigns:
                self._shown.set(_shown(campaign_id, self._days.get(campaign_id), WAITING, None))
            self._ticks.forget(campaign_id)

    def _show(self, campaign_id: str, now_us: int) -> None:
        """Set how workers and management see a campaign."""
        day = self._days.get(campaign_id)
        rate = UNPACED if day is None else day.rate
        goal_figures = None
        if campaign_id in self._aimed:
            factors = self._goals.factors(campaign_id, rate)
            rate = Rate(rate.participate, goal.multiplier(factors), factors)
            goal_figures = self._goals.figures(campaign_id, factors, now_us)
        self._shown.set(_shown(campaign_id, day, rate, goal_figures))

    def _with_totals(self, shown: CampaignPacing) -> CampaignPacing:
        """The pacing of a campaign with the totals of its goal as they are now."""
        if shown.goal is None:
            return shown
        return msgspec.structs.replace(shown, goal=self._goals.with_totals(shown.campaign_id, shown.goal))


def _state(paced: CampaignPacing) -> str:
    """How a campaign bids, as in `STATES`."""
    share = paced.participate * paced.multiplier
    if not share:
        return "wait"
    return "less" if share < 1.0 else "full"


def _rules(campaign: Campaign) -> PacingRules:
    hours = tuple(sorted(campaign.targeting.hours))
    return PacingRules(campaign.plan, campaign.pacer, campaign.hour_shares, hours)


def _count(traffic: Traffic, zone: str, eligible: int, at_us: int) -> None:
    """Count the auctions of a request; of earlier days as many are kept as a forecast reads."""
    day, start_us, _ = day_of_slot(at_us // SLOT_US, zone)
    name = day.isoformat()
    if name not in traffic:
        traffic[name] = [0] * QUARTERS
        for oldest in sorted(traffic)[: -FORECAST_DAYS - 1]:
            del traffic[oldest]
    if name in traffic:
        traffic[name][quarters_of_day(day, zone)[(at_us - start_us) // SLOT_US]] += eligible


def _figures(
    ledger: sqlite3.Connection, campaign: Campaign, open_money: OpenMoney, traffic: Traffic, now_us: int
) -> DayFigures:
    day, start_us, end_us = day_of_slot(now_us // SLOT_US, campaign.zone)
    name = day.isoformat()
    campaign_id = campaign.campaign_id
    charged_nanos = sum_of(ledger, "charged_nanos", campaign_id, day)
    opens_us = max(start_us, min(campaign.starts_at_us, end_us))
    last_us = campaign.ends_at_us or end_us
    closes_us = max(opens_us, min(last_us, end_us))
    total_left_nanos = None
    if campaign.total_nanos:
        earlier_nanos = sum_of(ledger, "charged_nanos", campaign_id, None) - charged_nanos
        total_left_nanos = campaign.total_nanos - earlier_nanos
    length_us = end_us - start_us
    return DayFigures(
        day=name,
        position=(now_us - start_us) / length_us,
        budget_nanos=pacing_day.day_budget_nanos(
            campaign.daily_nanos, total_left_nanos, closes_us - opens_us, last_us - opens_us
        ),
        spent_nanos=open_money.spent_nanos(campaign, name, charged_nanos),
        eligible=sum(traffic.get(name, ())),
        traffic_DQ=[
            plans.by_quarter(eligible_Q, quarters_of_day(date.fromisoformat(other), campaign.zone))
            for other, eligible_Q in sorted(traffic.items())
            if other < name
        ],
        opens=(opens_us - start_us) / length_us,
        closes=(closes_us - start_us) / length_us,
        quarter_S=quarters_of_day(day, campaign.zone),
    )


def _shown(campaign_id: str, day: CampaignDay | None, rate: Rate, goal_figures: GoalFigures | None) -> CampaignPacing:
    return CampaignPacing(
        campaign_id=campaign_id,
        participate=rate.participate,
        multiplier=rate.multiplier,
        budget_nanos=day.budget_nanos if day else 0,
        spent_nanos=round(day.spent_nanos) if day else 0,
        planned_nanos=round(day.planned_nanos) if day else 0,
        has_forecast=bool(day and day.forecast_Q),
        goal=goal_figures,
    )
