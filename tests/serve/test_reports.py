"""Reports equal an independent recount of the raw events, by days of the campaign's zone of 23 to 25 hours."""

import random
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from leadre.clock import SystemClock
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.events import event_log
from leadre.serve.events.records import EventRecord
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import EventRequest, ReportRequest
from leadre.serve.paths import StatePaths
from leadre.serve.processes.writer_state import WriterState
from leadre.units import US_PER_HOUR

from .conftest import make_token

PRICE_NANOS, BILLS_A_DAY = 1_000_000, 20


def us(moment):
    return round(moment.timestamp()) * 1_000_000


def bid(campaign_id, number, at_us):
    return make_token(
        at_us,
        PRICE_NANOS,
        bid_id=f"b{number}",
        request_id=f"r{number}",
        campaign_id=campaign_id,
        expires_at_us=at_us + US_PER_HOUR,
        nonce=number.to_bytes(12),
        may_profile=False,
    )


def recount(log, zones):
    """(campaign, day) -> impressions, clicks, conversions, charged nanos."""
    days = defaultdict(Counter)
    for entry in event_log.read(log):
        if isinstance(entry.record, EventRecord):
            outcome = entry.record.outcome
            moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=outcome.at_us)
            day = days[outcome.campaign_id, moment.astimezone(ZoneInfo(zones[outcome.campaign_id])).date().isoformat()]
            day[outcome.kind] += 1
            day["nanos"] += outcome.charge_nanos
    return {key: (day["imp"], day["click"], day["conv"], day["nanos"]) for key, day in days.items()}


def hours_of(day, zone):
    """The number of hours of a local day."""
    noon = datetime.fromisoformat(f"{day}T12:00").replace(tzinfo=ZoneInfo(zone))
    ends = [noon.replace(hour=0), (noon + timedelta(days=1)).replace(hour=0)]
    return (us(ends[1]) - us(ends[0])) / US_PER_HOUR


@pytest.mark.parametrize("first", [datetime(2026, 3, 27), datetime(2026, 10, 23), datetime(2026, 10, 30)])
def test_reports_and_budgets_follow_local_days_when_clocks_change(tmp_path, campaign, ad, first):
    """Events every quarter of an hour for five days; the budget of a day pays for the first twenty bills."""
    zones = {"rome": "Europe/Rome", "york": "America/New_York", "howe": "Australia/Lord_Howe"}
    paths = StatePaths(folder=tmp_path / "state", store=f"lmdb:{tmp_path / 'lists'}")
    records = ManageDatabase(paths.manage_database)
    budget = {"daily_nanos": BILLS_A_DAY * PRICE_NANOS, "bid_nanos": PRICE_NANOS}
    campaigns = [campaign(campaign_id=name, zone=zone, **budget) for name, zone in zones.items()]
    CampaignStore(records).add(campaigns, [ad(ad_id=f"a-{name}", campaign_id=name) for name in zones])
    records.close()
    writer = WriterState(paths, retain_days=10_000, clock=SystemClock())
    rng = random.Random(0)
    encrypt = TokenKeys.open(paths.token_keys).encrypt
    start_us = us(first.replace(tzinfo=UTC))
    writer.maintain(start_us)
    for number in range(5 * 24 * 4):
        at_us = start_us + number * US_PER_HOUR // 4
        events = [
            EventRequest(
                kind=kind,
                token=encrypt(bid(name, 10 * number + index, at_us), kind),
                at_us=at_us,
                price_nanos=1_000_000,
            )
            for index, name in enumerate(zones)
            for kind in ("bill", "imp", *(["click"] if rng.random() < 0.3 else []))
        ]
        *_, report = writer.handle([*events, ReportRequest(list(zones), start_us, at_us + 1)], at_us)
    shown = {
        (row.campaign_id, row.day): (row.impressions, row.clicks, row.conversions, row.charged_nanos)
        for row in report.days
    }
    assert shown == recount(paths.events, zones), "the last events included"
    for name, zone in zones.items():
        whole = [key for key in sorted(shown) if key[0] == name][1:-1]
        assert [shown[key][3] for key in whole] == [BILLS_A_DAY * PRICE_NANOS] * len(whole)
        assert [shown[key][0] for key in whole] == [4 * hours_of(day, zone) for _, day in whole]
    writer.close()
    writer = WriterState(paths, retain_days=10_000, clock=SystemClock())
    assert writer.handle([ReportRequest(list(zones), start_us, at_us + 1)], at_us) == [report], "equal after a restart"
    writer.close()
