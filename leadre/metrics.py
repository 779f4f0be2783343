"""Measures of ranked lists and their intervals: pure functions of arrays.

Shapes: R requests, K list places (best first), U users, B bootstrap resamples. A measure here gives one number per
request; :class:`Ratio` turns per-request numbers into a mean over requests (or a ratio of sums, for money), and keeps
the sums per user so that the bootstrap can resample users, whose requests are not independent of each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
AnyInts = NDArray[np.integer[Any]]

BLOCK_CELLS = 1 << 22


def recall_at(hit_RK: Bools, relevant_R: Ints, k: int) -> Floats:
    """Hits among the first `k` places over min(k, relevant), [R] in 0..1.

    The cap makes a perfect list score 1 however many ads were converted. `relevant_R` is the number of relevant ads of
    each request and must be positive: a request without one has no recall.
    """
    _check(hit_RK, relevant_R, k)
    return np.asarray(hit_RK[:, :k].sum(axis=1) / np.minimum(relevant_R, k), dtype=np.float64)


def ndcg_at(hit_RK: Bools, relevant_R: Ints, k: int) -> Floats:
    """Discounted gain of the first `k` places over that of a list with min(k, relevant) hits on top, [R] in 0..1.

    Binary gains, discount 1/log2(place + 1) with places from 1 (Jaervelin and Kekaelaeinen, TOIS 2002).
    """
    _check(hit_RK, relevant_R, k)
    discount_K = 1.0 / np.log2(np.arange(2, k + 2))
    ideal_K = np.cumsum(discount_K)
    gain_R = hit_RK[:, :k] @ discount_K[: min(k, hit_RK.shape[1])]
    return np.asarray(gain_R / ideal_K[np.minimum(relevant_R, k) - 1], dtype=np.float64)


def value_at(value_nanos_RK: Ints, k: int) -> Ints:
    """Money caught in the first `k` places, [R] in nanos of the currency; GMV@k is its sum over that of all money."""
    return np.asarray(value_nanos_RK[:, :k].sum(axis=1), dtype=np.int64)


def coverage_at(ads_RK: AnyInts, live_ads: AnyInts, k: int) -> float:
    """Share of the ads in `live_ads` that stand in the first `k` places of some list; -1 marks an empty place."""
    live = np.unique(live_ads)
    shown = np.unique(ads_RK[:, :k])
    shown = shown[shown >= 0]
    assert np.isin(shown, live).all(), f"{int((~np.isin(shown, live)).sum())} ads in the lists are live nowhere"
    return float(len(shown) / len(live)) if len(live) else 0.0


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A measure as a ratio of sums over users: the numerator and denominator of each user, [U] float64 each."""

    top_U: Floats
    base_U: Floats

    @property
    def mean(self) -> float:
        """The measure over all users; 0 where nothing was measured."""
        base = float(self.base_U.sum())
        return float(self.top_U.sum()) / base if base else 0.0


def ratio(top_R: Floats | Ints, base_R: Floats | Ints, user_R: Ints, users: int) -> Ratio:
    """Sum per-request numerators and denominators by user (`user_R` in 0..users-1).

    For a mean over requests the denominator is one for each request; for GMV it is the money of all conversions.
    """
    sums = [np.bincount(user_R, weights=np.asarray(x_R, dtype=np.float64), minlength=users) for x_R in (top_R, base_R)]
    return Ratio(top_U=sums[0].astype(np.float64), base_U=sums[1].astype(np.float64))


def bootstrap(measures: Sequence[Ratio], *, resamples: int, seed: int) -> Floats:
    """The measures [M] on users drawn with replacement, [B, M]: every resample draws the same users for all measures.

    So the difference of two columns is a paired bootstrap: a user who is hard for everybody cancels out. Resamples are
    drawn in blocks, so that memory stays near 100 MB whatever the number of users.
    """
    users = len(measures[0].base_U)
    assert all(len(m.base_U) == users for m in measures), "paired measures need the same users"
    top_UM = np.stack([m.top_U for m in measures], axis=1)
    base_UM = np.stack([m.base_U for m in measures], axis=1)
    rng = np.random.default_rng(seed)
    share_U = np.full(users, 1.0 / users)
    values_BM = np.zeros((resamples, len(measures)))
    block = max(1, BLOCK_CELLS // users)
    for start in range(0, resamples, block):
        drawn_bU = rng.multinomial(users, share_U, size=min(block, resamples - start)).astype(np.float64)
        top_bM, base_bM = drawn_bU @ top_UM, drawn_bU @ base_UM
        np.divide(top_bM, base_bM, out=values_BM[start : start + block], where=base_bM > 0)
    return values_BM


def interval(mean: float, values_B: Floats, *, level: float = 0.95) -> dict[str, float]:
    """`mean` with the percentile bootstrap interval `lo`..`hi` (Efron and Tibshirani 1993, chapter 13)."""
    tail = (1.0 - level) / 2.0
    lo, hi = np.quantile(values_B, [tail, 1.0 - tail])
    return {"mean": mean, "lo": float(lo), "hi": float(hi)}


def is_tie(diff: Mapping[str, float]) -> bool:
    """True if the interval of a paired difference holds 0."""
    return diff["lo"] <= 0.0 <= diff["hi"]


def top_places(scores: Floats | NDArray[np.float32], tie_key: Ints, k: int) -> Ints:
    """Positions of the `k` highest scores, best first; equal scores are ordered by `tie_key`, lowest first.

    `tie_key` must be a random permutation fixed by a seed: an order by ID would leak how the IDs were given.
    """
    assert len(scores) == len(tie_key), f"{len(scores)} scores but {len(tie_key)} tie keys"
    assert not np.isnan(scores).any(), "a score is not a number"
    return np.asarray(np.lexsort((tie_key, -scores))[:k], dtype=np.int64)


def reciprocal_rank_fusion(rankings: Sequence[Ints], *, k: int = 60) -> tuple[Ints, Floats]:
    """Items of all rankings by the sum of 1 / (k + place), with the sums; k = 60 as in Cormack et al., SIGIR 2009.

    An item missing from a ranking gets nothing from it. Equal sums keep the order of the first ranking, then the next.
    """
    items = np.concatenate(rankings) if rankings else np.zeros(0, dtype=np.int64)
    gains = np.concatenate([1.0 / (k + 1 + np.arange(len(ranking))) for ranking in rankings] or [np.zeros(0)])
    unique, first, inverse = np.unique(items, return_index=True, return_inverse=True)
    score = np.bincount(inverse, weights=gains, minlength=len(unique))
    order = np.lexsort((first, -score))
    return np.asarray(unique[order], dtype=np.int64), np.asarray(score[order], dtype=np.float64)


def _check(hit_RK: Bools, relevant_R: Ints, k: int) -> None:
    assert k >= 1, f"k is {k}"
    assert len(hit_RK) == len(relevant_R), f"{len(hit_RK)} lists but {len(relevant_R)} relevant counts"
    assert len(relevant_R) == 0 or int(relevant_R.min()) >= 1, "a request without a relevant ad has no recall"
