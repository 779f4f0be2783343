"""Budgets over channels: bounds by hand, and the share of the optimum on drawn channels."""

import numpy as np
import pytest

from leadre.auction.channels import STEP, Channels

BUDGET_K = np.array([1.0, 2.0, 4.0, 8.0])


def test_bounds_share_what_arms_know():
    channels = Channels(
        budget_K=BUDGET_K,
        rate=4.0,
        count_MK=np.array([[0.0, 4.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]),
        value_MK=np.array([[0.0, 12.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0]]),
        dual=1.0,
    )
    # Arm 1: 3 + sqrt(4 / 4); arm 3: 3 + sqrt(4 / 1). Value rises with the budget and is concave.
    assert channels.bounds()[0].tolist() == [4.0, 4.0, 5.0, 5.0]
    assert np.isinf(channels.bounds()[1]).all()
    assert channels.choose().tolist() == [0, 0]  # 4 - 1 is the most; a channel without a past starts small


def test_smaller_arm_bounds_larger_ones_by_the_ratio_of_budgets():
    count_MK = np.array([[100.0, 0.0, 0.0, 1.0]])
    channels = Channels(BUDGET_K, 4.0, count_MK, np.array([[99.0, 0.0, 0.0, 99.0]]), 1.0)
    first = 0.99 + (1.99 / 100) ** 0.5
    assert channels.bounds()[0] == pytest.approx(first * BUDGET_K)


def test_period_by_hand():
    channels = Channels.of(2, BUDGET_K, rate=4.0, value_per_money=2.0)
    after = channels.after(np.array([1, 3]), np.array([2.0, 3.0]), np.array([5.0, 6.0]))
    assert after.count_MK.tolist() == [[0, 1, 0, 0], [0, 0, 1, 1]]  # 3 spent of 8: all arms of at least 3 get the same
    assert after.value_MK.tolist() == [[0, 5, 0, 0], [0, 0, 6, 6]]
    assert after.dual == pytest.approx(2.0 * np.exp(-STEP * (1 - 5.0 / 4.0)))


def test_learns_more_than_an_equal_split():
    """Values are c (1 - exp(-budget / scale)); counts are Poisson. The budget is kept over the periods."""
    generator = np.random.default_rng(2)
    budget_K = 90.0 * np.geomspace(1 / 64, 1, 12)
    level_M = np.array([40.0, 5.0, 5.0, 20.0])
    scale_M = np.array([50.0, 20.0, 90.0, 10.0])
    value_MK = level_M[:, None] * (1 - np.exp(-budget_K / scale_M[:, None]))
    channels = Channels.of(4, budget_K, 90.0, 0.5)
    periods = 300
    value = spent = 0.0
    for _ in range(periods):
        arm_M = channels.choose()
        expected_M = value_MK[np.arange(4), arm_M]
        channels = channels.after(arm_M, budget_K[arm_M], generator.poisson(expected_M).astype(float))
        value += expected_M.sum()
        spent += budget_K[arm_M].sum()
    equal = (level_M * (1 - np.exp(-90 / 4 / scale_M))).sum()
    assert spent <= 1.03 * 90.0 * periods
    assert value > 1.1 * equal * periods


def test_state_is_plain():
    channels = Channels.of(2, BUDGET_K, 4.0, 2.0).after(np.array([1, 2]), np.array([2.0, 4.0]), np.array([5.0, 6.0]))
    again = Channels.resume(channels.state)
    assert again.bounds().tolist() == channels.bounds().tolist() and again.dual == channels.dual
