"""Plans of hand-worked costs."""

import math

import pytest

from leadre.errors import InputError
from leadre.train import plan as plans
from leadre.train.plan import Costs, StepCost

STEPS = (StepCost(512, 0.5, 1000.0, 2000), StepCost(1024, 1.0, 1500.0, 1000), StepCost(2048, 2.0, 2500.0, 500))


def costs(steps=STEPS, search_s=0.1, visits=(10,) * 50, validation=(10,) * 50):
    return Costs(steps=steps, search_s=search_s, visits_U=visits, validation_U=validation)


@pytest.mark.parametrize(
    ("budget", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), (" 2 m", 120), ("none", None)]
)
def test_budget_is_parsed(budget, seconds):
    assert plans.seconds_of(budget) == seconds


@pytest.mark.parametrize("budget", ["", "10", "m", "0m", "-1m", "10 days", "nan m"])
def test_budget_without_number_or_unit_is_refused(budget):
    with pytest.raises(InputError, match=r"budget = .*10m"):
        plans.seconds_of(budget)


def test_memory_is_bounded_by_the_option_and_by_the_free_share():
    assert plans.memory_limit_mb(4000, 20_000) == 4000
    assert plans.memory_limit_mb(4000, 5_000) == 3000
    with pytest.raises(InputError, match=r"900 MB may be taken .60% of 1,500 MB"):
        plans.memory_limit_mb(4000, 1_500)


@pytest.mark.parametrize(
    ("objects", "levels"),
    [(1, (8, 8)), (60, (16, 16)), (1_682, (64, 64)), (12_101, (256, 256)), (100_000, (256, 256, 256))],
)
def test_levels_grow_with_the_catalogue(objects, levels):
    assert plans.semid_options(objects, 1_000)["levels"] == levels


def test_collaborative_columns_need_objects_with_events():
    assert plans.semid_options(80, 15) == {"levels": (16, 16), "collaborative": 0.0}
    assert plans.semid_options(80, 28) == {"levels": (16, 16), "collaborative": 0.7, "collaborative_dim": 7}


def test_visits_of_users_are_cut_before_users():
    assert plans.choose_visits((100, 30, 10), 140) == (0, 0, 140)
    assert plans.choose_visits((100, 30, 10), 90) == (0, 50, 90)
    assert plans.choose_visits((100, 30, 10), 30) == (0, 10, 30)
    assert plans.choose_visits((100, 30, 10), 14) == (2, 5, 10)
    assert plans.choose_visits((100, 30, 10), 0.1) == (1, 5, 5)


def test_largest_batch_leaves_enough_steps_and_fits_the_memory():
    assert plans.choose_batch(STEPS, 10_000, math.inf).batch_tokens == 2048
    assert plans.choose_batch(STEPS, 10_000, 100).batch_tokens == 1024
    assert plans.choose_batch(STEPS, 10_000, 5).batch_tokens == 512
    assert plans.choose_batch(STEPS, 1_960, math.inf).batch_tokens == 1024
    assert plans.choose_batch(STEPS, 1_100, math.inf).batch_tokens == 512
    with pytest.raises(InputError, match="512 positions takes 1,000 MB of 999 MB"):
        plans.choose_batch(STEPS, 999, math.inf)


def test_steps_fill_the_time_that_lists_and_report_leave():
    plan = plans.choose(costs(), left_s=400, limit_mb=10_000, epochs=3)
    # 500 test requests take 50 s, below a quarter of the time
    assert plan.changes["generate"] == {"users": 0, "visits": 0}
    tune = plan.changes["tune"]
    lists_s = 500 * 0.1
    checks_s = min(tune["validate_users"] * min(tune["validate_visits"], 10), 500) * 0.1
    assert checks_s <= 0.05 * 400
    assert tune["max_steps"] == tune["validate_every"] == int((0.8 * 400 - lists_s - checks_s) / 2.0)
    assert tune["batch_tokens"] == 2048


def test_steps_end_with_the_epochs_or_the_bound_of_the_config():
    few = costs(steps=[cost._replace(epoch_steps=5) for cost in STEPS])
    assert plans.choose(few, left_s=4_000, limit_mb=10_000, epochs=2).changes["tune"]["max_steps"] == 10
    assert plans.choose(few, left_s=4_000, limit_mb=10_000, epochs=2, max_steps=3).changes["tune"]["max_steps"] == 3


def test_no_budget_keeps_all_requests_and_epochs():
    plan = plans.choose(costs(), left_s=None, limit_mb=10_000, epochs=3)
    assert plan.changes == {"tune": {"batch_tokens": 2048}}


@pytest.mark.parametrize("left_s", [-5.0, 0.0, 6.0])
def test_too_little_time_gives_the_least_plan_and_a_reason(left_s):
    plan = plans.choose(costs(), left_s=left_s, limit_mb=10_000, epochs=3)
    assert (
        plan.reasons[0]
        == f"{max(left_s, 0):.0f} s of the budget are left; the least that gives a report takes about 8 s"
    )
    assert plan.changes["tune"]["max_steps"] == 8
    assert plan.changes["tune"]["batch_tokens"] == 512
    assert plan.changes["generate"] == {"users": 4, "visits": 5}
    in_time = plans.choose(costs(), left_s=60.0, limit_mb=10_000, epochs=3)
    assert "budget" not in in_time.reasons[0]


def test_learnt_prior_needs_requests_a_small_inventory_and_time():
    assert plans.has_learnt_prior(1_000, 500, None)
    assert plans.has_learnt_prior(25_840, 1_682, 600)
    assert not plans.has_learnt_prior(25_840, 1_682, 60)
    assert not plans.has_learnt_prior(34, 80, None)
    assert not plans.has_learnt_prior(1_000, 50_000, None)
