"""Calibration: log-odds of a ranker -> probabilities that agree with observed rates, in each slice of the traffic.

Platt scaling (Platt, 1999) on rows between training and test: p = sigmoid(a_s + b z). All slices share the slope b; a
slice has its own intercept, shrunk towards the common one by n / (n + `SHRINKAGE`), n its expected positives.

Letters: N rows, S slices.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from leadre.errors import InputError
from leadre.units import US_PER_DAY

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

FILE = "calibration.json"
SHRINKAGE = 25.0  # intercepts of slices are expected to differ by about .2: 25 positives tell as much
MAX_STEPS = 100
TOLERANCE = 1e-10  # of the sum of observed less predicted, over the rows
SLICES = ("seen", "new")  # whether the object is in the user's history: the slice that matters most
MIN_POSITIVES = 20  # fewer do not determine two numbers


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """p = sigmoid(intercept + slope x log-odds), with an intercept for each slice, [S]."""

    slope: float
    intercept_S: tuple[float, ...]

    def save(self, folder: Path) -> None:
        """Write ``calibration.json``."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def apply(self, logit_N: Floats, slice_N: Ints) -> Floats:
        """Probabilities [N] in float64. A higher log-odds never gets a lower probability within a slice."""
        z_N = np.asarray(self.intercept_S)[slice_N] + self.slope * np.asarray(logit_N, np.float64)
        return np.asarray(expit(z_N), np.float64)


def load(folder: Path) -> Calibration:
    """The calibration that `Calibration.save` wrote."""
    parts = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return Calibration(slope=parts["slope"], intercept_S=tuple(parts["intercept_S"]))


def slices(is_new_N: Bools) -> Ints:
    """The slice of each row, as an index into `SLICES`."""
    return is_new_N.astype(np.int64)


def unsampled(logit_N: Floats, kept: float) -> Floats:
    """Log-odds [N] without sampling, from a model fitted on all positives and a share ``kept`` of the negatives."""
    assert 0 < kept <= 1, kept
    return np.asarray(logit_N + np.log(kept), np.float64)


def fit(logit_N: Floats, label_N: Bools, slice_N: Ints, slices: int) -> Calibration:
    """The calibration of these rows. InputError if it has few positives, or if a higher log-odds means a lower rate.

    A slice without rows gets the common intercept.
    """
    logit_N = np.asarray(logit_N, np.float64)
    assert np.isfinite(logit_N).all(), "a log-odds is not finite"
    positives = int(label_N.sum())
    if min(positives, len(label_N) - positives) < MIN_POSITIVES:
        raise InputError(
            f"calibration: {positives:,} of {len(label_N):,} rows are positive; it needs at least {MIN_POSITIVES} rows"
            " of each label: take a longer period"
        )
    common, slope = _platt(logit_N, label_N)
    if slope <= 0:
        raise InputError(
            f"calibration: the rate of positives falls as the model's log-odds rise (slope {slope:.3g});"
            " the model does not rank these rows, so train it on rows like them"
        )
    intercepts = []
    for number in range(slices):
        rows = slice_N == number
        offset_N = common + slope * logit_N[rows]
        expected = float(expit(offset_N).sum())
        own = _intercept(offset_N, float(label_N[rows].sum()))
        intercepts.append(common + own * expected / (expected + SHRINKAGE))
    return Calibration(slope=slope, intercept_S=tuple(intercepts))


def refitted(logit_N: Floats, label_N: Bools, slice_N: Ints, at_us_N: Ints, from_us: int, days: int) -> Floats:
    """Probabilities [N] of the rows from ``from_us`` on, NaN before: every ``days`` the calibration is fitted again.

    Each fit has the rows of the last ``days`` with any before it, so that no row is calibrated on its own outcome or on
    a later one.
    Rates drift by season and offer, and the last days know most of the next. Errors: those of `fit`.
    """
    period_N = (at_us_N - from_us) // (days * US_PER_DAY)
    p_N = np.full(len(logit_N), np.nan)
    for previous, period in pairwise(np.unique([-1, *period_N[period_N >= 0]])):
        before = period_N == previous
        rows = period_N == period
        fitted = fit(logit_N[before], label_N[before], slice_N[before], len(SLICES))
        p_N[rows] = fitted.apply(logit_N[rows], slice_N[rows])
    return p_N


def _platt(logit_N: Floats, label_N: Bools) -> tuple[float, float]:
    """(intercept, slope) of least log loss, by Newton's method with halved steps where a full one overshoots."""
    design = np.stack([np.ones_like(logit_N), logit_N])
    weights = np.array([0.0, 1.0])
    loss = _loss(weights @ design, label_N)
    for _ in range(MAX_STEPS):
        p_N = expit(weights @ design)
        gradient = design @ (p_N - label_N)
        if np.abs(gradient).max() < TOLERANCE * len(label_N):
            break
        curvature = (design * (p_N * (1 - p_N))) @ design.T
        step = np.linalg.solve(curvature + 1e-12 * np.trace(curvature) * np.eye(2), gradient)
        while (tried := _loss((weights - step) @ design, label_N)) > loss and np.abs(step).max() > 1e-12:
            step = step / 2
        weights = weights - step
        loss = tried
    return float(weights[0]), float(weights[1])


def _intercept(offset_N: Floats, positives: float) -> float:
    """The number that, added to the log-odds, makes the sum of p equal to ``positives``; within +-20."""
    low, high = -20.0, 20.0
    if not len(offset_N):
        return 0.0
    for _ in range(60):  # the sum rises with the number, so bisection cannot miss
        middle = (low + high) / 2
        low, high = (middle, high) if expit(offset_N + middle).sum() < positives else (low, middle)
    return (low + high) / 2


def _loss(z_N: Floats, label_N: Bools) -> float:
    return float(np.logaddexp(0, np.where(label_N, -z_N, z_N)).sum())
