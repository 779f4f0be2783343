"""Plans are cumulative shares of a day, and the forecast is a mean of whole days before it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.auction.pacing import plan as plans
from leadre.auction.pacing.plan import HOURS, QUARTERS, Plan


def test_shares_by_hand():
    assert plans.even().by(0.25) == pytest.approx(0.25)
    assert plans.even(hours=[12, 13]).by(0.5) == 0
    assert plans.even(hours=[12, 13]).by(13 / 24) == pytest.approx(0.5)
    assert plans.front_loaded().by(0.5) == pytest.approx(0.75)
    assert Plan.of([1, 3]).by(0.75) == pytest.approx(0.25 + 0.75 / 2)


def test_plan_by_traffic_follows_the_forecast_within_the_hours():
    forecast_Q = [0.0] * 92 + [30.0, 20.0, 10.0, 0.0]
    assert plans.by_traffic(forecast_Q).by(93 / 96) == pytest.approx(0.5)
    assert plans.by_traffic(forecast_Q, hours=[22]) == plans.even(hours=[22])  # no auction is forecast in them
    share_H = [0] * 22 + [3, 1]
    assert plans.by_hours(share_H).by(22.5 / 24) == pytest.approx(0.375)
    assert plans.by_hours(share_H, hours=[23]).by(23 / 24) == 0


@given(st.lists(st.floats(0, 100), min_size=1, max_size=48).filter(any), st.lists(st.floats(-1, 2), max_size=10))
def test_plan_rises_from_0_to_1(weights, positions):
    plan = Plan.of(weights)
    shares = [plan.by(position) for position in sorted(positions)]
    assert shares == sorted(shares)
    assert plan.by(0) == 0 and plan.by(1) == pytest.approx(1)


def test_forecast_is_the_mean_of_the_last_week():
    empty = [0] * QUARTERS
    assert plans.forecast([]) is None
    assert plans.forecast([empty]) is None
    days = [[number] * QUARTERS for number in range(1, 10)]
    assert plans.forecast(days)[0] == pytest.approx(5.5)  # of 3 to 8: the highest is left out
    assert plans.forecast(days[:2])[0] == pytest.approx(1.5)
    assert plans.forecast([empty, [4] * QUARTERS])[0] == pytest.approx(4)  # a day off is no day to learn from


def test_forecast_of_few_auctions_leaves_no_quarter_empty():
    """The mean of an hour is drawn to that of all hours, and the mean of a quarter to that of its hour."""
    forecast_Q = plans.forecast([[1] * 80 + [0] * 8 + [5, 0, 5, 5] + [1] * 4], hours=range(4, HOURS))
    usual = (64 + 3 * 3 + 4) / 80  # no quarter counts more than three median ones
    empty_hour = 1 / (1 / usual + 4)
    full_hour = 10 / (1 / usual + 4)
    assert forecast_Q[[0, 80, 88, 89]] == pytest.approx(
        [0, 1 / (1 / empty_hour + 1), 4 / (1 / full_hour + 1), 1 / (1 / full_hour + 1)]
    )
    many = plans.forecast([[2_000] * 80 + [0] * 8 + [2_000] * 8])
    assert many[80] == 0 and many[0] == pytest.approx(2_000, rel=1e-3)


@pytest.mark.parametrize("days", [1, 3, 7])
def test_burst_of_half_an_hour_has_the_money_of_its_half_hour(days):
    """From 14:00 on there are 2.5 times as many auctions, for 30 minutes of each day."""
    usual = [1_000] * QUARTERS
    usual[56:58] = [2_500, 2_500]
    plan = plans.by_traffic(plans.forecast([usual] * days))
    share = 1_000 / sum(usual)
    shares = [plan.by((quarter + 1) / QUARTERS) - plan.by(quarter / QUARTERS) for quarter in range(55, 60)]
    assert shares == pytest.approx([share, 2.5 * share, 2.5 * share, share, share], rel=2e-3)


def test_day_with_most_auctions_of_an_hour_is_left_out_of_its_quarters():
    """The four quarters of an hour come from the same days: the highest of each by itself would be chance."""
    first, second, third = ([100] * QUARTERS for _ in range(3))
    first[40:44] = [400, 80, 80, 80]
    second[40:44] = [90, 120, 90, 90]
    forecast_Q = plans.forecast([first, second, third])
    assert forecast_Q[40:44] == pytest.approx([95, 110, 95, 95], rel=1e-2)


@pytest.mark.parametrize("days", [1, 2, 3, 7])
@pytest.mark.parametrize("flooded", [0, -1])
@pytest.mark.parametrize("quarters", [1, 4])
def test_flooded_hour_moves_a_plan_by_a_tenth_at_most(days, flooded, quarters):
    """In a quarter or in all of one hour of one day 720 times as many auctions as usual."""
    usual = [round(250 * (1 + 0.8 * np.sin(2 * np.pi * (part / QUARTERS - 0.4)))) for part in range(QUARTERS)]
    seen = [list(usual) for _ in range(days)]
    for quarter in range(80, 80 + quarters):
        seen[flooded][quarter] *= 720
    planned = [plans.by_traffic(plans.forecast(rows)) for rows in ([usual], seen)]
    moved = [abs(planned[0].by(part / 96) - planned[1].by(part / 96)) for part in range(96)]
    assert max(moved) < 0.1


@pytest.mark.parametrize("days", [1, 2, 3])
def test_campaign_that_began_at_noon_bids_in_the_morning(days):
    """Mornings before its first auction are unknown, not empty."""
    first = [0] * 48 + [1_000] * 48
    plan = plans.by_traffic(plans.forecast([first, *[[1_000] * QUARTERS] * (days - 1)]))
    assert plan.by(0.5) == pytest.approx(0.5, abs=1e-3)


def test_hours_without_traffic_stay_empty_after_a_whole_day():
    plan = plans.by_traffic(plans.forecast([[2_000] * 4 + [0] * 20 + [2_000] * 72]))
    assert plan.by(6 / HOURS) == plan.by(1 / HOURS) == pytest.approx(1 / 19)


def counts_of_days():
    """Counts of one to eight days; few kinds of numbers keep the examples small."""
    hours = st.lists(st.integers(0, 10**6), min_size=HOURS, max_size=HOURS)
    quarters = st.permutations([0, 1, 1, 10])
    days = st.tuples(hours, quarters).map(lambda day: np.outer(*day).ravel().tolist())
    return st.lists(days, min_size=1, max_size=8)


@given(counts_of_days(), st.data())
@settings(max_examples=40)
def test_forecast_is_above_0_in_the_hours_of_the_campaign_alone(days, data):
    hours = data.draw(st.sets(st.integers(0, HOURS - 1), min_size=1))
    forecast_Q = plans.forecast(days, hours)
    if forecast_Q is None or not forecast_Q.any():
        return
    assert set(np.flatnonzero(forecast_Q) // 4) <= hours
    assert np.isfinite(forecast_Q).all()
