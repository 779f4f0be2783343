"""Parts of the benches of rankers on planted laws: finished trainings, intervals, parts of the possible, times.

The figure of a model is the share of the possible: the gain of its log loss over the base rate, divided by that of the
true log-odds. Intervals are those of Student over the seeds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from scipy.special import expit
from scipy.stats import t as student

from leadre.data import counts
from leadre.rank import measure, train
from leadre.rank.inputs import GAP_ROWS, Positions, RequestInputs, collate
from leadre.rank.models.registry import RANKERS
from leadre.rank.models.shared import fit_numbers
from leadre.rank.rows import Example
from leadre.rank.spec import CONTEXT, PROFILE, FeatureSpec

PAGES = Path(__file__).parents[1] / "docs" / "results"


class Results:
    """Finished trainings, one JSON line each, so that a killed run continues; ``fit``: a frozen dataclass."""

    def __init__(self, path: Path, fit: type, measured: Callable[[Any], dict[str, float]]) -> None:
        self._path = path
        self._measured = measured
        self._done: dict[Hashable, dict[str, float]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self._done[fit(**row["fit"])] = row["result"]

    def of(self, fit: Any) -> dict[str, float]:
        """The result of a training, which runs unless it is there."""
        if fit not in self._done:
            self._done[fit] = self._measured(fit)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps({"fit": asdict(fit), "result": self._done[fit]}) + "\n")
            sys.stderr.write(f"{fit} {self._done[fit]}\n")
        return self._done[fit]


def summary(results: list[dict[str, float]], others: list[dict[str, float]]) -> dict[str, Any]:
    """Means over seeds; of the share of the possible, and of it less that of ``others``, intervals (lo, mean, hi)."""
    means = {name: round(float(np.mean([result[name] for result in results])), 4) for name in results[0]}
    share = np.array([result["share"] for result in results])
    other = np.array([result["share"] for result in others])
    return means | {"share": interval(share), "less": interval(share - other), "shares": share.tolist()}


def merge_into(path: Path, claim: Mapping[str, Any]) -> None:
    """Write the figures of a run; those of rows that it left out stay in the file."""
    figures = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(_merged(figures, json.loads(json.dumps(claim))), indent=1) + "\n")


def _merged(figures: dict[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    return figures | {
        key: _merged(figures.get(key, {}), value) if isinstance(value, dict) else value for key, value in others.items()
    }


def intervals(results: list[dict[str, float]], others: list[dict[str, float]]) -> dict[str, Any]:
    """Of each figure the interval over seeds, and that of its difference to ``others``."""
    summaries = {}
    for name in results[0]:
        values = np.array([result[name] for result in results])
        less = values - np.array([other[name] for other in others])
        summaries[name] = {"value": interval(values), "less": interval(less), "seeds": values.tolist()}
    return summaries


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean and 95 % interval of Student."""
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    mean = values.mean()
    return {"mean": round(mean, 4), "lo": round(mean - half, 4), "hi": round(mean + half, 4)}


def scores(label_N: np.ndarray, logit_N: np.ndarray, true_N: np.ndarray) -> dict[str, float]:
    """Share of the possible and AUC of log-odds, and the AUC of the true ones."""
    losses = [float(measure.log_losses(label_N, expit(logit)).mean()) for logit in (logit_N, true_N)]
    base = float(measure.log_losses(label_N, np.full(len(label_N), label_N.mean())).mean())
    return {
        "share": round((base - losses[0]) / (base - losses[1]), 4),
        "auc": round(measure.auc(label_N, logit_N), 4),
        "auc_possible": round(measure.auc(label_N, true_N), 4),
    }


def valid_loss(label_N: np.ndarray, logit_N: np.ndarray) -> float:
    """The log loss by which rates are chosen."""
    return round(float(measure.log_losses(label_N, expit(logit_N)).mean()), 5)


def with_1000_candidates(examples: list[Example]) -> RequestInputs:
    """The first request with 1,000 candidates: those of many requests."""
    fields = np.concatenate([row.inputs.field_CK for row in examples])[:1000]
    return replace(
        examples[0].inputs,
        field_CK=fields,
        number_CF=np.zeros((1000, 1), np.float32),
        content_C=np.zeros(1000, np.int32),
        is_new_C=np.ones(1000, np.bool_),
    )


def served_request(candidates: int, labels: tuple[str, ...]) -> tuple[FeatureSpec, RequestInputs]:
    """A request with the features of a log, and its spec.

    All counts, groups and a prefix of the semantic ID beside the object, four profile columns, full sequences.
    """
    rng = np.random.default_rng(0)
    fields = ("object", *counts.GROUPINGS, "sid1")
    profile = ("a", "b", "c", "d")
    tables = dict.fromkeys((*fields, *(PROFILE + name for name in profile), *CONTEXT), 4000)
    spec = FeatureSpec(
        labels=labels,
        rows="live",
        negatives=1.0,
        popularity="frozen",
        fields=fields,
        profile=profile,
        tables=tables,
    )

    def rows(*shape: int) -> np.ndarray:
        return rng.integers(0, 4000, shape).astype(np.int32)

    sequences = {
        part.name: Positions(
            field_TK=rows(part.length, len(fields)),
            content_T=rows(part.length),
            gap_T=rows(part.length) % GAP_ROWS,
            count_T=np.ones(part.length, np.float32),
        )
        for part in spec.sequences
    }
    request = RequestInputs(
        number_CF=rng.normal(size=(candidates, len(spec.numbers))).astype(np.float32),
        field_CK=rows(candidates, len(fields)),
        content_C=rows(candidates),
        user_P=rows(len(spec.user_tables)),
        sequences=sequences,
        is_new_C=np.ones(candidates, np.bool_),
    )
    return spec, request


def serving(names: Iterable[str], candidates: int = 1000, labels: tuple[str, ...] = ("click",)) -> dict[str, float]:
    """Milliseconds of a `served_request` with so many candidates of the rankers with their defaults."""
    spec, request = served_request(candidates, labels)
    rng = np.random.default_rng(0)
    batch = collate([request])
    result = {}
    for name in names:
        params = RANKERS[name].init(spec, rng) | fit_numbers(request.number_CF)
        result[name] = milliseconds(partial(train.logits, RANKERS[name], spec, params, batch))
    return result


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Log-odds of the validation and test rows, size and speed of a model; the parameters of trees are their leaves."""

    valid_N: np.ndarray
    test_N: np.ndarray
    parameters: int
    ms_1000: float


def boosted(
    features: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    categories: Sequence[int],
    boosting: Mapping[str, Any],
    seed: int,
) -> Fitted:
    """LightGBM with an early stop; features [N, F] and labels [N] of training, validation and test rows.

    ``categories``: the columns that are categories.
    """
    options = {"objective": "binary", "seed": seed, "verbosity": -1, "num_threads": 1, **boosting}
    dataset = lightgbm.Dataset(features[0], labels[0], categorical_feature=list(categories))
    stop = lightgbm.early_stopping(30, verbose=False)
    trees = lightgbm.train(
        options, dataset, 1000, valid_sets=[dataset.create_valid(features[1], labels[1])], callbacks=[stop]
    )
    request = features[2][:1000]
    return Fitted(
        valid_N=trees.predict(features[1], raw_score=True),
        test_N=trees.predict(features[2], raw_score=True),
        parameters=trees.best_iteration * int(boosting["num_leaves"]),
        ms_1000=milliseconds(lambda: trees.predict(request, raw_score=True, num_threads=1)),
    )


def milliseconds(score: Callable[[], object]) -> float:
    """Median processor time of a call."""
    times = []
    for _ in range(9):
        start_s = time.thread_time()
        score()
        times.append(time.thread_time() - start_s)
    return round(1000 * float(np.median(times)), 2)
