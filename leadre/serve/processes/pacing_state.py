"""Pacing of all campaigns with a plan, in the writer: one state for all workers.

It follows from the event log and the ledger. A request record counts the auctions in which a campaign could have bid,
and opens its bids; an event closes them. A tick reads the charges of the day from the ledger and computes how a
campaign bids until the next one. The snapshot of the counters keeps the state, so a start adds the log records behind
it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections import Counter
from datetime import date
from typing import Any

import msgspec

from leadre import telemetry
from leadre.auction.budget.days import SLOT_US, day_of_slot, hours_of_day
from leadre.auction.budget.sums import sum_of
from leadre.auction.pacing import day as pacing_day
from leadre.auction.pacing import plan as plans
from leadre.auction.pacing.day import CampaignDay, DayFigures, PacingRules
from leadre.auction.pacing.plan import FORECAST_DAYS, HOURS
from leadre.serve.events.records import EventRecord, PacedCampaign, RequestRecord
from leadre.serve.ipc.messages import CampaignPacing
from leadre.serve.processes.catalogue_sync import CatalogueSync
from leadre.serve.processes.open_money import OpenMoney, OpenSums
from leadre.types import Campaign
from leadre.units import US_PER_S

TICK_US = 60 * US_PER_S  # between two ticks of a campaign; the ticks of campaigns are spread over it


STATES = ("wait", "less", "full")


class PacedSnapshot(msgspec.Struct, frozen=True):
    """One campaign in the snapshot. ``traffic``: day -> auctions of each hour."""

    campaign_id: str
    day: CampaignDay | None
    traffic: dict[str, list[int]]
    sums: OpenSums


class PacingState:
    """States of the campaigns with a plan. ``exp_s``: `Settings.exp_s`."""

    def __init__(self, catalogue_sync: CatalogueSync, exp_s: int) -> None:
        self._sync = catalogue_sync
        self._catalogue: object = None  # whose plans are followed
        self._campaigns: dict[str, Campaign] = {}  # with a plan
        self._days: dict[str, CampaignDay] = {}
        self._shown: dict[str, CampaignPacing] = {}  # the same, as workers and management read it
        self._traffic: dict[str, dict[str, list[int]]] = {}
        self._open = OpenMoney(exp_s)
        self._due_us: dict[str, int] = {}
        self._last_us = 0  # time of the newest request

    def add(self, record: RequestRecord | EventRecord) -> None:
        """Add a record of the log: eligible auctions and bids of a request, or the effect of an event on its bid."""
        if record.is_test:
            return
        self._follow()
        if isinstance(record, EventRecord):
            campaign = self._campaigns.get(record.outcome.campaign_id)
            if campaign is not None:
                self._open.close(campaign, record.outcome)
            return
        self._last_us = record.at_us
        for paced in record.paced:
            if paced.eligible and paced.campaign_id in self._campaigns:
                self._count(paced, record.at_us)
        for bid in record.bids:
            campaign = self._campaigns.get(bid.campaign_id)
            if campaign is not None:
                day, _, _ = day_of_slot(record.at_us // SLOT_US, campaign.zone)
                self._open.add(campaign, day.isoformat(), bid, record.at_us)

    def tick(self, ledger: sqlite3.Connection, now_us: int) -> None:
        """Compute the rates of the campaigns whose tick is due."""
        self._follow()
        self._open.expire(now_us)
        for campaign_id, campaign in self._campaigns.items():
            due_us = self._due_us.get(campaign_id, 0)
            if due_us - TICK_US <= now_us < due_us:
                continue
            is_first = campaign_id not in self._due_us
            offset_us = zlib.crc32(campaign_id.encode()) % TICK_US if is_first else 0
            self._due_us[campaign_id] = now_us + TICK_US - offset_us
            figures = self._figures(ledger, campaign, now_us)
            day = pacing_day.tick(self._days.get(campaign_id), _rules(campaign), figures)
            self._set(campaign_id, day)
        states = Counter(map(_state, self._shown.values()))
        for state in STATES:
            telemetry.PACED_CAMPAIGNS.labels(state).set(states[state])

    def rates(self, start: int, limit: int) -> tuple[list[CampaignPacing], int]:
        """(campaigns from number ``start`` on, next start or 0), as in `PacingReply`."""
        campaign_ids = sorted(self._shown)
        part = [self._shown[name] for name in campaign_ids[start : start + limit]]
        end = start + len(part)
        return part, end if end < len(campaign_ids) else 0

    def snapshot(self) -> bytes:
        """The states, for `restore`."""
        self._follow()
        campaigns = [
            PacedSnapshot(name, self._days.get(name), self._traffic.get(name, {}), self._open.sums(name))
            for name in self._campaigns
        ]
        return msgspec.msgpack.encode((self._last_us, campaigns))

    def restore(self, packed: bytes) -> None:
        """Take over the states of a snapshot. Those of another release are forgotten."""
        self._follow()
        with contextlib.suppress(msgspec.DecodeError):
            self._last_us, campaigns = msgspec.msgpack.decode(packed, type=tuple[int, list[PacedSnapshot]])
            for paced in campaigns:
                campaign = self._campaigns.get(paced.campaign_id)
                if campaign is not None:
                    self._traffic[paced.campaign_id] = paced.traffic
                    self._open.restore(campaign, paced.sums, self._last_us)
                    if paced.day is not None:
                        self._set(paced.campaign_id, paced.day)

    def _follow(self) -> None:
        """Follow the catalogue: forget campaigns that have no plan any more."""
        catalogue = self._sync.catalogue
        if catalogue is self._catalogue:
            return
        self._catalogue = catalogue
        self._campaigns = {c.campaign_id: c for c in catalogue.campaigns if c.plan != "asap"}
        by_campaign: tuple[dict[str, Any], ...] = (self._days, self._shown, self._traffic, self._due_us)
        for states in by_campaign:
            for campaign_id in states.keys() - self._campaigns.keys():
                del states[campaign_id]
        self._open.keep(self._campaigns.keys())

    def _set(self, campaign_id: str, day: CampaignDay) -> None:
        self._days[campaign_id] = day
        self._shown[campaign_id] = _shown(campaign_id, day)

    def _count(self, paced: PacedCampaign, at_us: int) -> None:
        zone = self._campaigns[paced.campaign_id].zone
        day, start_us, _ = day_of_slot(at_us // SLOT_US, zone)
        traffic = self._traffic.setdefault(paced.campaign_id, {})
        name = day.isoformat()
        if name not in traffic:
            traffic[name] = [0] * HOURS
            for oldest in sorted(traffic)[: -FORECAST_DAYS - 1]:
                del traffic[oldest]
        if name in traffic:
            traffic[name][hours_of_day(day, zone)[(at_us - start_us) // SLOT_US]] += paced.eligible

    def _figures(self, ledger: sqlite3.Connection, campaign: Campaign, now_us: int) -> DayFigures:
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
        traffic = self._traffic.get(campaign_id, {})
        length_us = end_us - start_us
        return DayFigures(
            day=name,
            position=(now_us - start_us) / length_us,
            budget_nanos=pacing_day.day_budget_nanos(
                campaign.daily_nanos, total_left_nanos, closes_us - opens_us, last_us - opens_us
            ),
            spent_nanos=self._open.spent_nanos(campaign, name, charged_nanos),
            eligible=sum(traffic.get(name, ())),
            traffic_DH=[
                plans.by_hour(eligible_H, hours_of_day(date.fromisoformat(other), campaign.zone))
                for other, eligible_H in sorted(traffic.items())
                if other < name
            ],
            opens=(opens_us - start_us) / length_us,
            closes=(closes_us - start_us) / length_us,
            hour_S=hours_of_day(day, campaign.zone),
        )


def _state(paced: CampaignPacing) -> str:
    """How a campaign bids, as in `STATES`."""
    share = paced.participate * paced.multiplier
    if not share:
        return "wait"
    return "less" if share < 1.0 else "full"


def _rules(campaign: Campaign) -> PacingRules:
    hours = tuple(sorted(campaign.targeting.hours))
    return PacingRules(campaign.plan, campaign.pacer, campaign.hour_shares, hours)


def _shown(campaign_id: str, day: CampaignDay) -> CampaignPacing:
    rate = day.rate
    return CampaignPacing(
        campaign_id=campaign_id,
        participate=rate.participate,
        multiplier=rate.multiplier,
        budget_nanos=day.budget_nanos,
        spent_nanos=round(day.spent_nanos),
        planned_nanos=round(day.planned_nanos),
        has_forecast=bool(day.forecast_H),
    )
