"""Plans of hand-worked costs."""

import math

import pytest

from leadre.errors import InputError
from leadre.train import plan as plans
from leadre.train.plan import Costs, Fixed, StepCost

STEPS = (StepCost(512, 0.5, 1000.0, 2000), StepCost(1024, 1.0, 1500.0, 1000), StepCost(2048, 2.0, 2500.0, 500))


def costs(steps=STEPS, search_s=0.1, visits=(10,) * 50, validation=(10,) * 50):
    return Costs(steps=steps, search_s=search_s, visits_U=visits, validation_U=validation)


@pytest.mark.parametrize(
    ("budget", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), (" 2 m", 120), ("none", None)]
)
def test_budget_is_parsed(budget, seconds):
    assert plans.seconds_of(budget) == seconds


@pytest.mark.parametrize(
    "budget",
    [
        "",
        "10",
        "m",
        "0m",
        "-1m",
        "10 days",
        "nan m",
        "inf h",
        "1e3 s",
        "9" * 400 + "s",
        "9" * 308 + "h",
        "10001h",
        "\u0967\u0966m",
    ],
)
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
    assert (
        plans.choose(few, left_s=4_000, limit_mb=10_000, epochs=2, fixed=Fixed(max_steps=3)).changes["tune"][
            "max_steps"
        ]
        == 3
    )


def test_options_that_the_config_sets_are_in_the_plan_and_its_reasons():
    plan = plans.choose(costs(), left_s=400, limit_mb=10_000, epochs=3, fixed=Fixed(max_steps=5, users=10, visits=4))
    assert plan.changes["tune"]["max_steps"] == plan.changes["tune"]["validate_every"] == 5
    assert plan.changes["generate"] == {"users": 10, "visits": 4}
    assert plan.reasons[0].startswith("5 steps of about 2,048 positions")
    assert plan.reasons[1] == "lists for 40 of 500 test requests, 0.10 s each"
    # Lists of all requests leave less time for steps.
    all_requests = costs(steps=STEPS[:1], search_s=0.5)
    free = plans.choose(all_requests, left_s=400, limit_mb=10_000, epochs=3).changes["tune"]["max_steps"]
    plan = plans.choose(all_requests, left_s=400, limit_mb=10_000, epochs=3, fixed=Fixed(users=0, visits=0))
    assert plan.changes["tune"]["max_steps"] < free
    assert plan.reasons[1] == "lists for 500 of 500 test requests, 0.50 s each"


def test_fixed_validations_take_their_time_from_the_steps():
    fixed = Fixed(validate_every=10, validate_users=20, validate_visits=5)
    plan = plans.choose(costs(), left_s=400, limit_mb=10_000, epochs=3, fixed=fixed)
    tune = plan.changes["tune"]
    assert (tune["validate_every"], tune["validate_users"], tune["validate_visits"]) == (10, 20, 5)
    # 100 requests of .1 s are 10 s at the end and 1 s a step, beside 50 s of lists and 80 s of evaluation.
    assert tune["max_steps"] == int((0.8 * 400 - 50 - 10) / (tune["batch_tokens"] / 1024 + 1))


def test_fixed_options_beyond_the_budget_are_a_reason():
    plan = plans.choose(costs(), left_s=100, limit_mb=10_000, epochs=3, fixed=Fixed(max_steps=400))
    # The smallest batch takes 200 s. Of the budget 80 s are left for it, lists (25 s) and validations (5 s).
    assert plan.changes["tune"]["batch_tokens"] == 512
    assert plan.reasons[0] == "options that the config sets: they take 150 s more than the budget leaves"


def test_no_budget_keeps_all_requests_and_epochs():
    plan = plans.choose(costs(), left_s=None, limit_mb=10_000, epochs=3)
    assert plan.changes == {"tune": {"batch_tokens": 2048}}
    assert plan.reasons[1].startswith("1,500 steps of about 2,048 positions, 2.00 s each: 3 passes")
    plan = plans.choose(costs(), left_s=None, limit_mb=10_000, epochs=3, fixed=Fixed(max_steps=50, users=5))
    assert plan.reasons[1].startswith("50 steps of about 2,048 positions, 2.00 s each: 0.1 passes")
    assert plan.reasons[2] == "lists for 50 of 500 test requests, 0.10 s each"


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
