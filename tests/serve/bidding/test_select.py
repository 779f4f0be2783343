"""The pure steps of a bid decision, against hand-worked numbers."""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from leadre.serve.bidding import select
from leadre.types import Verdict


def test_rank_is_by_probability_times_value():
    """.5 x 200, .4 x 300, .1 x 900: 100, 120, 90; a value of 0 counts as 1 nano."""
    score_K = np.log([0.5, 0.4, 0.1, 0.9])
    assert select.rank(select.log_values(score_K, np.array([200, 300, 900, 0]))).tolist() == [1, 0, 2, 3]


def test_rank_keeps_the_order_of_the_source_among_ties():
    assert select.rank(select.log_values(np.full(5, log(0.2)), np.full(5, 7))).tolist() == [0, 1, 2, 3, 4]
    assert select.rank(np.zeros(0)).tolist() == []


def test_equal_values_alone_are_ordered_by_their_keys():
    tied = []

    def keys(positions):
        tied.extend(positions.tolist())
        return (100 - positions).astype(np.uint64)  # the last position first

    assert select.rank(np.array([1.0, 2.0, 1.0, 3.0, 2.0, 1.0]), keys).tolist() == [3, 4, 1, 5, 2, 0]
    assert sorted(tied) == [0, 1, 2, 4, 5]
    assert select.rank(np.array([1.0, 2.0]), lambda positions: pytest.fail("nothing is tied")).tolist() == [1, 0]
    assert select.rank(np.zeros(0), keys).tolist() == []


def test_filter_gives_the_first_reason_that_drops_a_candidate():
    price_K = np.array([5, 5, 4, 4, 4, 4, 4])
    floor_K = np.array([5, 6, 6, select.UNKNOWN_FLOOR, 6, 6, 6])
    code_K = select.filter_candidates(
        price_K,
        floor_K,
        np.array([1, 1, 1, 1, 1, 1, 0], np.bool_),
        are_duplicates=[np.array(row, np.bool_) for row in ([0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1, 0])],
        has_currency_K=np.array([1, 1, 1, 1, 0, 0, 0], np.bool_),
    )
    assert select.verdicts_of(code_K) == (
        Verdict.NOT_SELECTED,
        Verdict.BELOW_FLOOR,
        Verdict.BELOW_FLOOR,
        Verdict.FLOOR_CURRENCY,
        Verdict.RESPONSE_CURRENCY,
        Verdict.DUPLICATE,
        Verdict.INELIGIBLE,
    )


@pytest.mark.parametrize("floor", [6, select.UNKNOWN_FLOOR, 1])
def test_one_floor_for_all_candidates_is_as_many_equal_floors(floor):
    price_K = np.array([5, 6, 7])
    is_eligible_K = np.array([1, 1, 0], np.bool_)
    code_K = select.filter_candidates(price_K, floor, is_eligible_K)
    assert code_K.tolist() == select.filter_candidates(price_K, np.full(3, floor), is_eligible_K).tolist()
    assert code_K.dtype == np.uint8


@pytest.mark.parametrize(
    ("is_payable", "count"),
    [
        ([], 0),
        ([0, 0, 0], 3),
        ([1] * 19, 19),
        ([1] * 20, 20),
        ([1] * 50, 20),
        ([0, 1] * 30, 40),
        ([1] * 19 + [0] * 5 + [1, 1], 25),
        ([1] * 20 + [0] * 5, 20),
    ],
)
def test_candidates_are_considered_up_to_the_20th_payable_one(is_payable, count):
    limited = [True] * len(is_payable)
    verdict_of = [None if payable else Verdict.NO_BUDGET for payable in is_payable]
    considered = select.consider(range(len(is_payable)), limited, verdict_of.__getitem__)
    assert considered.all == list(range(count))
    assert considered.payable == [k for k in range(count) if is_payable[k]]
    assert considered.verdicts == {k: Verdict.NO_BUDGET for k in range(count) if not is_payable[k]}


def test_candidates_are_considered_in_rank_order():
    verdicts = {3: Verdict.UNKNOWN_USER_CAP, 0: Verdict.NO_BUDGET}
    considered = select.consider([2, 3, 0, 1], [True] * 4, verdicts.get)
    assert considered == ([2, 3, 0, 1], [2, 1], verdicts)


def test_candidates_without_a_limit_are_payable_unchecked():
    verdicts = {0: Verdict.NO_BUDGET, 1: Verdict.NO_BUDGET}
    considered = select.consider([1, 0, 2], [True, False, False], verdicts.get)
    assert considered == ([1, 0, 2], [1, 2], {0: Verdict.NO_BUDGET})


@pytest.mark.parametrize(
    ("explore_draw", "choice_draw", "selected", "propensity"),
    [
        (0.30, 0.99, 0, 0.775),  # .3 / 4 + .7: no exploration at a draw of epsilon
        (0.29, 0.00, 0, 0.775),  # exploration draws the best
        (0.29, 0.24, 0, 0.775),
        (0.29, 0.25, 1, 0.075),  # .3 / 4
        (0.00, 0.99, 3, 0.075),
    ],
)
def test_epsilon_greedy_selects_and_returns_the_propensity(explore_draw, choice_draw, selected, propensity):
    assert select.epsilon_greedy(4, 0.3, explore_draw, choice_draw) == (selected, pytest.approx(propensity))


def test_a_single_choice_has_propensity_one():
    assert select.epsilon_greedy(1, 0.3, 0.1, 0.9) == (0, pytest.approx(1.0))


def test_propensities_of_all_choices_sum_to_one():
    """.3 explore: four choices of .075, and .7 for the best."""
    propensity = dict(select.epsilon_greedy(4, 0.3, 0.0, choice / 4) for choice in range(4))
    assert sorted(propensity) == [0, 1, 2, 3] and sum(propensity.values()) == pytest.approx(1.0)


def test_codes_are_the_positions_of_verdicts():
    assert [verdict.code for verdict in select.VERDICTS] == list(range(len(Verdict)))


def test_ranking_keeps_currencies_apart_and_ads_of_the_api_last():
    order_K = np.array([4, 0, 3, 1, 2])
    place_K = np.array([1, 0, 0, 1, 0])
    is_api_ad_K = np.array([False, False, False, False, True])
    assert select.by_currency(order_K, is_api_ad_K, place_K).tolist() == [1, 2, 0, 3, 4]
