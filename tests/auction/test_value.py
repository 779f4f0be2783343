"""Values and multipliers: each rule wins exactly the auctions that its own aim gains from."""

import numpy as np
import pytest

from leadre.auction import value
from leadre.types import Goal

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
    ):
        assert multiplier == value.MAX_MULTIPLIER


def test_price_equal_to_the_worth_of_an_action_meets_the_target_exactly():
    assert Goal(kind="cpa", target_nanos=600).worth_nanos == 600
    assert 900 / Goal(kind="roas", target_return=3.0, conversion_nanos=900).worth_nanos == pytest.approx(3.0)
