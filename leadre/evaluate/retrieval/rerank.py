"""The cheap way to business value: lists of the model, re-ranked by log-probability + weight x log-price.

What a model trained for value has to beat. The weight is chosen on validation lists, for each view the one of most
GMV@10 among those that keep the recall. Only what the lists hold can move up, so longer lists (``--top``) help it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.data.histories import Logs
from leadre.evaluate.retrieval import measure as retrieval
from leadre.evaluate.retrieval.measure import Ads, View

WEIGHTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0)
MAX_RECALL_LOST = 0.02  # relative to the lists as they are

Floats = NDArray[np.float64]
Scored = Mapping[str, Mapping[int, tuple[Ads, Floats]]]  # view -> request -> ads best first, their log-probabilities


def scored(frame: pl.DataFrame, logs: Logs, views: Sequence[View], *, source: str) -> Scored:
    """Generated lists (columns request, view, ads, scores) with their scores, checked as by `retrieval.given`."""
    lists = retrieval.given(frame, logs, views, source=source)
    rows = frame.select("view", "request", "scores").iter_rows()
    score_of = {(view, r): np.array(scores, np.float64) for view, r, scores in rows}
    return {name: {r: (ads, score_of[name, r]) for r, ads in found.items()} for name, found in lists.items()}


def reorder(lists: Scored, price_A: Floats, weights: Mapping[str, float]) -> dict[str, dict[int, Ads]]:
    """The lists by score + weight of the view x log-price, best first; equals keep their order."""
    log_price_A = np.log(price_A)
    return {
        view: {
            r: ads[np.argsort(-(score + weights[view] * log_price_A[ads]), kind="stable")]
            for r, (ads, score) in found.items()
        }
        for view, found in lists.items()
    }


def choose(lists: Scored, views: Sequence[View], price_A: Floats) -> dict[str, float]:
    """view -> weight: of WEIGHTS the one of most GMV@10 that loses no more than MAX_RECALL_LOST of recall@10."""
    figures: dict[str, list[tuple[float, float]]] = {v.name: [] for v in views}
    for weight in WEIGHTS:
        ranked = retrieval.as_ranked(reorder(lists, price_A, {v.name: weight for v in views}))
        tables = retrieval.tabulate(ranked, views)
        for v in views:
            found = retrieval.measure(v, tables[v.name])
            figures[v.name].append((found["recall@10"].mean, found["gmv@10"].mean))
    return {name: WEIGHTS[best(rows)] for name, rows in figures.items()}


def best(figures: Sequence[tuple[float, float]]) -> int:
    """Index of the most GMV among (recall, GMV) whose recall keeps up with the first; of equals the first."""
    least = (1 - MAX_RECALL_LOST) * figures[0][0]
    allowed = [i for i, (recall, _) in enumerate(figures) if recall >= least]
    return max(allowed, key=lambda i: (figures[i][1], -i))
