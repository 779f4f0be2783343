"""Rankers of histories on planted laws: how much of the possible does each of them learn?

Laws are those of `leadre/data/worlds`, their rows those of `leadre/rank/planted_histories.py`. A seed draws rows and
initial weights. Figures and intervals are those of `planted_rankers`. The rate of each network is the best on
validation rows of one seed, as are leaves and rate of the trees. Claims are in bench/RESULTS.md, and the figures in
docs/results/rank-sequences.json; a run of some ``--laws`` or ``--models`` leaves the figures of the others there.

Finished trainings are kept in ``--cache``, so that a killed run continues; delete it after a change of a model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from planted_rankers import (
    PAGES,
    Fitted,
    Results,
    boosted,
    merge_into,
    milliseconds,
    scores,
    serving,
    summary,
    valid_loss,
    with_1000_candidates,
)

from leadre.data.worlds import evolution, intensity, long
from leadre.data.worlds.history import HistoryRows
from leadre.rank import planted_histories, train
from leadre.rank.inputs import collate
from leadre.rank.models.dcnv2 import DcnV2
from leadre.rank.models.dien import Dien
from leadre.rank.models.din import Din
from leadre.rank.models.hstu import Hstu
from leadre.rank.models.sdim import Sdim
from leadre.rank.models.shared import HEAD, Ranker
from leadre.rank.models.tin import Tin
from leadre.rank.rows import Example
from leadre.serve.rankers.served import MAX_SCORED

FIGURES = PAGES / "rank-sequences.json"
CANDIDATES = 8
RATES = (1e-2, 2e-2)  # of dense layers; tables have three times as much
HSTU_RATES = (5e-3, 1e-2)  # 2e-2 was worse by far in a first look
BOOSTING = tuple({"num_leaves": leaves, "learning_rate": rate} for leaves in (15, 63) for rate in (0.05, 0.2))
TREES = "trees"
LENGTHS = (50, 200, 1000, 4000)
PLAIN = "mean"  # the model that others are compared with
SERVED = ("dien", "din", "hstu", "sdim", "tin")  # with their defaults


@dataclass(frozen=True, kw_only=True)
class Law:
    """A law, the newest ``length`` events of which are read.

    ``rows``: (requests, seed) -> rows; ``groups``: as in `planted_histories`; ``requests``: of training, validation and
    test.
    """

    rows: Callable[[int, int], HistoryRows]
    groups: planted_histories.Groups
    length: int
    requests: tuple[int, int, int] = (4000, 600, 2000)
    epochs: int = 8
    batch: int = 64


def _evolution(requests: int, seed: int, *, shuffled: bool) -> HistoryRows:
    return evolution.rows(requests, 20, CANDIDATES, seed, shuffled=shuffled)


def _intensity(requests: int, seed: int, *, counted: bool) -> HistoryRows:
    return intensity.rows(requests, CANDIDATES, seed, counted=counted)


def _long(requests: int, seed: int) -> HistoryRows:
    return long.rows(requests, 200, 50, CANDIDATES, seed)


LONG = Law(rows=_long, groups=long.groups(), length=200, requests=(1500, 300, 1000), epochs=6, batch=32)
COUNTS = Law(
    rows=partial(_intensity, counted=True),
    groups=intensity.groups(),
    length=intensity.EVENTS,
    requests=(2000, 400, 1500),
    epochs=6,
)
LAWS: Mapping[str, Law] = {
    "evolution": Law(rows=partial(_evolution, shuffled=False), groups=evolution.groups(), length=20),
    "shuffled": Law(rows=partial(_evolution, shuffled=True), groups=evolution.groups(), length=20),
    "200 events": LONG,
    "newest 25": replace(LONG, length=25),
    "counts": COUNTS,
    "presence": replace(COUNTS, rows=partial(_intensity, counted=False)),
}
NETWORKS: Mapping[str, Ranker] = {
    PLAIN: DcnV2(depth=0, deep=HEAD),
    "din": Din(),
    "tin": Tin(),
    "gru": Dien(alpha=0, evolves=False),
    "gru+aux": Dien(evolves=False),
    "augru": Dien(alpha=0),
    "dien": Dien(),
    "sdim": Sdim(),
    "hstu": Hstu(),
    "hstu softmax": Hstu(is_pointwise=False),
    "hstu no time": Hstu(has_times=False),
}
MODELS: Mapping[str, tuple[str, ...]] = {  # of each law
    "evolution": (
        TREES,
        PLAIN,
        "din",
        "tin",
        "gru",
        "gru+aux",
        "augru",
        "dien",
        "hstu",
        "hstu softmax",
        "hstu no time",
    ),
    "shuffled": (PLAIN, "din", "gru", "gru+aux"),
    "200 events": (TREES, PLAIN, "din", "sdim"),
    "newest 25": (PLAIN, "din", "sdim"),
    "counts": (TREES, PLAIN, "din", "hstu", "hstu softmax"),
    "presence": (PLAIN, "hstu", "hstu softmax"),
}
TUNED_ON = {"shuffled": "evolution", "presence": "counts"}  # a control has the rates of its law


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One training. ``rate``: of dense layers, or the place in `BOOSTING` for trees."""

    model: str
    law: str
    seed: int
    rate: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("work/rank-sequences.jsonl"))
    parser.add_argument("--laws", default=",".join(LAWS))
    parser.add_argument("--models", default=",".join((TREES, *NETWORKS)))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    assert options.seeds > 1, "an interval needs two seeds"
    torch.set_num_threads(1)
    results = Results(options.cache, Fit, measured)
    models = options.models.split(",")

    def of(name: str, law: str) -> list[dict[str, float]]:
        rate = best_rate(name, TUNED_ON.get(law, law), results)
        return [results.of(Fit(model=name, law=law, seed=n, rate=rate)) for n in range(options.seeds)]

    claim: dict[str, Any] = {"bench": "rank_sequences", "candidates": CANDIDATES}
    claim["laws"] = {
        law: {name: summary(of(name, law), of(PLAIN, law)) for name in MODELS[law] if name in models}
        for law in options.laws.split(",")
    }
    claim["lengths"] = {name: milliseconds_by_length(name) for name in ("din", "sdim") if name in models}
    claim["serving"] = serving(name for name in SERVED if name in models)
    claim["serving_few"] = serving((name for name in SERVED if name in models), MAX_SCORED)
    merge_into(FIGURES, claim)
    sys.stdout.write(json.dumps(claim) + "\n")


def best_rate(name: str, law: str, results: Results) -> float:
    """The rate with the lowest validation loss on the first seed."""
    rates: Sequence[float] = HSTU_RATES if name.startswith("hstu") else RATES
    rates = range(len(BOOSTING)) if name == TREES else rates
    return min(rates, key=lambda rate: results.of(Fit(model=name, law=law, seed=0, rate=rate))["valid_loss"])


@cache
def data(law: str, seed: int) -> list[HistoryRows]:
    """The rows of training, validation and test."""
    return [LAWS[law].rows(requests, 10 * seed + part) for part, requests in enumerate(LAWS[law].requests)]


def measured(fit: Fit) -> dict[str, float]:
    """Train and test one model."""
    start_s = time.thread_time()
    fitted = forest(fit) if fit.model == TREES else network(fit)
    seconds = time.thread_time() - start_s
    _, valid, test = data(fit.law, fit.seed)
    return scores(test.label_RC.ravel(), fitted.test_N, test.logit_RC.ravel()) | {
        "valid_loss": valid_loss(valid.label_RC.ravel(), fitted.valid_N),
        "parameters": fitted.parameters,
        "ms_1000": fitted.ms_1000,
        "train_s": round(seconds, 1),
    }


def milliseconds_by_length(name: str) -> dict[int, float]:
    """Milliseconds per 1,000 candidates, user included, by the number of events."""
    result = {}
    for length in LENGTHS:
        spec = planted_histories.spec_of(LONG.groups, length)
        rows = long.rows(125, length, length // 2, CANDIDATES, seed=0)
        batch = collate([with_1000_candidates(planted_histories.examples(rows, LONG.groups, length))])
        params = NETWORKS[name].init(spec, np.random.default_rng(0))
        result[length] = milliseconds(partial(train.logits, NETWORKS[name], spec, params, batch))
    return result


def network(fit: Fit) -> Fitted:
    """A network."""
    law = LAWS[fit.law]
    ranker = NETWORKS[fit.model]
    training = train.Training(
        epochs=law.epochs,
        patience=law.epochs,
        batch=law.batch,
        learning_rate=fit.rate,
        table_rate=3 * fit.rate,
    )
    spec = planted_histories.spec_of(law.groups, law.length)
    rows, valid, test = (planted_histories.examples(part, law.groups, law.length) for part in data(fit.law, fit.seed))
    params, _ = train.fit(ranker, spec, rows, valid, training, fit.seed)

    def logits(part: list[Example]) -> np.ndarray:
        batches = [collate([row.inputs for row in part[start : start + 200]]) for start in range(0, len(part), 200)]
        return np.concatenate([train.logits(ranker, spec, params, batch)[..., 0].ravel() for batch in batches])

    request = collate([with_1000_candidates(test)])
    return Fitted(
        valid_N=logits(valid),
        test_N=logits(test),
        parameters=sum(values.size for name, values in params.items() if not name.startswith("fixed.")),
        ms_1000=milliseconds(lambda: train.logits(ranker, spec, params, request)),
    )


def forest(fit: Fit) -> Fitted:
    """LightGBM on counts of the history and the candidate's category; ``parameters`` are its leaves."""
    law = LAWS[fit.law]
    rows, valid, test = data(fit.law, fit.seed)
    features = [history_counts(part, law.groups) for part in (rows, valid, test)]
    labels = [part.label_RC.ravel() for part in (rows, valid, test)]
    return boosted(features, labels, (0, 1), BOOSTING[int(fit.rate)], fit.seed)


def history_counts(rows: HistoryRows, groups: planted_histories.Groups) -> np.ndarray:
    """Features of each row: the category of the candidate and of the last event, and counts by group and object.

    Counts are the number of events with the candidate's group or object, the number with two decays, and the events
    since the last of them.
    """
    history_RT = rows.history_RT
    events = history_RT.shape[1]
    category_O = groups["category"]
    last_RC = np.repeat(category_O[history_RT[:, -1:]], rows.candidate_RC.shape[1], axis=1)
    columns = [category_O[rows.candidate_RC], last_RC]
    ago_T = np.arange(events, 0, -1)
    for group_O in (*groups.values(), np.arange(len(category_O))):
        event_RT = group_O[history_RT]
        candidate_RC = group_O[rows.candidate_RC]
        same = np.stack([event_RT == candidate_RC[:, c, None] for c in range(candidate_RC.shape[1])], axis=1)
        columns += [same.sum(2), same @ 0.7**ago_T, same @ 0.97**ago_T, np.where(same, ago_T, 2 * events).min(2)]
    return np.stack([column.ravel() for column in columns], axis=1)


if __name__ == "__main__":
    main()
