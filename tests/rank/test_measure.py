"""Measures of probabilities against hand-worked numbers and slow definitions."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from leadre import metrics
from leadre.rank import measure


def slow_auc(label, score):
    pairs = [(p > n) + (p == n) / 2 for p, n in product(score[label], score[~label])]
    return np.mean(pairs)


@pytest.fixture
def rows():
    """(label, score with ties, user) of 3,000 rows of 40 users, whose scores carry some truth."""
    rng = np.random.default_rng(5)
    label = rng.random(3000) < 0.2
    score = np.round(rng.normal(size=3000) + label, 1)
    return label, score, rng.integers(0, 40, 3000)


def test_auc_counts_pairs_and_half_of_the_ties(rows):
    assert measure.auc(np.array([True, False, False, True]), np.array([0.9, 0.1, 0.9, 0.5])) == (1 + 0.5 + 1 + 0) / 4
    label, score, _ = rows
    assert measure.auc(label, score) == pytest.approx(slow_auc(label, score))
    assert np.isnan(measure.auc(np.ones(3, bool), np.arange(3.0)))
    assert np.isnan(measure.auc(np.zeros(0, bool), np.zeros(0)))


def test_group_auc_weights_groups_by_rows_and_leaves_out_those_of_one_label(rows):
    label, score, user = rows
    label[user == 7] = False
    result = measure.group_auc(label, score, user)
    expected = {u: slow_auc(label[user == u], score[user == u]) for u in range(40) if u != 7}
    assert result.group_G.tolist() == sorted(expected)
    assert result.auc_G == pytest.approx([expected[u] for u in sorted(expected)])
    weights = [np.sum(user == u) for u in sorted(expected)]
    assert result.mean == pytest.approx(np.average([expected[u] for u in sorted(expected)], weights=weights))
    assert result.share == pytest.approx(np.mean(user != 7))
    assert result.by_user(result.group_G, 40).mean == pytest.approx(result.mean)


def test_order_of_rows_changes_nothing(rows):
    label, score, user = rows
    shuffled = np.random.default_rng(1).permutation(len(label))
    again = measure.group_auc(label[shuffled], score[shuffled], user[shuffled])
    assert again.mean == pytest.approx(measure.group_auc(label, score, user).mean, abs=1e-12)


def test_resampled_auc_is_that_of_the_drawn_rows(rows):
    label, score, user = rows
    scores = np.stack([score, -score], axis=1)
    values = measure.bootstrap_auc(label, scores, user, 40, resamples=6, seed=3)
    (_, drawn), *_ = metrics.draws(40, resamples=6, seed=3)
    for count, value in zip(drawn, values, strict=True):
        take = np.repeat(np.arange(len(label)), count.astype(int)[user])
        assert value[0] == pytest.approx(measure.auc(label[take], score[take]), abs=2e-3)
        assert value.sum() == pytest.approx(1, abs=2e-3)
    spread = measure.bootstrap_auc(label, scores, user, 40, resamples=300, seed=4)
    assert abs(spread[:, 0].mean() - measure.auc(label, score)) < 0.01 and 0 < spread[:, 0].std() < 0.05


def test_entropy_is_normalised_by_that_of_the_base_rate():
    label = np.arange(1000) < 100
    loss = measure.log_losses(label, np.full(1000, 0.1)).mean()
    assert measure.normalised_entropy(loss, 0.1) == pytest.approx(1)
    better = measure.log_losses(label, np.where(label, 0.5, 0.05)).mean()
    assert measure.normalised_entropy(better, 0.1) < 1
    assert np.isfinite(measure.log_losses(label, np.where(label, 0.0, 1.0))).all()


def test_calibration_error_is_relative_to_the_base_rate():
    rng = np.random.default_rng(0)
    p = rng.beta(1, 99, 200_000)
    label = rng.random(len(p)) < p
    assert measure.calibration_error(label, np.zeros(len(p))) == pytest.approx(1), "p = 0 is wrong by the whole rate"
    assert measure.calibration_error(label, p) == pytest.approx(measure.drawn_calibration_error(p), abs=0.03)
    assert measure.calibration_error(label, p / 2) == pytest.approx(0.5, abs=0.02)
    curve = measure.calibration_curve(label, p, bins=7)
    assert np.ptp(curve.rows_K) <= 1 and (np.diff(curve.p_K) > 0).all()
    assert np.average(curve.rate_K, weights=curve.rows_K) == pytest.approx(label.mean())
    assert len(measure.calibration_curve(label[:3], p[:3]).p_K) == 3


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(AssertionError, match="not a number"):
        measure.auc(np.array([True, False]), np.array([0.1, np.nan]))
