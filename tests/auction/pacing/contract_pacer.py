"""Contract of the pacers: a class of tests; a subclass gives it one pacer. Markets are drawn, small and seeded."""

import json
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leadre.auction.pacing import plan as plans
from leadre.auction.pacing.contract import MIN_MULTIPLIER, PacerState, Tick, advance, rate_of, start
from leadre.auction.pacing.plan import HOURS
from leadre.auction.simulate import Day, pace_day

AUCTIONS = 12_000
TRAFFIC = {
    "stationary": np.ones(HOURS),
    "diurnal": 1 + 0.8 * np.sin(2 * np.pi * (np.arange(HOURS) / HOURS - 0.4)),
    "dead night": np.where(np.arange(HOURS) < 5, 0.0, 1.0),
    "burst": np.ones(HOURS),  # the forecast has none
}


@cache
def market(kind):
    """A day and the forecast of its hours. Values and prices are log-normal, correlated a little."""
    generator = np.random.default_rng(7)
    weight_M = np.repeat(TRAFFIC[kind], 60)
    if kind == "burst":
        weight_M[14 * 60 : 14 * 60 + 30] *= 10
    minutes = np.sort(generator.choice(1_440, AUCTIONS, p=weight_M / weight_M.sum()))
    value_N = np.exp(generator.normal(4.0, 0.5, AUCTIONS))
    price_N = value_N**0.2 * np.exp(generator.normal(2.6, 1.0, AUCTIONS))
    forecast_H = AUCTIONS * TRAFFIC[kind] / TRAFFIC[kind].sum()
    return Day((minutes + 0.5) / 1_440, value_N, price_N), forecast_H


def paced(pacer, kind, budget, delay=0):
    day, forecast_H = market(kind)
    plan = plans.by_hours(forecast_H)
    assert day.is_feasible(plan, budget), "the market of the test cannot spend the budget"
    return day, pace_day(day, plan, budget, pacer, day_auctions=float(forecast_H.sum()), delay=delay)


def demand(kind):
    return float(market(kind)[0].demand_H().sum())


class PacerContract:
    pacer = None
    spent_least = 0.95  # of a feasible budget
    off_plan_most = 0.05

    @pytest.mark.parametrize("share", [0.05, 0.4])
    @pytest.mark.parametrize("kind", ["stationary", "diurnal", "dead night"])
    def test_feasible_budget_is_spent_by_its_plan(self, kind, share):
        budget = int(share * demand(kind))
        _, result = paced(self.pacer, kind, budget)
        assert self.spent_least * budget <= result.spent_T[-1] <= budget
        assert result.off_plan(budget) <= self.off_plan_most

    def test_plan_is_met_again_half_an_hour_after_a_burst(self):
        budget = int(0.1 * demand("burst"))
        _, result = paced(self.pacer, "burst", budget)
        later = slice(15 * 60, None)
        assert np.abs(result.spent_T - result.planned_T)[later].max() <= 2 * self.off_plan_most * budget
        assert result.spent_T[-1] <= budget

    @pytest.mark.parametrize("kind", ["stationary", "diurnal"])
    def test_spend_seen_five_minutes_late_is_still_spent_by_plan(self, kind):
        budget = int(0.1 * demand(kind))
        _, result = paced(self.pacer, kind, budget, delay=5)
        assert self.spent_least * budget <= result.spent_T[-1] <= budget
        assert result.off_plan(budget) <= 2 * self.off_plan_most

    @settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.differing_executors])
    @given(
        st.lists(st.tuples(st.floats(0, 0.2), st.floats(0, 1_000), st.floats(1, 20)), max_size=60), st.integers(1, 60)
    )
    def test_no_auction_is_won_above_its_value_nor_the_money_left(self, auctions, budget):
        position_N, value_N, price_N = np.array(sorted(auctions)).reshape(-1, 3).T
        day = Day(position_N, value_N, price_N)
        result = pace_day(day, plans.even(), budget, self.pacer, day_auctions=None, ticks=48)
        assert (price_N[result.won_N] <= value_N[result.won_N]).all()
        assert price_N[result.won_N].sum() <= budget + 1e-9

    def test_state_is_plain_and_the_same_ticks_give_the_same_states(self):
        plan = plans.even()
        state = start(self.pacer)
        for tick in range(1, 40):
            state = PacerState(**json.loads(json.dumps(asdict(state))))
            figures = Tick(tick / 40, 20.0 * tick, 100 * tick, 4_000, [5.0, 9.0], [3.0, 4.0])
            again = advance(self.pacer, state, plan, 1_000, figures)
            state = advance(self.pacer, state, plan, 1_000, figures)
            assert state == again
        assert self.pacer.rate(state) == self.pacer.rate(again)

    @pytest.mark.parametrize("seed", range(8))
    def test_rate_stays_in_its_range(self, seed):
        """For any figures: spend beyond the budget, spend that falls, hours without an auction."""
        generator = np.random.default_rng(seed)
        budget = int(10 ** generator.uniform(0, 12))
        state = start(self.pacer)
        for number in range(1, 31):
            spent = float(generator.choice([0.0, budget / 30 * number, 10 * budget, 1.0]))
            eligible = int(generator.choice([0, 1, 10**6]) * number)
            tick = Tick(number / 30, spent, eligible, None, [4.0, 1e9, 0.0], [1.0, 2.0, 0.0])
            state = advance(self.pacer, state, plans.front_loaded(), budget, tick)
            for rate in (self.pacer.rate(state), rate_of(self.pacer, state)):
                assert 0 <= rate.participate <= 1 and MIN_MULTIPLIER * (1 - 1e-9) <= rate.multiplier <= 1

    def test_campaign_far_ahead_of_its_plan_waits_and_keeps_its_control(self):
        plan = plans.even()
        state = advance(self.pacer, start(self.pacer), plan, 1_000, Tick(0.1, 200.0, 100))
        assert rate_of(self.pacer, state).participate == 0
        later = advance(self.pacer, state, plan, 1_000, Tick(0.18, 200.0, 200))
        assert later.control == state.control
        assert rate_of(self.pacer, later) == self.pacer.rate(later)

    @pytest.mark.parametrize(("jump", "most"), [(0.0, 0.05), (0.01, 0.03), (0.02, 0.02), (0.4, 0.02)])
    def test_campaign_waits_where_two_jumps_would_take_it_too_far_ahead(self, jump, most):
        state = start(self.pacer)
        for ahead, waits in ((most - 1e-3, False), (most + 1e-3, True)):
            rate = rate_of(self.pacer, replace(state, ahead=ahead, jump=jump))
            assert (rate.participate == 0) == waits

    def test_jump_is_the_largest_of_late(self):
        plan = plans.even()
        state = advance(self.pacer, start(self.pacer), plan, 10_000, Tick(0.001, 210.0, 10))
        assert state.jump == pytest.approx(0.02)
        smaller = advance(self.pacer, state, plan, 10_000, Tick(0.002, 240.0, 20))
        assert 0.95 * 0.02 < smaller.jump < 0.02
        larger = advance(self.pacer, smaller, plan, 10_000, Tick(0.003, 650.0, 30))
        assert larger.jump == pytest.approx(0.04)

    def test_more_spend_never_raises_the_rate(self):
        plan = plans.even()
        rates = []
        for spent in (0.0, 100.0, 1_000.0, 9_000.0):
            tick = Tick(0.1, spent, 1_000, 10_000, [9.0, 9.0, 9.0], [3.0, 0.5, 2.0])
            rate = rate_of(self.pacer, advance(self.pacer, start(self.pacer), plan, 10_000, tick))
            rates.append(rate.participate * rate.multiplier)
        assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1]

    def test_tick_that_is_not_later_changes_nothing(self):
        state = advance(self.pacer, start(self.pacer), plans.even(), 1_000, Tick(0.5, 400.0, 100))
        assert advance(self.pacer, state, plans.even(), 1_000, Tick(0.5, 900.0, 900)) == state
        assert advance(self.pacer, state, plans.even(), 1_000, Tick(0.4, 900.0, 900)) == state

    def test_new_day_keeps_the_control_and_forgets_the_sums(self):
        state = advance(self.pacer, start(self.pacer), plans.even(), 1_000, Tick(0.5, 400.0, 100))
        day = start(self.pacer, state)
        assert (day.control, day.position, day.spent_nanos, day.eligible) == (state.control, 0.0, 0.0, 0)
