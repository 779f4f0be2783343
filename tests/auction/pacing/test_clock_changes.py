"""Plans on days of 23, 24 and 25 hours, and half hours: each is compared with a walk over the minutes of the day."""

from __future__ import annotations

import zoneinfo
from datetime import date, timedelta
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from leadre.auction.budget.days import EPOCH, SLOT_US, day_ends_us, day_of_slot, quarters_of_day
from leadre.auction.pacing import plan as plans
from leadre.auction.pacing.contract import WAITING
from leadre.auction.pacing.day import DayFigures, PacingRules, tick
from leadre.units import US_PER_HOUR, US_PER_S

MINUTE_US = 60 * US_PER_S
ZONES = (  # changes of an hour and of half an hour, at night and at midnight; offsets of half and quarter hours
    *("Europe/Berlin", "America/New_York", "America/Nuuk", "Asia/Beirut", "America/Havana", "Atlantic/Azores"),
    *("Australia/Lord_Howe", "Australia/Adelaide", "Pacific/Chatham", "Asia/Kolkata", "Asia/Kathmandu", "UTC"),
)
HOURS = st.sets(st.integers(0, 23)).map(sorted)


def span_us(day, zone):
    return day_ends_us(day - timedelta(days=1), zone), day_ends_us(day, zone)


@cache
def changed(zone):
    """The days of a zone on which clocks change, and one on which they do not."""
    days = [date(2015, 1, 1) + timedelta(days=number) for number in range(20 * 365)]
    lengths = np.diff([day_ends_us(day, zone) for day in days])
    return [day for day, length in zip(days[1:], lengths, strict=True) if length != 24 * US_PER_HOUR] or days[:1]


@st.composite
def changed_days(draw):
    """(zone, day) on which clocks change, if they do in the zone."""
    zone = draw(st.sampled_from(ZONES))
    return zone, draw(st.sampled_from(changed(zone)))


@cache
def clock_quarters(day, zone):
    """The quarter of an hour of the clock in each minute of a day."""
    start_us, end_us = span_us(day, zone)
    begin = EPOCH + timedelta(microseconds=start_us)
    clock = zoneinfo.ZoneInfo(zone)
    minutes = [
        (begin + timedelta(minutes=minute)).astimezone(clock) for minute in range((end_us - start_us) // MINUTE_US)
    ]
    return [minute.hour * 4 + minute.minute // 15 for minute in minutes]


def clock_hours(day, zone):
    """The hour of the clock in each minute of a day."""
    return [quarter // 4 for quarter in clock_quarters(day, zone)]


@given(changed_days())
@settings(deadline=None, max_examples=60)
def test_quarters_of_a_day_are_those_of_its_clock(zone_day):
    zone, day = zone_day
    quarter_S = quarters_of_day(day, zone)
    assert np.repeat(quarter_S, 15).tolist() == clock_quarters(day, zone)
    start_us, end_us = span_us(day, zone)
    assert len(quarter_S) * SLOT_US == end_us - start_us
    assert {day_of_slot(at_us // SLOT_US, zone)[0] for at_us in (start_us, end_us - 1)} == {day}


@given(changed_days(), HOURS, st.floats(0, 1), st.floats(0, 1), st.data())
@settings(deadline=None, max_examples=60)
def test_money_of_a_plan_is_spent_in_real_time_within_the_hours(zone_day, hours, first, last, data):
    """Each open minute between begin and end has the same money, or that of its hour."""
    zone, day = zone_day
    hour_M = np.array(clock_hours(day, zone))
    count = len(hour_M)
    opens, closes = sorted((int(first * count), int(last * count)))
    share_H = data.draw(st.lists(st.integers(0, 5), min_size=24, max_size=24))
    name = data.draw(st.sampled_from(("even", "hours")))
    weight_M = np.ones(count) if name == "even" else np.array(share_H)[hour_M].astype(float)
    weight_M *= np.isin(hour_M, hours) if hours else 1
    weight_M[:opens] = 0
    weight_M[closes:] = 0
    assume(weight_M.any())
    rules = PacingRules(name, "mirror", tuple(share_H) if name == "hours" else (), tuple(hours))
    figures = DayFigures(
        day=day.isoformat(),
        position=0.0,
        budget_nanos=10**9,
        spent_nanos=0.0,
        eligible=0,
        opens=opens / count,
        closes=closes / count,
        quarter_S=quarters_of_day(day, zone),
    )
    plan = tick(None, rules, figures).plan
    planned_M = [plan.by((minute + 1) / count) for minute in range(count)]
    assert planned_M == pytest.approx(weight_M.cumsum() / weight_M.sum(), abs=1e-9)


@given(changed_days(), HOURS.filter(any), st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_campaign_bids_in_its_hours_and_waits_in_others(zone_day, hours, part):
    zone, day = zone_day
    hour_M = clock_hours(day, zone)
    assume(set(hour_M) & set(hours))
    minute = int(part * (len(hour_M) - 1))
    figures = DayFigures(
        day=day.isoformat(),
        position=minute / len(hour_M) + 1e-9,
        budget_nanos=10**9,
        spent_nanos=0.0,
        eligible=0,
        quarter_S=quarters_of_day(day, zone),
    )
    day_state = tick(None, PacingRules("even", "mirror", hours=tuple(hours)), figures)
    is_open = hour_M[minute] in hours
    opens_next = hour_M[min(minute + 1, len(hour_M) - 1)] in hours  # about a minute ahead is seen: either is right
    rest = set(hour_M[minute:]) & set(hours)
    if rest and (is_open or not opens_next):
        assert (day_state.rate != WAITING) == is_open


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", {2: 0}),
        ("Europe/Berlin", "2026-10-25", {2: 8}),
        ("Australia/Lord_Howe", "2026-10-04", {2: 2}),
        ("Australia/Lord_Howe", "2026-04-05", {1: 6}),
        ("America/Nuuk", "2026-10-24", {23: 8}),  # 0:00 of the next day is 23:00 again
        ("Asia/Beirut", "2026-03-29", {0: 0}),
        ("Asia/Kolkata", "2026-03-29", {}),
    ],
)
def test_quarters_of_days_by_hand(zone, day, hours):
    quarters_H = np.bincount(np.array(quarters_of_day(date.fromisoformat(day), zone)) // 4, minlength=24)
    assert quarters_H.tolist() == [hours.get(hour, 4) for hour in range(24)]


def test_traffic_of_a_changed_day_is_counted_in_a_quarter_of_real_time():
    spring = quarters_of_day(date(2026, 3, 29), "Europe/Berlin")
    autumn = quarters_of_day(date(2026, 10, 25), "Europe/Berlin")
    counted = [60] * 96
    assert plans.by_quarter(counted, autumn)[7:13] == [60, 30, 30, 30, 30, 60]
    assert np.isnan(plans.by_quarter(counted, spring)[8:12]).all()
    assert plans.by_quarter(counted, plans.USUAL_DAY) == counted
    forecast_Q = plans.forecast([plans.by_quarter([60] * 8 + [0] * 4 + [60] * 84, spring)])
    assert forecast_Q == pytest.approx(np.full(96, 60.0)), "a skipped hour is unknown, not empty"
    assert plans.auctions_of(forecast_Q.tolist(), autumn) == pytest.approx(100 * 60)
    assert plans.by_traffic(forecast_Q, (), autumn) == plans.even((), autumn)


def test_half_hour_that_is_passed_twice_is_counted_twice():
    """On Lord Howe Island clocks go from 2:00 back to 1:30."""
    autumn = quarters_of_day(date(2026, 4, 5), "Australia/Lord_Howe")
    counted = [60] * 4 + [60, 60, 120, 120] + [60] * 88
    assert plans.by_quarter(counted, autumn) == [60] * 96


def test_hour_that_the_day_skips_plans_the_day_evenly():
    """The campaign bids in no other hour, so its plan moves no money."""
    spring = quarters_of_day(date(2026, 3, 29), "Europe/Berlin")
    assert plans.even([2], spring) == plans.front_loaded([2], spring) == plans.even((), spring)


def test_calendar_day_of_the_utc_zone_is_usual():
    assert quarters_of_day(date(2026, 3, 29), "UTC") == plans.USUAL_DAY
