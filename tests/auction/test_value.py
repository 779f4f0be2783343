"""Values and multipliers: each rule wins exactly the auctions that its own aim gains from."""

import numpy as np
import pytest

from leadre.auction import value

PRICES = np.linspace(0.05, 12.0, 240)  # of auctions, for a value of 1


@pytest.mark.parametrize(
    ("multiplier", "gain_at"),
    [
        (value.surplus_under_budget(0.7), lambda p: (1 - p) - 0.7 * p),
        (value.value_under_budget(0.7), lambda p: 1 - 0.7 * p),
        (value.value_under_budget(2.5), lambda p: 1 - 2.5 * p),
        (value.value_at_return(0.4), lambda p: 1 + 0.4 * (1 - p)),
        (value.value_at_return_under_budget(0.4, 0.7), lambda p: 1 + 0.4 * (1 - p) - 0.7 * p),
    ],
)
def test_multiplier_wins_the_auctions_of_positive_gain(multiplier, gain_at):
    wins = multiplier >= PRICES  # a truthful auction: the bid is value x multiplier
    gains = gain_at(PRICES)
    assert (wins == (gains >= 0)).all()
    assert 0 < wins.sum() < len(wins)


def test_multiplier_is_bounded_without_a_binding_constraint():
    assert value.surplus_under_budget(0.0) == 1.0
    for multiplier in (
        value.value_under_budget(0.0),
        value.value_at_return(0.0),
        value.value_at_return_under_budget(0.0, 0.0),
    ):
        assert multiplier == value.MAX_MULTIPLIER


def test_values_of_one_impression():
    rate_K = np.array([1.0, 0.02, 1.5])
    assert value.bid_value_nanos(np.array([3, 500, 7]), rate_K).tolist() == [3, 10, 7]  # no rate counts above 1
    assert value.target_cpa_value_nanos(np.array([2_000]), np.array([0.01])).tolist() == [20]
    assert value.target_roas_value_nanos(np.array([9_000.0]), np.array([0.01]), 4.5).tolist() == [20]


def test_targets_are_one_constraint_on_values():
    """At a price equal to its value, an impression costs exactly the target per conversion, or returns it exactly."""
    p_conversion = np.array([0.03])
    price = value.target_cpa_value_nanos(np.array([600]), p_conversion)
    assert price / p_conversion == pytest.approx(600)
    price = value.target_roas_value_nanos(np.array([900.0]), p_conversion, 3.0)
    assert 900 * p_conversion / price == pytest.approx(3.0)
