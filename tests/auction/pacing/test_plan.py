"""Plans are cumulative shares of a day, and the forecast is a mean of whole days before it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre.auction.pacing import plan as plans
from leadre.auction.pacing.plan import HOURS, Plan


def test_shares_by_hand():
    assert plans.even().by(0.25) == pytest.approx(0.25)
    assert plans.even(hours=[12, 13]).by(0.5) == 0
    assert plans.even(hours=[12, 13]).by(13 / 24) == pytest.approx(0.5)
    assert plans.front_loaded().by(0.5) == pytest.approx(0.75)
    assert Plan.of([1, 3]).by(0.75) == pytest.approx(0.25 + 0.75 / 2)


def test_plan_by_traffic_follows_the_forecast_within_the_hours():
    forecast_H = [0.0] * 22 + [30.0, 10.0]
    assert plans.by_traffic(forecast_H).by(23 / 24) == pytest.approx(0.75)
    assert plans.by_traffic(forecast_H, hours=[23]).by(23 / 24) == 0
    assert plans.by_traffic(forecast_H, hours=[5]) == plans.even(hours=[5])  # no auction is forecast in them


@given(st.lists(st.floats(0, 100), min_size=1, max_size=48).filter(any), st.lists(st.floats(-1, 2), max_size=10))
def test_plan_rises_from_0_to_1(weights, positions):
    plan = Plan.of(weights)
    shares = [plan.by(position) for position in sorted(positions)]
    assert shares == sorted(shares)
    assert plan.by(0) == 0 and plan.by(1) == pytest.approx(1)


def test_forecast_is_the_mean_of_the_last_week():
    empty = [0] * HOURS
    assert plans.forecast([]) is None
    assert plans.forecast([empty]) is None
    days = [[number] * HOURS for number in range(1, 10)]
    assert plans.forecast(days)[0] == pytest.approx(5.5)  # of 3 to 8: the highest is left out
    assert plans.forecast(days[:2])[0] == pytest.approx(1.5)
    assert plans.forecast([empty, [4] * HOURS])[0] == pytest.approx(4)  # a day off is no day to learn from


def test_forecast_of_few_auctions_leaves_no_hour_empty():
    """The prior is the mean hour of 1.25, and counts as one auction."""
    forecast_H = plans.forecast([[1] * 20 + [0, 0, 5, 5]], hours=range(4, HOURS))
    usual = (16 + 3 + 3) / 20  # no hour counts more than three median ones
    assert forecast_H[[0, 4, 20, 23]] == pytest.approx(
        [0, 2 / (1 / usual + 1), 1 / (1 / usual + 1), 4 / (1 / usual + 1)]
    )
    many = plans.forecast([[2_000] * 20 + [0, 0, 2_000, 2_000]])
    assert many[20] == 0 and many[0] == pytest.approx(2_000, rel=1e-3)


@pytest.mark.parametrize("days", [1, 2, 3, 7])
@pytest.mark.parametrize("flooded", [0, -1])
def test_flooded_hour_moves_a_plan_by_a_tenth_at_most(days, flooded):
    """In one hour of one day 720 times as many auctions as usual."""
    usual = [round(1_000 * (1 + 0.8 * np.sin(2 * np.pi * (hour / HOURS - 0.4)))) for hour in range(HOURS)]
    seen = [list(usual) for _ in range(days)]
    seen[flooded][20] *= 720
    planned = [plans.by_traffic(plans.forecast(rows)) for rows in ([usual], seen)]
    moved = [abs(planned[0].by(part / 96) - planned[1].by(part / 96)) for part in range(96)]
    assert max(moved) < 0.1


@pytest.mark.parametrize("days", [1, 2, 3])
def test_campaign_that_began_at_noon_bids_in_the_morning(days):
    """Mornings before its first auction are unknown, not empty."""
    first = [0] * 12 + [1_000] * 12
    plan = plans.by_traffic(plans.forecast([first, *[[1_000] * HOURS] * (days - 1)]))
    assert plan.by(0.5) == pytest.approx(0.5, abs=1e-3)


def test_hours_without_traffic_stay_empty_after_a_whole_day():
    plan = plans.by_traffic(plans.forecast([[2_000] + [0] * 5 + [2_000] * 18]))
    assert plan.by(6 / HOURS) == plan.by(1 / HOURS) == pytest.approx(1 / 19)


@given(st.lists(st.lists(st.integers(0, 10**6), min_size=HOURS, max_size=HOURS), min_size=1, max_size=8), st.data())
def test_forecast_is_above_0_in_the_hours_of_the_campaign_alone(days, data):
    hours = data.draw(st.sets(st.integers(0, HOURS - 1), min_size=1))
    forecast_H = plans.forecast(days, hours)
    if forecast_H is None or not forecast_H.any():
        return
    assert set(np.flatnonzero(forecast_H)) <= hours
    assert np.isfinite(forecast_H).all()
