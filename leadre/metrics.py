"""Measures of ranked lists and their intervals: pure functions of arrays.

Shapes: R requests, K ranks (best first), U users, B bootstrap resamples. A measure returns one number per request;
`Ratio` aggregates them to a mean over requests (or a ratio of sums, for money) and keeps the sums per user, because
requests of one user are not independent and the bootstrap resamples users.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    """Hits among the first `k` ranks over min(k, relevant), [R] in 0..1.

    The cap makes a perfect list score 1 however many ads were converted. `relevant_R` is the number of relevant ads of
    each request and must be positive: a request without one has no recall.
    """
    _check(hit_RK, relevant_R, k)
    return np.asarray(hit_RK[:, :k].sum(axis=1) / np.minimum(relevant_R, k), dtype=np.float64)


def ndcg_at(hit_RK: Bools, relevant_R: Ints, k: int) -> Floats:
    """Discounted gain of the first `k` ranks over that of a list with min(k, relevant) hits on top, [R] in 0..1.

    Binary gains, discount 1/log2(rank + 1) with ranks from 1 (Jaervelin and Kekaelaeinen, TOIS 2002).
    """
    _check(hit_RK, relevant_R, k)
    discount_K = 1.0 / np.log2(np.arange(2, k + 2))
    ideal_K = np.cumsum(discount_K)
    gain_R = hit_RK[:, :k] @ discount_K[: min(k, hit_RK.shape[1])]
    return np.asarray(gain_R / ideal_K[np.minimum(relevant_R, k) - 1], dtype=np.float64)


def value_at(value_nanos_RK: Ints, k: int) -> Ints:
    """Money of the hits in the first `k` ranks, [R] in nanos; GMV@k is its sum over the sum of all money."""
    return np.asarray(value_nanos_RK[:, :k].sum(axis=1), dtype=np.int64)


def coverage_at(ads_RK: AnyInts, live_ads: AnyInts, k: int) -> float:
    """Share of the ads in `live_ads` that are in the first `k` ranks of any list; -1 marks an empty rank."""
    live = np.unique(live_ads)
    shown = np.unique(ads_RK[:, :k])
    shown = shown[shown >= 0]
    assert np.isin(shown, live).all(), f"{int((~np.isin(shown, live)).sum())} ads in the lists are live nowhere"
    return float(len(shown) / len(live)) if len(live) else 0.0


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A measure as a ratio of sums over users: the numerator and denominator of each user, [U] float64 each."""

    numerator_U: Floats
    denominator_U: Floats

    @property
    def mean(self) -> float:
        """The measure over all users; 0 if the denominator is 0."""
        denominator = float(self.denominator_U.sum())
        return float(self.numerator_U.sum()) / denominator if denominator else 0.0


def ratio(numerator_R: Floats | Ints, denominator_R: Floats | Ints, user_R: Ints, users: int) -> Ratio:
    """Sum per-request numerators and denominators by user (`user_R` in 0..users-1).

    For a mean over requests the denominator is one for each request; for GMV it is the money of all conversions.
    """

    def by_user(values_R: Floats | Ints) -> Floats:
        weights_R = np.asarray(values_R, dtype=np.float64)
        return np.bincount(user_R, weights=weights_R, minlength=users).astype(np.float64)

    return Ratio(numerator_U=by_user(numerator_R), denominator_U=by_user(denominator_R))


def bootstrap(measures: Sequence[Ratio], *, resamples: int, seed: int) -> Floats:
    """The measures [M] on users drawn with replacement, [B, M]: every resample draws the same users for all measures.

    The difference of two columns is therefore a paired bootstrap: a user who is hard for every method cancels out.
    Resamples are drawn in blocks, which bounds memory at about 100 MB for any number of users.
    """
    users = len(measures[0].denominator_U)
    assert all(len(m.denominator_U) == users for m in measures), "paired measures need the same users"
    numerator_UM = np.stack([m.numerator_U for m in measures], axis=1)
    denominator_UM = np.stack([m.denominator_U for m in measures], axis=1)
    values_BM = np.zeros((resamples, len(measures)))
    for start, count_bU in draws(users, resamples=resamples, seed=seed):
        numerator_bM = count_bU @ numerator_UM
        denominator_bM = count_bU @ denominator_UM
        rows = slice(start, start + len(count_bU))
        np.divide(numerator_bM, denominator_bM, out=values_BM[rows], where=denominator_bM > 0)
    return values_BM


def draws(users: int, *, resamples: int, seed: int) -> Iterator[tuple[int, Floats]]:
    """Blocks (first resample, how often each user is drawn [b, U]): ``users`` draws with replacement a resample."""
    rng = np.random.default_rng(seed)
    share_U = np.full(users, 1.0 / users)
    block = max(1, BLOCK_CELLS // users)
    for start in range(0, resamples, block):
        yield start, rng.multinomial(users, share_U, size=min(block, resamples - start)).astype(np.float64)


def interval(mean: float, values_B: Floats, *, level: float = 0.95) -> dict[str, float]:
    """`mean` with the percentile bootstrap interval `lo`..`hi` (Efron and Tibshirani 1993, chapter 13)."""
    tail = (1.0 - level) / 2.0
    lo, hi = np.quantile(values_B, [tail, 1.0 - tail])
    return {"mean": mean, "lo": float(lo), "hi": float(hi)}


def is_tie(diff: Mapping[str, float]) -> bool:
    """True if the interval of a paired difference contains 0."""
    return diff["lo"] <= 0.0 <= diff["hi"]


def top_places(scores: Floats | NDArray[np.float32], tie_key: Ints, k: int) -> Ints:
    """Positions of the `k` highest scores, best first; equal scores are ordered by `tie_key`, lowest first.

    `tie_key` must be a random permutation fixed by a seed: an order by ID would leak how IDs are assigned.
    """
    assert len(scores) == len(tie_key), f"{len(scores)} scores but {len(tie_key)} tie keys"
    assert not np.isnan(scores).any(), "a score is not a number"
    places = np.arange(len(scores))
    if len(scores) > k:  # sort only what can be among the first: scores of at least the k-th highest
        places = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    return np.asarray(places[np.lexsort((tie_key[places], -scores[places]))[:k]], dtype=np.int64)


def reciprocal_rank_fusion(rankings: Sequence[Ints], *, k: int = 60) -> tuple[Ints, Floats]:
    """Items of all rankings by the sum of 1 / (k + rank), with the sums; k = 60 as in Cormack et al., SIGIR 2009.

    A ranking adds nothing to an item that it lacks. Equal sums keep the order of the first ranking, then the next.
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
