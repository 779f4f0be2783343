"""Scores of requests by a trained ranker: log-odds of each row, with what slices and measures need.

Letters: N rows, one for each candidate of each request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadre import progress
from leadre.data.histories import I32, Logs, train_end_us
from leadre.data.moment import of_requests
from leadre.errors import InputError
from leadre.rank.inputs import inputs
from leadre.rank.ranker import TrainedRanker
from leadre.rank.rows import Popularity

Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ScoredRequest:
    """The candidates of one request, [C]. ``new_score_C`` orders those with ``is_new_C`` among each other.

    ``coarse_C``: scores of a coarse ranker; None without one.
    """

    request: int
    ads: I32
    logit_C: NDArray[np.float64]
    new_score_C: NDArray[np.float64]
    label_C: Bools
    is_new_C: Bools
    coarse_C: NDArray[np.float64] | None = None


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """All rows of several requests, [N]; those of one request are adjacent."""

    request_N: NDArray[np.int64]
    ad_N: I32
    logit_N: NDArray[np.float64]
    new_score_N: NDArray[np.float64]
    label_N: Bools
    is_new_N: Bools
    coarse_N: NDArray[np.float64] | None = None

    def rows(self, chosen_N: Bools) -> ScoredRows:
        """Some of the rows."""
        parts: dict[str, Any] = {}
        for part in fields(self):
            values = getattr(self, part.name)
            parts[part.name] = None if values is None else values[chosen_N]
        return ScoredRows(**parts)


def score(
    logs: Logs,
    requests: NDArray[np.int64],
    ads_of: Callable[[int], I32],
    ranker: TrainedRanker,
    coarse: TrainedRanker | None = None,
) -> Iterator[ScoredRequest]:
    """The requests with at least one candidate, in order of time; all must be after training.

    ``coarse``: a coarse ranker of the same features, whose scores are kept too.
    """
    moments = of_requests(logs)
    is_fresh = ranker.spec.popularity == "fresh"
    popularity = Popularity(logs, ranker.tables.collaborative, train_end_us(logs), is_fresh=is_fresh)
    in_time = requests[np.argsort(logs.request_at_us_R[requests], kind="stable")]
    for r in progress.bar(in_time.tolist(), total=len(in_time), label="score requests"):
        ads = ads_of(r)
        if len(ads):
            moment = moments[r]
            tables = popularity.at(moment.at_us) if is_fresh else ranker.tables
            request = inputs(moment, ads, ranker.spec, ranker.known, tables)
            yield ScoredRequest(
                request=r,
                ads=ads,
                logit_C=ranker.logits(request)[:, 0],
                new_score_C=ranker.new_scores(request),
                label_C=np.isin(ads, logs.relevant(r)[0]),
                is_new_C=request.is_new_C,
                coarse_C=coarse.logits(request)[:, 0] if coarse else None,
            )


def stacked(scored: Iterator[ScoredRequest]) -> ScoredRows:
    """All rows as arrays. InputError if there is none."""
    rows = list(scored)
    if not rows:
        raise InputError(
            "rank: no request to be scored has a candidate; score more requests, or train with --rows live"
        )
    return ScoredRows(
        request_N=np.repeat([row.request for row in rows], [len(row.ads) for row in rows]),
        ad_N=np.concatenate([row.ads for row in rows]),
        logit_N=np.concatenate([row.logit_C for row in rows]),
        new_score_N=np.concatenate([row.new_score_C for row in rows]),
        label_N=np.concatenate([row.label_C for row in rows]),
        is_new_N=np.concatenate([row.is_new_C for row in rows]),
        coarse_N=None if rows[0].coarse_C is None else np.concatenate([row.coarse_C for row in rows]),
    )


def rows_of_requests(request_N: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The rows of each request, which are adjacent."""
    starts = np.flatnonzero(np.diff(request_N, prepend=-1))
    yield from np.split(np.arange(len(request_N)), starts[1:])
