"""Baseline for business value: the model's lists re-ranked by log-probability + weight x log-price.

A model trained for value has to beat it. For each view, the weight is the one with the highest GMV@10 on validation
lists among those that keep the recall. Re-ranking can only move up ads of the list, so longer lists (``--top``) help.
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
MAX_RECALL_LOST = 0.02  # relative to the lists before re-ranking

Floats = NDArray[np.float64]
Scored = Mapping[str, Mapping[int, tuple[Ads, Floats]]]  # view -> request -> ads best first, their log-probabilities


def scored_lists(frame: pl.DataFrame, logs: Logs, views: Sequence[View], *, source: str) -> Scored:
    """Return generated lists (columns request, view, ads, scores) with their scores; see `retrieval.checked_lists`."""
    lists = retrieval.checked_lists(frame, logs, views, source=source)
    rows = frame.select("view", "request", "scores").iter_rows()
    score_of = {(view, r): np.array(scores, np.float64) for view, r, scores in rows}
    return {name: {r: (ads, score_of[name, r]) for r, ads in by_request.items()} for name, by_request in lists.items()}


def reorder(lists: Scored, price_A: Floats, weights: Mapping[str, float]) -> dict[str, dict[int, Ads]]:
    """Return the lists ordered by score + weight of the view x log-price; equal values keep their order."""
    log_price_A = np.log(price_A)
    return {
        view: {
            r: ads[np.argsort(-(score + weights[view] * log_price_A[ads]), kind="stable")]
            for r, (ads, score) in by_request.items()
        }
        for view, by_request in lists.items()
    }


def choose_weights(lists: Scored, views: Sequence[View], price_A: Floats) -> dict[str, float]:
    """Return view -> the weight of WEIGHTS with the highest GMV@10 that loses at most MAX_RECALL_LOST of recall@10."""
    figures: dict[str, list[tuple[float, float]]] = {v.name: [] for v in views}
    for weight in WEIGHTS:
        ranked = retrieval.iterate_lists(reorder(lists, price_A, {v.name: weight for v in views}))
        tables = retrieval.tabulate(ranked, views)
        for v in views:
            measures = retrieval.measure(v, tables[v.name])
            figures[v.name].append((measures["recall@10"].mean, measures["gmv@10"].mean))
    return {name: WEIGHTS[best_index(rows)] for name, rows in figures.items()}


def best_index(figures: Sequence[tuple[float, float]]) -> int:
    """Return the index of the highest GMV among (recall, GMV) pairs that keep the first pair's recall.

    The first index wins a tie.
    """
    min_recall = (1 - MAX_RECALL_LOST) * figures[0][0]
    allowed = [i for i, (recall, _) in enumerate(figures) if recall >= min_recall]
    return max(allowed, key=lambda i: (figures[i][1], -i))
