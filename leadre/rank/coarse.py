"""The cut: a coarse ranker orders all live ads of a request, and the final ranker scores the first of them alone.

Letters: N rows, those of a request adjacent; R requests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadre import metrics
from leadre.data.histories import Logs
from leadre.rank.score import ScoredRows, rows_of_requests

TOP = 10  # ads of the final ranker that a cut should keep

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def cut(rows: ScoredRows, size: int, seed: int) -> Bools:
    """`first` by the scores of the coarse ranker."""
    assert rows.coarse_N is not None, "the rows have no scores of a coarse ranker"
    return first(rows.request_N, rows.coarse_N, size, seed)


def first(request_N: NDArray[np.int64], score_N: Floats, size: int, seed: int) -> Bools:
    """Whether each row is among the ``size`` highest scores of its request; ``seed`` orders equal ones."""
    key_N = np.random.default_rng(seed).permutation(len(score_N))
    is_in_N = np.zeros(len(score_N), np.bool_)
    for rows in rows_of_requests(request_N):
        is_in_N[rows[metrics.top_places(score_N[rows], key_N[rows], size)]] = True
    return is_in_N


def recall(request_N: NDArray[np.int64], final_N: Floats, is_in_N: Bools, seed: int) -> Floats:
    """The share of the `TOP` highest final scores of each request that are in its cut, [R]."""
    is_best_N = first(request_N, final_N, TOP, seed)
    _, which_N = np.unique(request_N, return_inverse=True)
    best_R, kept_R = (np.bincount(which_N, weights=mask_N) for mask_N in (is_best_N, is_best_N & is_in_N))
    share_R: Floats = kept_R / best_R
    return share_R


def figures(logs: Logs, rows: ScoredRows, p_N: Floats, is_in_N: Bools, *, resamples: int, seed: int) -> dict[str, Any]:
    """Recall of the final ranker's best in the cut, with intervals over users: among all ads, and among new objects."""
    result: dict[str, Any] = {}
    for view, part_N, final_N in (("all", np.ones(len(p_N), np.bool_), p_N), ("new", rows.is_new_N, rows.new_score_N)):
        request_N = rows.request_N[part_N]
        if not len(request_N):
            continue
        share_R = recall(request_N, final_N[part_N], is_in_N[part_N], seed)
        users, user_R = np.unique(logs.request_user_R[np.unique(request_N)], return_inverse=True)
        ratio = metrics.ratio(share_R, np.ones(len(share_R)), user_R, len(users))
        values_B = metrics.bootstrap([ratio], resamples=resamples, seed=seed)[:, 0]
        result[f"recall_of_top_{TOP}_{view}"] = metrics.interval(ratio.mean, values_B)
    return result
