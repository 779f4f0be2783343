"""Counters that the writer derives from the event log: events by ad, events and charges by campaign and day."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from leadre.auction.budget.days import SLOT_US, day_of, day_of_slot
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
        day = day_of_slot(outcome.at_us // SLOT_US, self._zone_of(outcome.campaign_id))[0].isoformat()
        day_totals = list(self._by_day[outcome.campaign_id, day])
        day_totals[3] += outcome.charge_nanos
        if column is not None:
            day_totals[column] += 1
            counts = list(self._by_ad.get(outcome.ad_id, (0, 0, 0)))
            counts[column] += 1
            self._by_ad[outcome.ad_id] = (counts[0], counts[1], counts[2])
        self._by_day[outcome.campaign_id, day] = (day_totals[0], day_totals[1], day_totals[2], day_totals[3])

    def totals(self) -> tuple[dict[str, tuple[int, int, int]], list[tuple[str, str, tuple[int, int, int, int]]]]:
        """All totals by ad, and by campaign and day, for `extend`."""
        return dict(self._by_ad), [(*key, totals) for key, totals in self._by_day.items()]

    def extend(
        self,
        by_ad: Mapping[str, tuple[int, int, int]],
        by_day: Iterable[tuple[str, str, tuple[int, int, int, int]]],
    ) -> None:
        """Add totals of further events, in the form of `totals`."""
        for ad_id, (impressions, clicks, conversions) in by_ad.items():
            ad_totals = self._by_ad.get(ad_id, (0, 0, 0))
            self._by_ad[ad_id] = (ad_totals[0] + impressions, ad_totals[1] + clicks, ad_totals[2] + conversions)
        for campaign_id, day, sums in by_day:
            days = self._by_day[campaign_id, day]
            self._by_day[campaign_id, day] = (
                days[0] + sums[0],
                days[1] + sums[1],
                days[2] + sums[2],
                days[3] + sums[3],
            )

    def by_ad(self, start: int) -> tuple[dict[str, tuple[int, int, int]], int]:
        """(ad ID -> (impressions, clicks, conversions), next start), as in `CountsReply`; ads in order of arrival."""
        part = dict(itertools.islice(self._by_ad.items(), start, start + MAX_ITEMS))
        end = start + len(part)
        return part, end if end < len(self._by_ad) else 0

    def days(self, request: ReportRequest, *, is_whole: bool) -> ReportReply:
        """Days of the requested campaigns that overlap the requested span, sorted by campaign and day."""
        campaigns = set(request.campaigns)
        keys = (key for key in self._by_day if key[0] in campaigns and key > request.after)
        days = sorted(key for key in keys if self._overlaps(*key, request))
        part = [CampaignDay(*key, *self._by_day[key]) for key in days[:MAX_ITEMS]]
        return ReportReply(part, has_more=len(days) > MAX_ITEMS, is_whole=is_whole)

    def _overlaps(self, campaign_id: str, day: str, request: ReportRequest) -> bool:
        zone = self._zone_of(campaign_id)
        last_us = max(request.from_us, request.to_us - 1)
        return day_of(request.from_us, zone).isoformat() <= day <= day_of(last_us, zone).isoformat()
