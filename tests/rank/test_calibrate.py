"""Calibration recovers planted distortions, slice by slice, and is a fixed point of itself."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from leadre.errors import InputError
from leadre.rank import calibrate
from leadre.units import US_PER_DAY


@pytest.fixture(scope="module")
def rows():
    """(true log-odds, label, slice) of 60,000 rows: slice 1 converts less often than its features say."""
    rng = np.random.default_rng(2)
    slice_N = rng.integers(0, 2, 60_000)
    true = rng.normal(-3, 1, 60_000) - 0.8 * slice_N
    return true, rng.random(60_000) < expit(true), slice_N


def test_planted_scale_and_offset_are_recovered(rows):
    true, label, slice_N = rows
    fitted = calibrate.fit((true - 0.7) * 2, label, np.zeros_like(slice_N), 1)
    assert fitted.slope == pytest.approx(0.5, rel=0.03)
    assert fitted.intercept_S[0] == pytest.approx(0.7, abs=0.1)
    p = fitted.apply((true - 0.7) * 2, np.zeros_like(slice_N))
    assert p.sum() == pytest.approx(label.sum(), rel=1e-6)


def test_slices_have_their_own_rates(rows):
    true, label, slice_N = rows
    blind = true + 0.8 * slice_N  # a model that does not know the slice
    p = calibrate.fit(blind, label, slice_N, 2).apply(blind, slice_N)
    for number in (0, 1):
        rows_of = slice_N == number
        assert p[rows_of].sum() / label[rows_of].sum() == pytest.approx(1, abs=0.05)
    common = calibrate.fit(blind, label, np.zeros_like(slice_N), 1)
    off = common.apply(blind, np.zeros_like(slice_N))[slice_N == 1].sum() / label[slice_N == 1].sum()
    assert off > 1.2, "without slices the planted difference shows"


def test_small_and_empty_slices_lean_on_the_common_rate(rows):
    true, label, _ = rows
    slice_N = np.zeros(len(true), np.int64)
    slice_N[np.flatnonzero(label)[:5]] = 1  # five rows, all positive
    fitted = calibrate.fit(true, label, slice_N, 3)
    alone = calibrate.fit(true, label, np.zeros_like(slice_N), 1).intercept_S[0]
    assert 0 < fitted.intercept_S[1] - alone < 1, "a slice of positives alone asks for +20"
    assert fitted.intercept_S[2] == pytest.approx(fitted.intercept_S[0], abs=0.02)


def test_calibration_is_monotone_and_idempotent(rows):
    true, label, slice_N = rows
    fitted = calibrate.fit(true * 3 + 1, label, slice_N, 2)
    grid = np.linspace(-800, 800, 4001)
    for number in (0, 1):
        p = fitted.apply(grid, np.full(len(grid), number))
        assert (np.diff(p) >= 0).all() and np.isfinite(p).all() and p[0] < 1e-100 and p[-1] == 1
    p = fitted.apply(true * 3 + 1, np.zeros_like(slice_N))
    once = calibrate.fit(true, label, np.zeros_like(slice_N), 1)
    z = once.intercept_S[0] + once.slope * true
    again = calibrate.fit(z, label, np.zeros_like(slice_N), 1)
    assert again.slope == pytest.approx(1, abs=1e-6) and again.intercept_S[0] == pytest.approx(0, abs=1e-6)


def test_sampled_negatives_are_corrected_in_the_log_odds(rows):
    true, label, _ = rows
    rng = np.random.default_rng(0)
    kept = label | (rng.random(len(label)) < 0.1)
    sampled = calibrate.fit(true[kept], label[kept], np.zeros(kept.sum(), np.int64), 1)
    z = calibrate.unsampled(sampled.intercept_S[0] + sampled.slope * true, 0.1)
    assert expit(z).sum() == pytest.approx(label.sum(), rel=0.03)


def test_rows_that_cannot_be_calibrated_are_refused(rows):
    true, label, slice_N = rows
    with pytest.raises(InputError, match="0 of 60,000 rows are positive"):
        calibrate.fit(true, np.zeros_like(label), slice_N, 2)
    with pytest.raises(InputError, match="falls as the model's log-odds rise"):
        calibrate.fit(-true, label, slice_N, 2)


def test_separable_rows_end_with_finite_numbers():
    true = np.repeat([-5.0, 5.0], 50)
    fitted = calibrate.fit(true, true > 0, np.zeros(100, np.int64), 1)
    assert np.isfinite([fitted.slope, *fitted.intercept_S]).all()


def test_refits_follow_a_rate_that_drifts_and_read_no_later_outcome(rows):
    true, _, slice_N = rows
    day_N = np.sort(np.random.default_rng(0).integers(0, 35, len(true)))
    label = np.random.default_rng(1).random(len(true)) < expit(true + 0.03 * day_N)
    at_us = day_N * US_PER_DAY
    p = calibrate.refitted(true, label, slice_N, at_us, 7 * US_PER_DAY, 7)
    assert np.isnan(p[day_N < 7]).all()
    late = day_N >= 28
    once = calibrate.fit(true[day_N < 7], label[day_N < 7], slice_N[day_N < 7], 2).apply(true, slice_N)
    assert once[late].sum() / label[late].sum() < 0.7
    assert p[late].sum() / label[late].sum() == pytest.approx(0.82, abs=0.06), "a week behind the drift"
    changed = label & (day_N < 28)
    again = calibrate.refitted(true, changed, slice_N, at_us, 7 * US_PER_DAY, 7)
    np.testing.assert_array_equal(again, p)


def test_a_period_without_rows_leaves_the_fit_before_it(rows):
    true, label, slice_N = rows
    day_N = np.sort(np.random.default_rng(0).integers(0, 14, len(true)))
    at_us = np.where(day_N < 7, day_N, day_N + 14) * US_PER_DAY  # two weeks are missing
    p = calibrate.refitted(true, label, slice_N, at_us, 7 * US_PER_DAY, 7)
    first = day_N < 7
    expected = calibrate.fit(true[first], label[first], slice_N[first], 2).apply(true[~first], slice_N[~first])
    np.testing.assert_array_equal(p[~first], expected)
