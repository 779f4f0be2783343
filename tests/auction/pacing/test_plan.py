"""Plans are cumulative shares of a day, and the forecast is a mean of whole days before it."""

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
    usual = [1_000] * HOURS
    flooded = [1_000] * 23 + [720_000]
    assert plans.forecast([usual, flooded, usual]).tolist() == usual, "one flooded hour moves no plan"
    assert plans.forecast([empty, [4] * HOURS])[0] == pytest.approx(4)  # a day off is no day to learn from
