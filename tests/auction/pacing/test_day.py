"""The day of a campaign: frames of a plan, its budget, and what a tick does to the pacer."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from leadre.auction.pacing.contract import START_MULTIPLIER, UNPACED, WAITING
from leadre.auction.pacing.day import CampaignDay, DayFigures, PacingRules, day_budget_nanos, tick

EVEN = PacingRules("even", "mirror")
BUDGET = 1_000_000


def figures(position, spent_nanos=0.0, *, eligible=None, day="2026-03-01", **fields):
    """Figures of a day of 10,000 auctions."""
    eligible = round(10_000 * position) if eligible is None else eligible
    usual = {"day": day, "position": position, "budget_nanos": BUDGET, "spent_nanos": spent_nanos, "eligible": eligible}
    return DayFigures(**usual | fields)


def run(rules, *ticks, before=None):
    for now in ticks:
        before = tick(before, rules, now)
    return before


def test_campaign_begins_with_a_low_multiplier_and_the_rest_of_its_day():
    day = run(EVEN, figures(0.5, 300_000.0))
    assert day.rate.multiplier == pytest.approx(START_MULTIPLIER)
    assert (day.begins, day.before_nanos) == (0.5, 300_000.0)
    day = run(EVEN, figures(0.75, 300_000.0), before=day)
    assert day.planned_nanos == pytest.approx(300_000 + 700_000 / 2, abs=1_000), "of what was left at noon"


def test_campaign_ahead_of_its_plan_waits_for_it():
    day = run(EVEN, figures(0.0), figures(0.1, 150_000.0))
    assert day.rate == WAITING
    day = run(EVEN, figures(0.14, 150_000.0), before=day)
    assert day.rate != WAITING


def test_next_day_begins_at_its_begin_with_the_control_of_the_day_before():
    evening = run(EVEN, figures(0.0), *(figures(part / 100, 9_000.0 * part) for part in range(1, 100)))
    morning = run(EVEN, figures(0.01, 5_000.0, eligible=100, day="2026-03-02"), before=evening)
    assert (morning.begins, morning.before_nanos) == (0.0, 0.0)
    begin = dataclasses.replace(evening.pacer, position=0.0, spent_nanos=0.0, eligible=0, ahead=0.0)
    expected = tick(dataclasses.replace(morning, pacer=begin), EVEN, figures(0.01, 5_000.0, day="2026-03-02"))
    assert morning.pacer.control == pytest.approx(expected.pacer.control)


def test_earlier_day_of_a_clock_set_back_begins_anew_with_the_same_control():
    day = run(EVEN, figures(0.0), figures(0.4, 390_000.0))
    back = run(EVEN, figures(0.9, 100_000.0, day="2026-02-27"), before=day)
    assert (back.day, back.begins, back.before_nanos) == ("2026-02-27", 0.9, 100_000.0)
    assert back.pacer.control == day.pacer.control
    assert run(EVEN, figures(0.3999, 390_000.0), before=day) == day, "less than a minute earlier"


def test_earlier_time_of_the_same_day_begins_anew():
    """The zone of the campaign changed, or the clock: the rest of the day has a plan of its own."""
    day = run(EVEN, figures(0.0), figures(0.6, 590_000.0))
    back = run(EVEN, figures(0.3, 590_000.0, eligible=6_000), before=day)
    assert (back.begins, back.before_nanos) == (0.3, 590_000.0)
    assert back.pacer.control == day.pacer.control
    later = run(EVEN, figures(0.35, 800_000.0, eligible=6_500), before=back)
    assert later.rate == WAITING, "ahead of the plan of the rest"


@pytest.mark.parametrize("moved", [{"closes": 1.0}, {"closes": 0.5, "opens": 0.1}], ids=["end", "begin"])
def test_another_begin_or_end_plans_the_rest_of_the_day(moved):
    day = run(EVEN, figures(0.0, closes=0.5), figures(0.3, 500_000.0, closes=0.5))
    changed = run(EVEN, figures(0.4, 550_000.0, **moved), before=day)
    assert (changed.begins, changed.before_nanos, changed.pacer.control) == (0.4, 550_000.0, day.pacer.control)
    noon = run(EVEN, figures(0.7, 700_000.0, **moved), before=changed)
    assert (noon.rate == WAITING) == (moved["closes"] == 0.5), "after its end there is no plan"


def test_begin_that_moves_forward_into_the_day_starts_now():
    waiting = run(EVEN, figures(0.0, opens=0.75), figures(0.3, eligible=0, opens=0.75))
    moved = run(EVEN, figures(0.35, eligible=0, opens=0.34), before=waiting)
    assert moved.begins == 0.35 and moved.rate != WAITING


@pytest.mark.parametrize("pacer", ["mirror", "throttle"])
def test_hours_without_planned_money_teach_nothing(pacer):
    """Auctions of these hours are counted, as the campaign waits in them by its plan."""
    rules = PacingRules("hours", pacer, hour_shares=tuple([0] * 18 + [1] * 6))
    night = run(rules, figures(0.0), *(figures(minute / 1_440) for minute in range(5, 18 * 60, 5)))
    assert night.pacer.control == run(rules, figures(0.0)).pacer.control
    evening = run(rules, figures(0.76, 0.0), figures(0.78, 0.0), before=night)
    assert evening.pacer.control != night.pacer.control, "in its hours it learns"


def test_pause_does_not_raise_the_probability_to_take_part():
    rules = PacingRules("even", "throttle")
    before = run(rules, figures(0.0), figures(0.1, 100_000.0, eligible=1_000))
    paused = run(rules, *(figures(part / 100, 100_000.0, eligible=1_000) for part in range(11, 50)), before=before)
    assert paused.pacer.control == before.pacer.control


def test_change_of_the_plan_plans_the_rest_of_the_day():
    day = run(PacingRules("front_loaded", "mirror"), figures(0.0), figures(0.5, 750_000.0))
    changed = run(EVEN, figures(0.5, 750_000.0), before=day)
    assert (changed.begins, changed.before_nanos) == (0.5, 750_000.0)
    assert changed.rate != WAITING, "it is ahead of an even plan of the whole day, and not of one of the rest"
    assert changed.pacer.control == day.pacer.control
    other = run(PacingRules("even", "throttle"), figures(0.5, 750_000.0), before=day)
    assert other.pacer.control == 0.1, "the control of another pacer means something else"


def test_day_without_money_teaches_nothing():
    day = run(EVEN, figures(0.0), figures(0.5, 990_000.0))
    spent = run(EVEN, figures(0.6, 1_000_000.0), figures(0.9, 1_000_000.0), before=day)
    assert spent.pacer.control == day.pacer.control
    assert spent.rate == WAITING


def test_hours_of_the_plan_are_the_hours_of_bids():
    rules = PacingRules("hours", "mirror", tuple(int(hour in (9, 10)) for hour in range(24)))
    assert run(rules, figures(0.0), figures(8 / 24)).rate == WAITING
    assert run(rules, figures(0.0), figures(9.5 / 24)).rate != WAITING
    assert run(rules, figures(0.0), figures(11.1 / 24)).rate == WAITING
    assert run(rules, figures(0.0), figures(10 / 24)).planned_nanos == pytest.approx(BUDGET / 2)


def test_traffic_plan_is_even_until_a_day_was_seen():
    rules = PacingRules("traffic", "mirror")
    night = [3_000 if quarter < 24 else 1_000 for quarter in range(96)]
    seen = run(rules, figures(0.0, traffic_DQ=[night]), figures(0.25, traffic_DQ=[night]))
    unseen = run(rules, figures(0.0), figures(0.25))
    assert seen.planned_nanos == pytest.approx(BUDGET / 2, rel=1e-3)
    assert unseen.planned_nanos == pytest.approx(BUDGET / 4)


def test_pacer_off_shows_the_plan_and_bids_the_value():
    day = run(PacingRules("even", "off"), figures(0.0), figures(0.5, 900_000.0))
    assert day.rate == UNPACED
    assert (day.planned_nanos, day.spent_nanos) == (pytest.approx(500_000), 900_000)


def test_plan_covers_the_part_of_the_day_in_which_the_campaign_runs():
    day = run(EVEN, figures(0.0, opens=0.25, closes=0.75), figures(0.5, opens=0.25, closes=0.75))
    assert day.planned_nanos == pytest.approx(BUDGET / 2)
    day = run(EVEN, figures(0.8, 900_000.0, opens=0.25, closes=0.75), before=day)
    assert day.planned_nanos == pytest.approx(BUDGET)


@pytest.mark.parametrize(
    ("daily", "left", "open_us", "rest_us", "budget"),
    [
        (100, None, 24, 24, 100),
        (100, 40, 24, 240, 40),
        (0, 1_000, 24, 240, 100),
        (0, 1_000, 12, 36, 334),  # half a day of one and a half, rounded up
        (0, -5, 24, 240, 0),
    ],
)
def test_budget_of_a_day_is_the_daily_one_or_its_part_of_the_total(daily, left, open_us, rest_us, budget):
    assert day_budget_nanos(daily, left, open_us, rest_us) == budget


def test_state_survives_its_bytes():
    day = run(PacingRules("traffic", "throttle", hours=(1, 2)), figures(0.0, traffic_DQ=[[5] * 96]), figures(0.05))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(day), type=CampaignDay) == day
