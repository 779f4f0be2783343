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
MINUTE_US = 60 * US_PER_S
TARGET = 1_000_000
LAST_US = goal.LAST_DELAY_S * US_PER_S
LAWS = {  # seconds from bid to action, at most a week
    "half a day": lambda rng, count: rng.exponential(12 * 3_600.0, count),
    "two days": lambda rng, count: rng.exponential(2 * 86_400.0, count) % (7 * 86_400.0),
    "half within an hour, half in days": lambda rng, count: np.where(
        rng.random(count) < 0.5, rng.exponential(1_200.0, count), rng.exponential(2 * 86_400.0, count) % (7 * 86_400.0)
    ),
}


def after_days(law, *, days, hourly, rate=1.0, seed=0, kind="cpa"):
    """(correction of each hour, last state) of a campaign with a wave of impressions a day and ``rate`` of the actions.

    An hour has ``hourly`` predicted actions on average.
    """
    rng = np.random.default_rng(seed)
    state = GoalState(kind)
    arrivals = [[] for _ in range(days * 288)]  # by five minutes
    corrections = []
    for step in range(days * 288):
        now_us = (step + 1) * 5 * MINUTE_US
        predicted = hourly / 12 * (1 + 0.8 * math.sin(step / 288 * 2 * math.pi))
        state = goal.with_impression(state, predicted, now_us)
        for delay_s in law(rng, rng.poisson(predicted * rate)).tolist():
            arrived = step + 1 + int(delay_s // 300)
            if arrived < len(arrivals):
                arrivals[arrived].append(delay_s)
        for delay_s in arrivals[step]:
            state = goal.with_action(state, round(delay_s * US_PER_S))
        state = goal.advance(state, TARGET, now_us)
        if (step + 1) % 12 == 0:
            corrections.append(state.correction)
    return np.array(corrections), state


def test_correction_is_actions_over_predicted_ones():
    """All 100 predicted actions are due: 50 of the first two minutes, with a prior of 5 by the usual minute."""
    state = goal.with_impression(GoalState("cpc"), 100.0, NOON_US)
    for _ in range(50):
        state = goal.with_action(state, 90 * US_PER_S)
    later_us = NOON_US + LAST_US
    state = goal.advance(state, TARGET, later_us)
    assert state.due_B == pytest.approx([100.0] * 15)
    assert state.actions_B[:3] == (0.0, 50.0, 0.0)
    assert state.correction == pytest.approx(50 / 105 + 5 / 105 * (100 / 105 + 5 / 105 * 55 / 105))
    assert goal.expected(state, later_us) == 0.0 and state.shown_N == ()


def test_late_actions_are_expected_and_not_missed():
    """An hour after a bid, 1 - e^(-1/12) of the usual actions are due: without one the correction hardly moves."""
    state = goal.with_impression(GoalState("cpa"), 20.0, NOON_US)
    now_us = NOON_US + US_PER_HOUR
    state = goal.advance(state, TARGET, now_us)
    due = 20 * (1 - math.exp(-1 / 12))
    assert 5 / (due + 5) * 0.9 < state.correction < 5 / (due + 5)
    assert goal.expected(state, now_us) == pytest.approx(20 * 5 / (due + 5) * math.exp(-1 / 12), rel=0.02)


def test_actions_of_one_delay_are_divided_by_the_impressions_that_had_the_time():
    """Of 40 predicted actions 20 passed the minutes from 64 to 128: 10 of them in it."""
    state = goal.with_impression(GoalState("cpa"), 20.0, NOON_US)
    state = goal.advance(state, TARGET, NOON_US + 60 * MINUTE_US)
    state = goal.with_impression(state, 20.0, NOON_US + 100 * MINUTE_US)
    for _ in range(10):
        state = goal.with_action(state, 100 * MINUTE_US)
    state = goal.advance(state, TARGET, NOON_US + 128 * MINUTE_US)
    position = goal.EDGES_S.index(64 * 60)
    assert (state.due_B[position], state.actions_B[position]) == (pytest.approx(20.0), 10.0)
    assert state.due_B[position + 1] == 0.0
    assert state.due_B[goal.EDGES_S.index(16 * 60)] == pytest.approx(20 + 20 * math.log2(28 / 16))


@pytest.mark.parametrize(("name", "rate"), [*((name, 1.0) for name in LAWS), ("two days", 0.5)])
def test_correction_with_late_actions_is_the_rate_of_actions(name, rate):
    """Two campaigns from their eighth day on, when some twenty times the memory was due."""
    runs = [after_days(LAWS[name], days=11, hourly=25, rate=rate, seed=seed)[0] for seed in range(2)]
    settled = np.array(runs)[:, 8 * 24 :]
    assert settled.mean() == pytest.approx(rate, rel=0.06)
    assert settled.min() > 0.75 * rate and settled.max() < 1.3 * rate


def test_fast_actions_are_no_sign_of_more_actions():
    """Conversions that take minutes, where half a day is usual: no hour bids as if twice as many came."""
    corrections, _ = after_days(lambda rng, count: rng.exponential(600.0, count), days=2, hourly=25)
    assert corrections.max() < 1.5 and corrections[-12:].mean() == pytest.approx(1.0, abs=0.15)


def test_actions_to_come_are_those_that_come():
    """Some 900 of the last week's conversions."""
    law = LAWS["two days"]
    _, state = after_days(law, days=10, hourly=25)
    coming = sum(25 * (math.exp(-hour / 48) - math.exp(-3.5)) / (1 - math.exp(-3.5)) for hour in range(7 * 24))
    assert goal.expected(state, 10 * US_PER_DAY) == pytest.approx(coming, rel=0.25)


def test_dual_falls_while_actions_cost_less_than_the_target():
    """An action of half its worth: slack of a half over a value and cost of one and a half."""
    state = goal.with_charge(goal.with_impression(GoalState("cpc"), 1.0, NOON_US), TARGET // 2)
    slack = (1.0 - 0.5) / (1.0 + 0.5)
    moved = goal.advance(state, TARGET, NOON_US)
    assert moved.return_dual == pytest.approx(goal.START_DUAL * math.exp(-0.5 * slack))
    assert (moved.new_shown, moved.new_nanos) == (0.0, 0)
    still = goal.advance(moved, TARGET, NOON_US + 60)
    assert still.return_dual == moved.return_dual, "without impressions and charges nothing is learned"
    dear = goal.advance(goal.with_charge(moved, 3 * TARGET), TARGET, NOON_US)
    assert dear.return_dual == pytest.approx(moved.return_dual * math.exp(0.5))


@pytest.mark.parametrize(("budget_dual", "expected"), [(0.0, 0.8 * 3 / 2), (1.0, 0.8 * 3 / 3), (10.0, 0.8 * 3 / 12)])
def test_multiplier_joins_correction_target_and_budget(budget_dual, expected):
    assert goal.multiplier(GoalFactors(0.8, 2.0, budget_dual)) == pytest.approx(expected)


def test_one_conversion_of_a_huge_value_counts_as_ten():
    assert goal.weight_of(10**15, 10) == goal.MAX_WEIGHT
    assert goal.weight_of(25, 10) == 2.5 and goal.weight_of(25, 0) == 1.0


def test_correction_is_bounded():
    state = goal.with_impression(GoalState("cpc"), 1_000.0, NOON_US)
    state = goal.advance(state, TARGET, NOON_US + US_PER_DAY)
    assert state.correction == goal.MIN_CORRECTION
    for _ in range(10_000):
        state = goal.with_action(state, 0)
    assert goal.advance(state, TARGET, NOON_US + US_PER_DAY).correction == goal.MAX_CORRECTION


def test_clock_that_is_set_back_makes_nothing_due_twice_and_hides_no_later_impression():
    """A bid of a clock that is a day ahead counts as of now, and those after it by their own time."""
    state = goal.with_impression(GoalState("cpa"), 3.0, NOON_US + US_PER_DAY)
    state = goal.advance(state, TARGET, NOON_US + US_PER_DAY)
    state = goal.advance(state, TARGET, NOON_US)
    assert state.shown_N == ((NOON_US, 3.0),) and sum(state.due_B) == 0.0
    state = goal.with_impression(state, 4.0, NOON_US + US_PER_HOUR)
    state = goal.advance(state, TARGET, NOON_US + US_PER_HOUR)
    assert state.shown_N == ((NOON_US, 3.0), (NOON_US + US_PER_HOUR, 4.0))
    assert state.due_B[0] == pytest.approx(3.0)
    state = goal.advance(state, TARGET, NOON_US + US_PER_HOUR + LAST_US)
    assert state.due_B == pytest.approx([7.0] * 15)


def test_clock_that_is_set_back_takes_no_credit_away():
    state = goal.with_impression(GoalState("cpa"), 3.0, NOON_US)
    state = goal.advance(state, TARGET, NOON_US + 4 * US_PER_HOUR)
    back = goal.advance(state, TARGET, NOON_US + US_PER_HOUR)
    assert back.due_B == state.due_B


def test_state_of_two_months_stays_small_and_forgets_evenly():
    """Half of 8 predicted actions in three hours: 3,840 were predicted, and some 200 are remembered."""
    state = GoalState("cpc")
    for step in range(480):
        now_us = 3 * step * US_PER_HOUR
        state = goal.with_impression(state, 8.0, now_us)
        for _ in range(4):
            state = goal.with_action(state, 30 * US_PER_S)
        state = goal.advance(goal.with_charge(state, 1), TARGET, now_us)
    assert len(state.shown_N) < 160
    assert max(state.due_B) == pytest.approx(goal.MEMORY_ACTIONS)
    assert state.correction == pytest.approx(0.5, abs=0.03)
    assert state.cost_nanos == 480, "totals are not forgotten"


def test_joined_batches_keep_their_predicted_actions():
    """A minute's impressions each minute of three days: few batches, each of almost one age."""
    state = GoalState("cpa")
    for minute in range(3 * 24 * 60):
        state = goal.with_impression(state, 0.25, minute * MINUTE_US)
        if minute % 10 == 0:
            state = goal.credited(state, minute * MINUTE_US)
    assert len(state.shown_N) < 160
    assert sum(shown for _, shown in state.shown_N) + state.fresh[1] == pytest.approx(0.25 * 3 * 24 * 60)


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
        multiplier = goal.multiplier(GoalFactors(state.correction, state.return_dual, 0.0))
        predicted_N = rng.uniform(0.001, 0.009, 60)
        price_N = 5_000 * 0.005 * np.exp(rng.normal(-0.7, 1.0, 60))
        wins_N = np.minimum(predicted_N * 5_000 * multiplier, most) >= price_N
        clicks_N = (rng.random(60) < rate_of(predicted_N, price_N)) & wins_N
        state = goal.with_impression(state, float(predicted_N[wins_N].sum()), now_us)
        state = goal.with_charge(state, round(price_N[wins_N].sum()))
        delays_us = [round(rng.exponential(delay_s) * US_PER_S) for _ in range(int(clicks_N.sum()))]
        pending += [(now_us + delay_us, delay_us) for delay_us in delays_us]
        for _, delay_us in [action for action in pending if action[0] <= now_us]:
            state = goal.with_action(state, delay_us)
        pending = [action for action in pending if action[0] > now_us]
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
