"""Pacing in the writer: what it counts, how a day runs through a real ledger, kills, and attacks on a multiplier."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from leadre import telemetry
from leadre.serve.ipc.messages import EventRequest
from leadre.serve.paths import StatePaths
from leadre.serve.processes.pacing_state import STATES, TICK_US
from leadre.serve.processes.writer_state import WriterState
from leadre.types import Targeting
from leadre.units import US_PER_HOUR, US_PER_S

from ..alone import NOON_US, Alone, pacing_of, urls_of
from ..bidding.test_respond import offer

BY_HOUR = Path(__file__).parent.parent / "golden" / "pacing_by_hour.json"
MIDNIGHT_US = NOON_US - 12 * US_PER_HOUR
PLAN = {"plan": "even", "bid_nanos": 2_000_000}  # a CPM of 2


class Day:
    """Requests of a day to one bidder whose writer paces the campaign of ad ``a``."""

    def __init__(self, folder, **terms):
        self.alone = Alone(folder)
        self.alone.clock.wall_us = MIDNIGHT_US
        offer(self.alone, "a", **PLAN | terms)
        self.alone.put_list("*", "a")
        self.renew()

    def renew(self):
        self.alone.renew()

    def wait(self, seconds):
        self.alone.clock.wall_us += seconds * US_PER_S
        self.alone.clock.elapsed_s += seconds
        self.renew()

    def request(self, **fields):
        """Send a request; the rendered bid, or None."""
        return next(iter(self.alone.bid_logged(**fields).rendered), None)

    @property
    def pacing(self):
        (campaign,) = pacing_of(self.alone.writer, self.alone.clock.wall_us)
        return campaign


@pytest.fixture
def day(tmp_path):
    days = []

    def open_day(**terms):
        days.append(Day(tmp_path / f"state{len(days)}", **terms))
        return days[-1]

    yield open_day
    for opened in days:
        opened.alone.__exit__()


def post_bill(day, rendered, nanos):
    token = re.search(r"[?&]t=([^&]+)", urls_of(rendered)["bill"])[1]
    now_us = day.alone.clock.wall_us
    request = EventRequest(kind="bill", token=token, at_us=now_us, price_nanos=nanos)
    return day.alone.writer.handle([request], now_us)[0].outcome


def test_spend_is_charges_and_open_bids_and_closes_with_their_event(day):
    day = day(daily_nanos=10**9)
    day.request()
    day.renew()
    first = day.request()
    second = day.request()
    day.wait(70)
    open_nanos = first.bid.price_nanos + second.bid.price_nanos
    assert day.pacing.spent_nanos == open_nanos == 2 * 200_000
    assert post_bill(day, first, 150_000) == "new"
    day.alone.post_events(("loss", second.lurl))
    day.wait(70)
    assert day.pacing.spent_nanos == 150_000


def test_bid_without_an_event_is_expected_less_and_less(day):
    day = day(daily_nanos=10**9)
    day.request()
    day.renew()
    for _ in range(40):
        assert day.request()
        day.wait(10)
    shown = day.pacing.spent_nanos
    open_bids = 15  # of the last 150 seconds
    assert 0 < shown < 0.45 * open_bids * 200_000, "none was ever billed"
    day.wait(300)
    assert day.pacing.spent_nanos == 0


@pytest.mark.parametrize("pacer", ["mirror", "throttle"])
def test_money_of_a_day_is_spent_by_the_plan(day, pacer):
    """An auction in 40 seconds for three hours, of which each bid wins: unpaced demand is 2.7 times the budget."""
    budget = 100 * 2_000_000
    day = day(total_nanos=budget, ends_at_us=MIDNIGHT_US + 3 * US_PER_HOUR, pacer=pacer)
    planned_off = []
    charged = 0
    for second in range(0, 3 * 3_600, 40):
        day.wait(40)
        rendered = day.request()
        if rendered:
            charged += rendered.bid.price_nanos
            assert post_bill(day, rendered, rendered.bid.price_nanos) == "new"
        if second > 3_600:
            planned_off.append(abs(charged / budget - (second + 40) / (3 * 3_600)))
    assert 0.95 <= charged / budget <= 1.0
    assert max(planned_off) < 0.08


def test_state_survives_a_kill_of_the_writer(day, tmp_path):
    """The last snapshot of the counts and the log records behind it give the same counts and spend."""
    day = day(daily_nanos=10**9)
    day.request()
    day.renew()
    for _ in range(20):
        rendered = day.request()
        post_bill(day, rendered, 100_000)
        day.wait(30)
    rendered = day.request()  # open, and behind the snapshot
    post_bill(day, day.request(), 100_000)
    writer = day.alone.writer
    before = writer._derived.pacing._traffic, day.pacing
    folder = shutil.copytree(day.alone.paths.folder, tmp_path / "killed")  # nothing was closed
    paths = StatePaths(folder=folder, store=f"lmdb:{folder / 'lists'}")
    again = WriterState(paths, retain_days=90, clock=day.alone.clock)
    try:
        assert again._derived.pacing._traffic == before[0]
        day.alone.clock.wall_us += 61 * US_PER_S
        again.maintain(day.alone.clock.wall_us)
        (campaign,) = pacing_of(again, day.alone.clock.wall_us)
        writer.maintain(day.alone.clock.wall_us)
        assert campaign.spent_nanos == pytest.approx(day.pacing.spent_nanos, abs=20_000)
        assert campaign.multiplier == pytest.approx(day.pacing.multiplier, rel=0.05)
    finally:
        again.close()


def test_unreadable_snapshot_begins_anew(day):
    day = day(daily_nanos=10**9)
    state = day.alone.writer._derived.pacing
    state.restore(b"\x93something else")
    assert state.changes(0, "", 10).campaigns[0].campaign_id == "c-a"


def test_counts_by_hour_of_the_release_before_go_on_by_quarter(day):
    """The golden file is the state of a campaign with a traffic plan at 6:02 of its second day."""
    last_us, (stored,) = json.loads(BY_HOUR.read_text())
    day = day(daily_nanos=10**9, plan="traffic")
    state = day.alone.writer._derived.pacing
    broken = stored | {"campaign_id": "c-b", "sums": "another release's"}
    offer(day.alone, "b", **PLAN, daily_nanos=10**9)
    state.restore(msgspec.msgpack.encode((last_us, [broken, stored])))
    for name, count_H in stored["traffic"].items():
        assert np.reshape(state._traffic["c-a"][name], (24, 4)).sum(1).tolist() == count_H
    assert {campaign.campaign_id: campaign.has_forecast for campaign in pacing_of_state(state)} == {"c-a": True}
    day.alone.clock.wall_us = MIDNIGHT_US + 36 * US_PER_HOUR
    day.wait(1)
    assert state._days["c-a"].begins == 0, "no new plan of the rest of the day"
    forecast_H = stored["day"]["forecast_H"]
    noon = sum(forecast_H[:12]) / sum(forecast_H)
    assert state._days["c-a"].planned_nanos == pytest.approx(noon * 1e9, rel=1e-3)


def pacing_of_state(state):
    return state.changes(0, "", 10).campaigns


def test_reader_gets_the_campaigns_that_changed_since_its_last_reply(day):
    day = day(daily_nanos=10**9)
    state = day.alone.writer._derived.pacing
    for name in "bcd":
        offer(day.alone, name, **PLAN, daily_nanos=10**9)
    day.wait(61)
    first = state.changes(0, "", 3)
    assert len(first.campaigns) == 3 and first.has_more
    rest = state.changes(first.last, first.instance, 3)
    assert not rest.has_more
    read = {paced.campaign_id: paced for paced in [*first.campaigns, *rest.campaigns]}
    assert sorted(read) == ["c-a", "c-b", "c-c", "c-d"]
    assert state.changes(rest.last, rest.instance, 3).campaigns == []
    changed = set()
    for _ in range(20):
        day.wait(3)
        reply = state.changes(rest.last, rest.instance, 3)
        changed |= {paced.campaign_id for paced in reply.campaigns}
        rest = reply
        read |= {paced.campaign_id: paced for paced in reply.campaigns}
        assert len(reply.campaigns) < 4, "ticks are spread over the minute"
    assert changed == set(read)
    assert read == {paced.campaign_id: paced for paced in state.changes(0, "", 9).campaigns}
    assert len(state.changes(rest.last, "the writer before", 9).campaigns) == 4, "numbers of another start"


def test_burst_of_auctions_brings_the_tick_forward(day):
    """Ten auctions are a burst for a campaign with few. Ticks are at least 6 seconds apart, a minute without one."""
    day = day(daily_nanos=10**9)
    state = day.alone.writer._derived.pacing
    day.wait(61)
    seen = []
    for auctions, seconds in ((0, 7), (9, 7), (1, 1), (20, 3), (0, 3), (0, 40)):
        for _ in range(auctions):
            day.request()
        day.wait(seconds)
        seen.append(state._days["c-a"].pacer.eligible)
    assert seen == [0, 0, 10, 10, 30, 30]


def test_bids_for_a_hundredth_of_the_budget_bring_the_tick_forward(day):
    """A campaign may win each auction of a minute before its next tick, while others wait for their plan."""
    day = day(daily_nanos=20_000_000)  # a bid is more than a hundredth of it
    day.request()
    day.renew()
    day.wait(61)
    state = day.alone.writer._derived.pacing
    before = state._days["c-a"].pacer
    assert day.request() is not None
    day.wait(2)
    after = state._days["c-a"].pacer
    assert after.spent_nanos > before.spent_nanos
    day.wait(3)
    assert state._days["c-a"].pacer == after, "one bid, one tick"


def test_requests_that_show_nothing_do_not_stop_a_campaign(day):
    """A sender gets a bid every 10 seconds and shows none. The campaign waits while the bids are believed."""
    day = day(daily_nanos=20_000_000)
    day.request()
    day.renew()
    bids = []
    for _ in range(120):
        bids.append(day.request() is not None)
        day.wait(10)
    assert sum(bids[:30]) < 20, "six bids in a row wait for their event: more than the plan has by then"
    assert sum(bids[-30:]) >= 29, "the money that they are expected to cost has fallen"


def test_repeated_notice_changes_nothing(day):
    day = day(daily_nanos=10**9)
    day.request()
    day.renew()
    rendered = day.request()
    assert post_bill(day, rendered, 150_000) == "new"
    day.wait(61)
    before = day.pacing
    assert post_bill(day, rendered, 150_000) == "known"
    assert day.alone.post_events(("loss", rendered.lurl), ("loss", rendered.lurl)) == ["new", "known"]
    day.wait(61)
    assert day.pacing.spent_nanos == before.spent_nanos == 150_000


def test_clock_that_jumps_ahead_and_back_keeps_spend_and_control(day):
    day = day(daily_nanos=10**9)
    day.request()
    day.renew()
    post_bill(day, day.request(), 150_000)
    day.wait(61)
    state = day.alone.writer._derived.pacing
    ledger = day.alone.writer.ledger.connection
    control = state._days["c-a"].pacer.control
    now_us = day.alone.clock.wall_us
    state.tick(ledger, now_us + 40 * 24 * US_PER_HOUR)
    assert state._days["c-a"].spent_nanos == 0, "of a day of another month"
    state.tick(ledger, now_us + TICK_US)
    assert state._days["c-a"].spent_nanos == 150_000
    assert state._days["c-a"].pacer.control == pytest.approx(control, rel=0.01)
    state.tick(ledger, now_us + 3 * TICK_US)
    assert state._days["c-a"].pacer.position > 3 * TICK_US / (24 * US_PER_HOUR), "it goes on"


@pytest.mark.parametrize(("pacer", "state"), [("mirror", "less"), ("off", "full")])
def test_metric_counts_campaigns_by_how_they_bid(day, pacer, state):
    day = day(daily_nanos=10**9, pacer=pacer)
    day.wait(61)
    counted = {name: telemetry.PACED_CAMPAIGNS.labels(name)._value.get() for name in STATES}
    assert counted == dict.fromkeys(STATES, 0) | {state: 1}


def test_campaign_without_a_plan_is_forgotten(day):
    day = day(daily_nanos=10**9)
    offer(day.alone, "a", plan="asap", daily_nanos=10**9)
    day.wait(1)
    assert pacing_of(day.alone.writer, day.alone.clock.wall_us) == [] and day.alone.bidder.market.pacing is None


def test_days_are_those_of_the_campaign(day):
    """At midnight in UTC it is nine in Tokyo: an even plan has spent 9/24 of the day's money."""
    day = day(daily_nanos=24_000_000_000, zone="Asia/Tokyo", pacer="off")
    day.wait(61)
    planned = day.pacing.planned_nanos
    assert planned == pytest.approx(0, abs=2 * 61 * 24e9 / 86_400), "the plan began with the campaign"
    for _ in range(15):
        day.wait(3_600)
    day.wait(120)
    assert day.pacing.planned_nanos < 0.01 * 24e9, "a day has ended in Tokyo"


def test_early_hour_of_a_day_of_23_hours_is_bid_in_and_counted(day):
    """Clocks in New York go from 2 to 3 o'clock at 7:00 UTC of 8 March. Stretched hours would wait until 8:15."""
    day = day(daily_nanos=10**9, zone="America/New_York", targeting=Targeting(hours=(3,)))
    day.wait(7 * 24 * 3_600 + 6 * 3_600 + 55 * 60)
    assert day.pacing.participate == 0
    day.wait(600)
    assert day.pacing.participate == 1
    day.request()
    day.renew()
    assert day.request()
    assert day.alone.writer._derived.pacing._traffic["c-a"]["2026-03-08"][12] == 2
    day.wait(3_600)
    assert day.pacing.participate == 0
