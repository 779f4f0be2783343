"""Counters that the writer derives from the event log: events by ad, events and charges by campaign and day."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from leadre.auction.budget.days import day_of
from leadre.serve.events.records import EventRecord
from leadre.serve.ipc.messages import MAX_ITEMS, CampaignDay, ReportReply, ReportRequest

COUNT_COLUMNS = {"imp": 0, "click": 1, "conv": 2}  # kind of event -> its column; other kinds are not counted


class EventCounts:
    """Totals of all events but those of tests. ``zone_of``: campaign ID -> IANA time zone, whose days are counted."""

    def __init__(self, zone_of: Callable[[str], str]) -> None:
        self._zone_of = zone_of
        self._by_ad: dict[str, tuple[int, int, int]] = {}
        self._by_day: dict[tuple[str, str], tuple[int, int, int, int]] = defaultdict(lambda: (0, 0, 0, 0))

    def add(self, record: EventRecord) -> None:
        """Count one event of the log; its charge counts on the day of the event."""
        if record.is_test:
            return
        outcome = record.outcome
        column = COUNT_COLUMNS.get(outcome.kind)
        day = day_of(outcome.at_us, self._zone_of(outcome.campaign_id)).isoformat()
        day_totals = list(self._by_day[outcome.campaign_id, day])
        day_totals[3] += outcome.charge_nanos
        if column is not None:
            day_totals[column] += 1
            counts = list(self._by_ad.get(outcome.ad_id, (0, 0, 0)))
            counts[column] += 1
            self._by_ad[outcome.ad_id] = (counts[0], counts[1], counts[2])
        self._by_day[outcome.campaign_id, day] = (day_totals[0], day_totals[1], day_totals[2], day_totals[3])

    def totals(self) -> tuple[dict[str, tuple[int, int, int]], list[tuple[str, str, tuple[int, int, int, int]]]]:
        """All totals by ad, and by campaign and day, for `restore`."""
        return dict(self._by_ad), [(*key, totals) for key, totals in self._by_day.items()]

    def restore(
        self,
        by_ad: Mapping[str, tuple[int, int, int]],
        by_day: Iterable[tuple[str, str, tuple[int, int, int, int]]],
    ) -> None:
        """Replace all totals by those that `totals` returned."""
        self._by_ad = dict(by_ad)
        self._by_day.clear()
        self._by_day |= {(campaign_id, day): totals for campaign_id, day, totals in by_day}

    def by_ad(self, start: int) -> tuple[dict[str, tuple[int, int, int]], int]:
        """(ad ID -> (impressions, clicks, conversions), next start), as in `CountsReply`; ads in order of arrival."""
        part = dict(itertools.islice(self._by_ad.items(), start, start + MAX_ITEMS))
        end = start + len(part)
        return part, end if end < len(self._by_ad) else 0

    def days(self, request: ReportRequest) -> ReportReply:
        """Days of the requested campaigns that overlap the requested span, sorted by campaign and day."""
        campaigns = set(request.campaigns)
        keys = (key for key in self._by_day if key[0] in campaigns and key > request.after)
        days = sorted(key for key in keys if self._overlaps(*key, request))
        part = [CampaignDay(*key, *self._by_day[key]) for key in days[:MAX_ITEMS]]
        return ReportReply(part, has_more=len(days) > MAX_ITEMS)

    def _overlaps(self, campaign_id: str, day: str, request: ReportRequest) -> bool:
        zone = self._zone_of(campaign_id)
        last_us = max(request.from_us, request.to_us - 1)
        return day_of(request.from_us, zone).isoformat() <= day <= day_of(last_us, zone).isoformat()
