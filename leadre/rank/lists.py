"""The best ads of scored requests, in the form of the lists of `leadre generate`: both views, best first."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre import metrics
from leadre.data.histories import Logs
from leadre.data.tables import LISTS
from leadre.rank.score import ScoredRows, rows_of_requests


def best(
    logs: Logs, rows: ScoredRows, p_N: NDArray[np.float64], number_R: NDArray[np.int64], *, top: int, seed: int
) -> pl.DataFrame:
    """Lists of the requests: by probability, and in the view ``new`` by the scores of new objects.

    ``number_R``: the number of each request in the lists; those below 0 get none. Equal scores get a random order.
    """
    key_A = np.random.default_rng(seed).permutation(len(logs.ads))
    lists = []
    for part in rows_of_requests(rows.request_N):
        r = int(rows.request_N[part[0]])
        if number_R[r] < 0:
            continue
        new = part[rows.is_new_N[part]]
        for view, chosen, score_N in (("all", part, p_N), ("new", new, rows.new_score_N)):
            ads = rows.ad_N[chosen]
            places = metrics.top_places(score_N[chosen], key_A[ads], top)
            lists.append((int(number_R[r]), view, ads[places].tolist(), score_N[chosen][places].tolist()))
    return pl.DataFrame(lists, schema=LISTS, orient="row").sort("request", "view")
