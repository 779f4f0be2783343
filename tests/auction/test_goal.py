"""A target per action: its correction, its dual, and the cost of actions where fewer happen than predicted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from leadre.auction import goal
from leadre.auction.goal import GoalState
from leadre.auction.pacing.contract import GoalFactors
from leadre.units import US_PER_DAY, US_PER_HOUR, US_PER_S

NOON_US = 12 * US_PER_HOUR
TARGET = 1_000_000
HOURS = 24 * 60


def test_correction_is_actions_over_predicted_ones_that_are_due():
    state = goal.with_impression(GoalState("cpc"), 20.0, NOON_US)
    for _ in range(10):
        state = goal.with_action(state, 60 * US_PER_S)
    later_us = NOON_US + US_PER_DAY
    assert goal.due(state, later_us) == pytest.approx(20.0)
    assert goal.correction(state, later_us) == pytest.approx((10 + 5) / (20 + 5))
    assert goal.expected(state, later_us) == pytest.approx(0.0, abs=1e-6)


def test_late_actions_are_expected_and_not_missed():
    """Conversions take half a day: an hour behind the middle of an hour of impressions, 1 - e^(-1/12) are due."""
    state = goal.with_impression(GoalState("cpa"), 20.0, NOON_US)
    now_us = NOON_US + 3 * US_PER_HOUR // 2
    due = 20 * (1 - math.exp(-1 / 12))
    assert goal.due(state, now_us) == pytest.approx(due)
    correction = 5 / (due + 5)
    assert goal.correction(state, now_us) == pytest.approx(correction)
    assert goal.expected(state, now_us) == pytest.approx(correction * (20 - due))


def test_usual_delay_is_learned():
    state = goal.with_impression(GoalState("cpa"), 20.0, NOON_US)
    now_us = NOON_US + 2 * US_PER_HOUR
    before = goal.due(state, now_us)
    for _ in range(20):
        state = goal.with_action(state, 60 * US_PER_S)
    assert goal.due(state, now_us) > 2 * before


def test_dual_falls_while_actions_cost_less_than_the_target():
    """An action of half its worth: slack of a half over a value and cost of one and a half."""
    state = goal.with_charge(goal.with_impression(GoalState("cpc"), 1.0, NOON_US), TARGET // 2)
    corrected = goal.correction(state, NOON_US)
    slack = (corrected - 0.5) / (corrected + 0.5)
    moved = goal.advance(state, TARGET, NOON_US)
    assert moved.return_dual == pytest.approx(goal.START_DUAL * math.exp(-0.5 * slack))
    assert (moved.new_shown, moved.new_nanos) == (0.0, 0)
    assert goal.advance(moved, TARGET, NOON_US + 60) == moved, "without impressions and charges nothing is learned"
    dear = goal.advance(goal.with_charge(moved, 3 * TARGET), TARGET, NOON_US)
    assert dear.return_dual == pytest.approx(moved.return_dual * math.exp(0.5))


@pytest.mark.parametrize(("budget_dual", "expected"), [(0.0, 0.8 * 3 / 2), (1.0, 0.8 * 3 / 3), (10.0, 0.8 * 3 / 12)])
def test_multiplier_joins_correction_target_and_budget(budget_dual, expected):
    assert goal.multiplier(GoalFactors(0.8, 2.0, budget_dual)) == pytest.approx(expected)


def test_one_conversion_of_a_huge_value_counts_as_ten():
    state = goal.with_action(GoalState("roas", unit_nanos=10), 0, value_nanos=10**15, weight=1e14)
    assert state.actions == goal.MAX_WEIGHT and state.value_nanos == 10**15


def test_correction_is_bounded():
    state = goal.with_impression(GoalState("cpc"), 1_000.0, NOON_US)
    assert goal.correction(state, NOON_US + US_PER_DAY) == goal.MIN_CORRECTION
    for _ in range(1_000):
        state = goal.with_action(GoalState("cpc", actions=state.actions), 0)
    assert goal.correction(state, NOON_US) == goal.MAX_CORRECTION


def test_clock_that_is_set_back_makes_nothing_due():
    state = goal.with_impression(GoalState("cpc"), 3.0, NOON_US)
    state = goal.with_impression(state, 4.0, NOON_US - US_PER_DAY)
    assert [shown for _, shown in state.shown_H] == [7.0]
    assert goal.due(state, NOON_US - US_PER_DAY) == 0.0
    assert goal.correction(state, NOON_US - US_PER_DAY) == 1.0


def test_state_of_two_months_stays_small_and_forgets_evenly():
    state = GoalState("cpc")
    for hour in range(HOURS):
        now_us = hour * US_PER_HOUR
        state = goal.with_impression(state, 1.0, now_us)
        if hour % 2:
            state = goal.with_action(state, 30 * US_PER_S)
        state = goal.advance(goal.with_charge(state, 1), TARGET, now_us)
    assert len(state.shown_H) <= goal.KEPT_HOURS + 1
    assert goal.due(state, now_us) <= goal.MEMORY_ACTIONS + 1
    assert goal.correction(state, now_us) == pytest.approx(0.5, abs=0.03)
    assert (state.events, state.cost_nanos) == (HOURS // 2, HOURS), "totals are not forgotten"


def market(seed, minutes, *, delay_s, most=300.0, rate_of=lambda predicted, price: predicted * 0.6):
    """Cost per action over the target, and the auctions won, of a day in a second-price market.

    Prices are log-normal around half of the worth of a mean impression; clicks are ``rate_of`` what is predicted.
    """
    rng = np.random.default_rng(seed)
    state = GoalState("cpc")
    cost = won = clicks = 0.0
    pending = []
    for minute in range(minutes):
        now_us = (minute + 1) * 60 * US_PER_S
        multiplier = goal.multiplier(GoalFactors(goal.correction(state, now_us), state.return_dual, 0.0))
        predicted_N = rng.uniform(0.001, 0.009, 60)
        price_N = 5_000 * 0.005 * np.exp(rng.normal(-0.7, 1.0, 60))
        wins_N = np.minimum(predicted_N * 5_000 * multiplier, most) >= price_N
        clicks_N = (rng.random(60) < rate_of(predicted_N, price_N)) & wins_N
        state = goal.with_impression(state, float(predicted_N[wins_N].sum()), now_us)
        state = goal.with_charge(state, round(price_N[wins_N].sum()))
        pending += [now_us + round(rng.exponential(delay_s) * US_PER_S) for _ in range(int(clicks_N.sum()))]
        for _ in [at_us for at_us in pending if at_us <= now_us]:
            state = goal.with_action(state, round(delay_s * US_PER_S))
        pending = [at_us for at_us in pending if at_us > now_us]
        state = goal.advance(state, 5_000, now_us)
        cost += float(price_N[wins_N].sum())
        won += float(wins_N.sum())
        clicks += float(clicks_N.sum())
    return cost / 5_000 / clicks, won


@pytest.mark.parametrize("delay_s", [30.0, 3_600.0])
def test_target_is_kept_in_clicks_that_are_fewer_than_predicted(delay_s):
    """Over six seeds of a day the mean is at the target to a few percent, late clicks or not."""
    ratios = [market(seed, 1_440, delay_s=delay_s)[0] for seed in range(6)]
    assert 0.9 < np.mean(ratios) < 1.08
    assert max(ratios) < 1.25


def test_bids_rise_above_the_value_while_the_target_has_room():
    """Bids of the value alone would leave money of the target unused: the highest price of a win is its worth."""
    _, won = market(3, 720, delay_s=30.0, rate_of=lambda predicted, price: predicted)
    rng = np.random.default_rng(3)
    truthful = 0.0
    for _ in range(720):
        predicted_N = rng.uniform(0.001, 0.009, 60)
        price_N = 5_000 * 0.005 * np.exp(rng.normal(-0.7, 1.0, 60))
        truthful += float((predicted_N * 5_000 >= price_N).sum())
        rng.random(60)
    assert won > 1.1 * truthful
