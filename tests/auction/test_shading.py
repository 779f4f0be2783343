"""Win curves from each kind of feedback, and the shaded bid against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.auction.shading import (
    SHADED_BY_AT_MOST,
    Feedback,
    WinCurve,
    explore,
    fit_by_value,
    fit_histogram,
    fit_log_normal,
    fit_logistic,
    grid,
)

INTEGERS = np.arange(1.0, 8.0)


def feedback_kinds(bid_N, price_N):
    won_N = bid_N >= price_N
    return {
        "price": Feedback.of_prices(bid_N, price_N),
        "price of wins": Feedback.of_won_prices(bid_N, won_N, np.where(won_N, price_N, np.nan)),
        "win or loss": Feedback.of_wins(bid_N, won_N),
    }


def test_histogram_of_known_prices_is_their_share():
    feedback = Feedback.of_prices(np.full(4, 9.0), np.array([2.0, 2.0, 5.0, 7.0]))
    curve = fit_histogram(feedback, INTEGERS)
    assert curve.win_G == pytest.approx([0, 0.5, 0.5, 0.5, 0.75, 0.75, 1.0], abs=1e-5)


def test_histogram_of_censored_prices_is_the_product_limit():
    # Won at prices 2, 3 and 5, lost with bids 3, 4 and 5. At risk: 6 at price 2, 5 at 3, 2 at 5.
    bid_N = np.array([6.0, 6.0, 6.0, 3.0, 4.0, 5.0])
    won_N = np.array([True, True, True, False, False, False])
    price_N = np.array([2.0, 3.0, 5.0, np.nan, np.nan, np.nan])
    curve = fit_histogram(Feedback.of_won_prices(bid_N, won_N, price_N), INTEGERS)
    after_2 = 5 / 6
    after_3 = after_2 * 4 / 5
    after_5 = after_3 * 1 / 2  # the price of the loss at 5 is above 5, so it is at risk there no more
    expected = [0, 1 - after_2, 1 - after_3, 1 - after_3, 1 - after_5]
    assert curve.win_G[:5] == pytest.approx(expected, abs=1e-3)


def test_histogram_of_wins_and_losses_is_isotonic_regression():
    # Win rates by bid: 1 of 4 at 2, 3 of 4 at 4, 2 of 4 at 6: the last two violate the order and are pooled to 5 of 8.
    bid_N = np.repeat([2.0, 4.0, 6.0], 4)
    won_N = np.array([1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0], bool)
    curve = fit_histogram(Feedback.of_wins(bid_N, won_N), INTEGERS)
    assert curve.win_G[[1, 3, 5]] == pytest.approx([0.25, 0.625, 0.625], abs=5e-3)


@pytest.mark.parametrize("kind", ["price", "price of wins", "win or loss"])
@pytest.mark.parametrize("fit", [fit_histogram, fit_log_normal])
def test_law_of_the_price_is_recovered_from_each_kind_of_feedback(kind, fit):
    generator = np.random.default_rng(1)
    price_N = np.exp(generator.normal(3.0, 0.6, 20_000))
    bid_N = np.exp(generator.uniform(1.5, 4.5, 20_000))
    curve = fit(feedback_kinds(bid_N, price_N)[kind], np.geomspace(4.0, 100.0, 256))
    probes = np.array([10.0, 20.0, 35.0])
    assert curve.win(probes) == pytest.approx([np.mean(price_N <= bid) for bid in probes], abs=0.04)


def test_prices_of_wins_alone_are_not_taken_for_all_prices():
    """The histogram of won prices is biased low; the fit is not."""
    generator = np.random.default_rng(2)
    price_N = np.exp(generator.normal(3.0, 0.6, 20_000))
    bid_N = np.exp(generator.uniform(1.5, 3.5, 20_000))
    won_N = bid_N >= price_N
    truth = np.mean(price_N <= 15)
    curve = fit_histogram(Feedback.of_won_prices(bid_N, won_N, price_N), np.geomspace(2.0, 200.0, 256))
    assert np.mean(price_N[won_N] <= 15) > truth + 0.2
    assert curve.win(np.array([15.0]))[0] == pytest.approx(truth, abs=0.04)


def test_logistic_curve_recovers_its_own_law():
    generator = np.random.default_rng(3)
    bid_N = np.exp(generator.uniform(0, 4, 20_000))
    won_N = generator.random(20_000) < 1 / (1 + np.exp(-(-4 + 2 * np.log(bid_N))))
    curve = fit_logistic(Feedback.of_wins(bid_N, won_N), np.geomspace(1.0, 60.0, 400))
    assert curve.win(np.array([np.exp(2.0)]))[0] == pytest.approx(0.5, abs=0.03)
    # First-order condition of arXiv 2009.09259: slope (v - b) / b = 1 + o b^slope.
    (bid,) = curve.shade(np.array([30.0]))
    assert 2 * (30 - bid) / bid == pytest.approx(1 + np.exp(-4) * bid**2, rel=0.1)


def test_prior_counts_as_auctions_with_known_prices():
    prior = WinCurve(INTEGERS, np.array([0, 0, 0, 0, 0, 0, 1.0]))
    feedback = Feedback.of_prices(np.full(3, 9.0), np.full(3, 2.0))
    curve = fit_histogram(feedback, INTEGERS, prior, prior_count=1.0)
    assert curve.win_G == pytest.approx([0, 0.75, 0.75, 0.75, 0.75, 0.75, 1.0], abs=1e-5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.lists(st.floats(0, 50), min_size=1, max_size=8))
@settings(deadline=None)
def test_shaded_bid_has_the_highest_expected_surplus(wins, values):
    curve = WinCurve(np.arange(1.0, len(wins) + 1), np.sort(wins))
    value_K = np.array(values)
    bid_K = curve.shade(value_K)
    surplus_KG = (value_K[:, None] - curve.bid_G) * curve.win_G
    surplus_K = (value_K - bid_K) * curve.win(bid_K)
    assert surplus_K == pytest.approx(np.maximum(surplus_KG.max(1), 0), abs=1e-6)
    assert (bid_K <= value_K).all()


def test_shaded_bid_rises_with_the_value():
    curve = fit_log_normal(Feedback.of_prices(np.full(3, 9.0), np.array([0.0, 4.0, 8.0])), np.geomspace(0.5, 50.0, 256))
    assert (np.diff(curve.shade(np.linspace(1, 100, 60))) >= 0).all()


def test_each_group_of_values_has_the_curve_of_its_prices():
    generator = np.random.default_rng(5)
    value_N = np.repeat([10.0, 40.0], 500)
    price_N = value_N * generator.uniform(0.2, 0.4, 1_000)
    feedback = Feedback.of_prices(value_N, price_N)
    curves = fit_by_value(fit_histogram, feedback, value_N, groups=2)
    assert curves.shade(np.array([40.0, 10.0])) == pytest.approx([16.0, 4.0], rel=0.1)
    assert len(curves.curves) == 2


def test_equal_values_make_one_group():
    feedback = Feedback.of_prices(np.full(4, 9.0), np.full(4, 2.0))
    curves = fit_by_value(fit_histogram, feedback, np.full(4, 9.0), groups=4)
    assert curves.shade(np.array([1.5, 9.0, 50.0])).tolist() == pytest.approx([0.0, 2.0, 2.0], rel=0.1)


def test_exploration_has_the_propensity_of_its_law():
    generator = np.random.default_rng(4)
    value_K = np.full(200_000, 8.0)
    bid_K, propensity_K = explore(value_K, np.full(200_000, 3.0), 0.02, *generator.random((2, 200_000)))
    is_drawn_K = bid_K != 3.0
    assert is_drawn_K.mean() == pytest.approx(0.02, rel=0.1)
    assert (bid_K[is_drawn_K] >= 8 * SHADED_BY_AT_MOST).all() and (bid_K[is_drawn_K] <= 8).all()
    assert propensity_K[~is_drawn_K] == pytest.approx(0.98)
    # The density integrates to the share: the mean of its inverse over drawn bids is the length of their range / share.
    assert np.mean(1 / propensity_K[is_drawn_K]) * 0.02 == pytest.approx(8 * (1 - SHADED_BY_AT_MOST), rel=0.02)


@pytest.mark.parametrize("fit", [fit_histogram, fit_log_normal, fit_logistic])
@pytest.mark.parametrize("kind", ["price of wins", "win or loss"])
def test_auctions_without_a_bid_change_no_law(fit, kind):
    """`shade` returns 0 where no bid is worth it; such an auction is lost at any price."""
    random = np.random.default_rng(7)
    bid_N = random.uniform(0.3, 3.0, 400)
    price_N = random.lognormal(0.0, 0.5, 400)
    bids = np.geomspace(0.1, 5.0, 16)
    law = fit(feedback_kinds(bid_N, price_N)[kind], bids)
    with_zeros = feedback_kinds(np.append(bid_N, np.zeros(40)), np.append(price_N, np.ones(40)))[kind]
    assert fit(with_zeros, bids).win_G == pytest.approx(law.win_G, abs=1e-3)  # steps of EM


def expected_surplus(curves, generator):
    """Of values and prices of the law below, per auction."""
    value_N = np.exp(generator.normal(0.0, 0.5, 20_000))
    price_N = value_N * np.exp(generator.normal(-0.7, 0.15, 20_000))
    bid_N = curves.shade(value_N)
    return ((value_N - bid_N) * (bid_N >= price_N) * (bid_N > 0)).mean()


@pytest.mark.parametrize("kind", ["price", "price of wins", "win or loss"])
@pytest.mark.parametrize("outliers", [[1e-6, 1e6], [1e-9] * 20, [1e9] * 20])
def test_far_amounts_leave_the_grid_of_the_others_fine(kind, outliers):
    """One bid of a millionth and one of a million times the usual; half a percent of the bids at one end."""
    generator = np.random.default_rng(11)
    value_N = np.exp(generator.normal(0.0, 0.5, 4_000))
    price_N = value_N * np.exp(generator.normal(-0.7, 0.15, 4_000))
    bid_N = value_N * generator.uniform(0.1, 1.0, 4_000)
    surplus = []
    for far in ([], outliers):
        values_N = np.append(value_N, far)
        feedback = feedback_kinds(np.append(bid_N, far), np.append(price_N, np.array(far) / 2))[kind]
        curves = fit_by_value(fit_histogram, feedback, values_N, groups=8)
        surplus.append(expected_surplus(curves, np.random.default_rng(12)))
    assert surplus[1] > 0.97 * surplus[0]


AMOUNTS = st.sampled_from((0.0, np.inf)) | st.floats(1e-9, 1e18)


@given(st.lists(st.tuples(AMOUNTS, AMOUNTS, AMOUNTS), max_size=100), st.sampled_from((16, 64)))
def test_grid_spans_the_bounds_by_at_most_so_many_bids(rows, points):
    low_N, high_N, value_N = np.array(rows).reshape(-1, 3).T
    bid_G = grid(Feedback(low_N, high_N, low_N, low_N > 0), value_N, points)
    assert 1 <= len(bid_G) <= points
    assert (np.diff(bid_G) > 0).all() and (bid_G > 0).all()
    bounds = [amount for amount in (*low_N, *high_N) if 0 < amount < np.inf]
    if bounds:
        assert bid_G[0] <= min(bounds) and bid_G[-1] >= max(bounds)
