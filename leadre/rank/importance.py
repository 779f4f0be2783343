"""Importance of features: the rise of the log loss when a feature's values come from other rows (Breiman, 2001).

The values of one feature are permuted over all rows, or requests, of a sample that training has not seen. A feature
that the ranker does not read has an importance of 0; one that repeats others has nearly 0.

Letters: N rows.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from leadre import progress
from leadre.rank import measure
from leadre.rank.inputs import RequestInputs
from leadre.rank.ranker import TrainedRanker
from leadre.rank.rows import Example
from leadre.rank.spec import FeatureSpec

FILE = "importance.csv"
MAX_REQUESTS = 150


def write(folder: Path, ranker: TrainedRanker, rows: Sequence[Example], seed: int) -> None:
    """Write ``importance.csv``: feature, kind, rise of the log loss in nats a row; the most important feature first."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(rows))[:MAX_REQUESTS])
    requests = [rows[i].inputs for i in chosen]
    label_N = np.concatenate([rows[i].label_CH[:, 0] for i in chosen])
    before = _loss(ranker, requests, label_N)
    features = list(_features(ranker.spec))
    result = [
        (name, kind, _loss(ranker, _permuted(requests, kind, column, name, rng), label_N) - before)
        for kind, column, name in progress.bar(features, len(features), "importance of features")
    ]
    with (folder / FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("feature", "kind", "loss_rise"))
        writer.writerows((name, kind, f"{rise:.6f}") for name, kind, rise in sorted(result, key=lambda row: -row[2]))


def _features(spec: FeatureSpec) -> Iterator[tuple[str, int, str]]:
    """(kind, column, name) of each feature."""
    named = {"number": spec.numbers, "field": spec.fields, "user": spec.user_tables}
    for kind, names in named.items():
        yield from ((kind, column, name) for column, name in enumerate(names))
    yield from (("sequence", column, part.name) for column, part in enumerate(spec.sequences))


def _permuted(
    requests: Sequence[RequestInputs], kind: str, column: int, name: str, rng: np.random.Generator
) -> list[RequestInputs]:
    """The requests with one feature permuted: over rows if candidates differ in it, else over requests."""
    if kind in ("number", "field"):
        array = "number_CF" if kind == "number" else "field_CK"
        columns = rng.permutation(np.concatenate([getattr(request, array)[:, column] for request in requests]))
        bounds = np.cumsum([len(request.is_new_C) for request in requests])[:-1]
        values = [getattr(request, array).copy() for request in requests]
        for target, part in zip(values, np.split(columns, bounds), strict=True):
            target[:, column] = part
        return [dataclasses.replace(request, **{array: value}) for request, value in zip(requests, values, strict=True)]
    others = [requests[i] for i in rng.permutation(len(requests))]
    if kind == "sequence":
        return [
            dataclasses.replace(request, sequences={**request.sequences, name: other.sequences[name]})
            for request, other in zip(requests, others, strict=True)
        ]
    users = [request.user_P.copy() for request in requests]
    for user_P, other in zip(users, others, strict=True):
        user_P[column] = other.user_P[column]
    return [dataclasses.replace(request, user_P=user_P) for request, user_P in zip(requests, users, strict=True)]


def _loss(ranker: TrainedRanker, requests: Sequence[RequestInputs], label_N: NDArray[np.bool_]) -> float:
    """Mean log loss of the first label on sampled rows, whose log-odds are not corrected for the sampling."""
    logit_N = np.concatenate([ranker.logits(request)[:, 0] for request in requests]) - np.log(ranker.spec.negatives)
    return float(measure.log_losses(label_N, np.asarray(expit(logit_N), np.float64)).mean())
