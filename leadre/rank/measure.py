"""Measures of predicted probabilities: how well they order (AUC, GAUC), and how far they are from outcomes (NE, ECE).

A row is a (request, ad) pair with a label, 0 or 1. Rows of one user are not independent, so intervals resample users.
Letters: N rows, G groups, U users, M models, B resamples, K bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadre import metrics

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MIN_P = 1e-7  # log loss takes a probability as at least this far from 0 and from 1
SCORE_BINS = 2000  # of the AUC of a resample


@dataclass(frozen=True, kw_only=True)
class GroupAuc:
    """AUC of each group that has rows of both labels, [G]; ``rows_G`` are their weights in the mean."""

    group_G: Ints
    auc_G: Floats
    rows_G: Ints
    all_rows: int

    @property
    def mean(self) -> float:
        """GAUC: the mean of the groups' AUC by rows (DIN, arXiv 1706.06978). NaN if no group has both labels."""
        return float(np.average(self.auc_G, weights=self.rows_G)) if len(self.auc_G) else float("nan")

    @property
    def share(self) -> float:
        """Share of the rows that are in groups with both labels."""
        return float(self.rows_G.sum()) / self.all_rows if self.all_rows else 0.0

    def by_user(self, user_G: Ints, users: int) -> metrics.Ratio:
        """GAUC as a ratio of sums over users; ``user_G``: the user of each group of ``group_G``."""
        return metrics.ratio(self.auc_G * self.rows_G, self.rows_G, user_G, users)


def auc(label_N: Bools, score_N: Floats) -> float:
    """Probability that a positive row scores higher than a negative one; a tie counts one half.

    NaN if all labels are equal.
    """
    return group_auc(label_N, score_N, np.zeros(len(label_N), np.int64)).mean


def group_auc(label_N: Bools, score_N: Floats, group_N: Ints) -> GroupAuc:
    """AUC within each group (a user, or a request), from rank sums (Mann and Whitney)."""
    _check(label_N, score_N)
    order = np.lexsort((score_N, group_N))
    group = group_N[order]
    label = label_N[order].astype(np.float64)
    starts = np.flatnonzero(_differs(group))
    rows_G = np.diff(np.append(starts, len(order)))
    rank_N = _tied_ranks(group, score_N[order]) - np.repeat(starts, rows_G)
    positives_G = np.add.reduceat(label, starts) if len(starts) else np.zeros(0)
    rank_sum_G = np.add.reduceat(rank_N * label, starts) if len(starts) else np.zeros(0)
    pairs_G = positives_G * (rows_G - positives_G)
    counts_G = pairs_G > 0
    wins_G = rank_sum_G - positives_G * (positives_G + 1) / 2
    return GroupAuc(
        group_G=group[starts][counts_G],
        auc_G=wins_G[counts_G] / pairs_G[counts_G],
        rows_G=rows_G[counts_G],
        all_rows=len(order),
    )


def bootstrap_auc(label_N: Bools, score_NM: Floats, user_N: Ints, users: int, *, resamples: int, seed: int) -> Floats:
    """AUC [B, M] of each model on users drawn with replacement, the same users as in `metrics.bootstrap`.

    Scores are put into bins of equal count, and two rows of a bin are a tie: a resample costs a product of matrices
    instead of a sort.
    """
    models = score_NM.shape[1]
    columns = []
    for m in range(models):
        bin_N = _equal_count_bins(score_NM[:, m], SCORE_BINS)
        cell_N = user_N * SCORE_BINS + bin_N
        for weight_N in (label_N, ~label_N):
            counts = np.bincount(cell_N[weight_N], minlength=users * SCORE_BINS)
            columns.append(counts.reshape(users, SCORE_BINS).astype(np.float32))
    values_BM = np.full((resamples, models), np.nan)
    for start, count_bU in metrics.draws(users, resamples=resamples, seed=seed):
        weights = count_bU.astype(np.float32)
        for m in range(models):
            positive_bK = (weights @ columns[2 * m]).astype(np.float64)
            negative_bK = (weights @ columns[2 * m + 1]).astype(np.float64)
            below_bK = np.cumsum(negative_bK, axis=1) - negative_bK / 2
            pairs_b = positive_bK.sum(axis=1) * negative_bK.sum(axis=1)
            wins_b = (positive_bK * below_bK).sum(axis=1)
            np.divide(wins_b, pairs_b, out=values_BM[start : start + len(weights), m], where=pairs_b > 0)
    return values_BM


def log_losses(label_N: Bools, p_N: Floats) -> Floats:
    """-log of the probability given to each outcome, [N] in nats."""
    _check(label_N, p_N)
    p_N = np.clip(p_N, MIN_P, 1 - MIN_P)
    return np.where(label_N, -np.log(p_N), -np.log1p(-p_N))


def normalised_entropy(log_loss: Floats | float, rate: Floats | float) -> Floats:
    """Log loss over the entropy of the base rate (He et al., ADKDD 2014): 1 for a model that knows the rate alone."""
    rate = np.clip(np.asarray(rate, np.float64), MIN_P, 1 - MIN_P)
    return np.asarray(log_loss / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)), np.float64)


def calibration_error(label_N: Bools, p_N: Floats, *, bins: int = 20) -> float:
    """ECE over the base rate: mean |observed rate - mean p| over bins of equal count, divided by the mean label.

    On rare outcomes a bound on ECE itself is empty, as p = 0 for all rows has an ECE of the base rate.
    """
    curve = calibration_curve(label_N, p_N, bins=bins)
    error = float(np.average(np.abs(curve.rate_K - curve.p_K), weights=curve.rows_K))
    return error / max(float(label_N.mean()), MIN_P)


@dataclass(frozen=True, kw_only=True)
class CalibrationCurve:
    """Mean probability, observed rate and rows of each bin, [K], lowest probability first."""

    p_K: Floats
    rate_K: Floats
    rows_K: Ints


def calibration_curve(label_N: Bools, p_N: Floats, *, bins: int = 20) -> CalibrationCurve:
    """Bins of equal count by probability; fewer if there are fewer rows."""
    _check(label_N, p_N)
    bin_N = _equal_count_bins(p_N, min(bins, len(p_N)))
    rows_K = np.bincount(bin_N)
    return CalibrationCurve(
        p_K=np.bincount(bin_N, weights=p_N) / rows_K,
        rate_K=np.bincount(bin_N, weights=label_N) / rows_K,
        rows_K=rows_K,
    )


def drawn_calibration_error(p_N: Floats, *, bins: int = 20, draws: int = 20, seed: int = 0) -> float:
    """`calibration_error` of labels drawn from the probabilities themselves, the mean of ``draws``.

    Noise of the labels alone gives this much, so a perfect model is not expected to be below it.
    """
    rng = np.random.default_rng(seed)
    errors = [calibration_error(rng.random(len(p_N)) < p_N, p_N, bins=bins) for _ in range(draws)]
    return float(np.mean(errors))


def _check(label_N: Bools, score_N: Floats) -> None:
    assert label_N.dtype == np.bool_ and label_N.shape == score_N.shape, (label_N.dtype, label_N.shape, score_N.shape)
    assert not np.isnan(score_N).any(), "a score is not a number"


def _differs(value_N: Floats | Ints) -> Bools:
    """True where a value differs from the one before it, and for the first."""
    differs_N = np.ones(len(value_N), np.bool_)
    differs_N[1:] = value_N[1:] != value_N[:-1]
    return differs_N


def _tied_ranks(group_N: Ints, score_N: Floats) -> Floats:
    """1-based positions of sorted rows, the mean position for rows of one group with the same score."""
    starts = np.flatnonzero(_differs(group_N) | _differs(score_N))
    rows = np.diff(np.append(starts, len(score_N)))
    return np.repeat(starts + (rows + 1) / 2, rows)


def _equal_count_bins(value_N: Floats, bins: int) -> Ints:
    """The bin of each row, 0 to ``bins`` - 1, ascending by value; bins differ by one row at most."""
    bin_N = np.empty(len(value_N), np.int64)
    bin_N[np.argsort(value_N, kind="stable")] = np.arange(len(value_N)) * bins // len(value_N)
    return bin_N
