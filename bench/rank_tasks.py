"""INFNet on a planted law of two tasks: how much of the possible does each model learn of click and conversion?

The law is `leadre/data/worlds/tasks.py`: each task follows a field of the candidate, the same field in the history, and
a field of the user. A seed draws law, rows and initial weights. Figures and intervals are those of `planted_rankers`.
Networks have about as many parameters, and the rate of each has the lowest log loss of both labels on the validation
rows of the first seed, as have leaves and rate of the trees. Claims are in bench/RESULTS.md, and the figures in
docs/results/rank-tasks.json: a run of some models with three seeds replaces their rows there.

Finished trainings are kept in ``--cache``, so that a killed run continues; delete it after a change of a model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from planted_rankers import (
    PAGES,
    Fitted,
    Results,
    boosted,
    intervals,
    merge_into,
    milliseconds,
    scores,
    serving,
    valid_loss,
    with_1000_candidates,
)
from rank_sequences import history_counts

from leadre.data.worlds import tasks
from leadre.rank import planted_histories, train
from leadre.rank.inputs import collate
from leadre.rank.models.dcnv2 import DcnV2
from leadre.rank.models.din import Din
from leadre.rank.models.esmm import Esmm
from leadre.rank.models.infnet import InfNet
from leadre.rank.models.shared import Ranker
from leadre.rank.planted import CHAIN
from leadre.rank.rows import Example
from leadre.serve.rankers.served import MAX_SCORED

FIGURES = PAGES / "rank-tasks.json"
SEEDS = 3
CANDIDATES = 8
EVENTS = 6
REQUESTS = (3000, 500, 1500)  # of training, validation and test
EPOCHS = 8
RATES = (3e-3, 1e-2, 3e-2)  # of dense layers; tables have three times as much
BOOSTING = tuple({"num_leaves": leaves, "learning_rate": rate} for leaves in (15, 63) for rate in (0.05, 0.1, 0.2))
TREES = "trees"
PLAIN = "shared"  # the model that others are compared with
NETWORKS: Mapping[str, Ranker] = {
    PLAIN: DcnV2(depth=0, deep=(160, 64)),
    "esmm": Esmm(hidden=(96, 40)),
    "din": Din(),
    "infnet": InfNet(),
    "infnet-tasks": InfNet(has_tasks=False, hidden=(32,)),
}
GROUPS = tasks.groups()
SERVED = ("dcnv2", "esmm", "gdcn", "infnet", "tin")  # with their defaults, for both actions


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One training. ``rate``: of dense layers, or the place in `BOOSTING` for trees."""

    model: str
    seed: int
    rate: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("work/rank-tasks.jsonl"))
    parser.add_argument("--models", default=",".join((TREES, *NETWORKS)))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    assert options.seeds > 1, "an interval needs two seeds"
    torch.set_num_threads(1)
    results = Results(options.cache, Fit, measured)

    def of(name: str) -> list[dict[str, float]]:
        rates = range(len(BOOSTING)) if name == TREES else RATES
        rate = min(rates, key=lambda rate: results.of(Fit(model=name, seed=0, rate=rate))["valid_loss"])
        return [results.of(Fit(model=name, seed=seed, rate=rate)) for seed in range(options.seeds)]

    claim: dict[str, Any] = {"bench": "rank_tasks", "requests": REQUESTS, "candidates": CANDIDATES}
    claim["models"] = {name: intervals(of(name), of(PLAIN)) for name in options.models.split(",")}
    claim["serving"] = serving(SERVED, labels=CHAIN)
    claim["serving_few"] = serving(SERVED, MAX_SCORED, CHAIN)
    if options.seeds == SEEDS:
        merge_into(FIGURES, claim)
    sys.stdout.write(json.dumps(claim) + "\n")


@cache
def data(seed: int) -> list[tasks.Rows]:
    """The rows of training, validation and test."""
    law = tasks.draw(seed)
    return [law.rows(requests, EVENTS, CANDIDATES, 10 * seed + part) for part, requests in enumerate(REQUESTS)]


def measured(fit: Fit) -> dict[str, float]:
    """Train and test one model."""
    start_s = time.thread_time()
    fitted = forests(fit) if fit.model == TREES else [network(fit)]
    seconds = time.thread_time() - start_s
    _, valid, test = data(fit.seed)
    logit_N2 = np.concatenate([part.test_N for part in fitted], axis=1)
    figures: dict[str, float] = {}
    for task, label in enumerate(CHAIN):
        truth = (test.label_RCK[..., task].ravel(), logit_N2[:, task], test.logit_RCK[..., task].ravel())
        figures |= {f"{label}_{name}": value for name, value in scores(*truth).items()}
    valid_N2 = np.concatenate([part.valid_N for part in fitted], axis=1)
    return figures | {
        "valid_loss": valid_loss(valid.label_RCK.reshape(-1, 2).ravel(), valid_N2.ravel()),
        "parameters": sum(part.parameters for part in fitted),
        "ms_1000": sum(part.ms_1000 for part in fitted),
        "train_s": round(seconds, 1),
    }


def network(fit: Fit) -> Fitted:
    """A network for both labels; log-odds are [N, 2]."""
    ranker = NETWORKS[fit.model]
    training = train.Training(epochs=EPOCHS, patience=EPOCHS, learning_rate=fit.rate, table_rate=3 * fit.rate)
    spec = planted_histories.spec_of(
        GROUPS, EVENTS, profile=dict.fromkeys(("user0", "user1"), tasks.USER_VALUES + 1), labels=CHAIN
    )
    rows, valid, test = (planted_histories.examples(part, GROUPS, EVENTS) for part in data(fit.seed))
    params, _ = train.fit(ranker, spec, rows, valid, training, fit.seed)

    def logits(part: list[Example]) -> np.ndarray:
        return train.logits(ranker, spec, params, collate([row.inputs for row in part])).reshape(-1, 2)

    request = collate([with_1000_candidates(test)])
    return Fitted(
        valid_N=logits(valid),
        test_N=logits(test),
        parameters=sum(values.size for name, values in params.items() if not name.startswith("fixed.")),
        ms_1000=milliseconds(lambda: train.logits(ranker, spec, params, request)),
    )


def forests(fit: Fit) -> list[Fitted]:
    """LightGBM for each label, on categories and counts of the history; log-odds are [N, 1]."""
    rows = data(fit.seed)
    features = [np.concatenate([categories(part), history_counts(part, GROUPS)[:, 2:]], axis=1) for part in rows]
    result = []
    for task in range(len(CHAIN)):
        labels = [part.label_RCK[..., task].ravel() for part in rows]
        fitted = boosted(features, labels, range(4), BOOSTING[int(fit.rate)], fit.seed)
        result.append(replace(fitted, valid_N=fitted.valid_N[:, None], test_N=fitted.test_N[:, None]))
    return result


def categories(rows: tasks.Rows) -> np.ndarray:
    """Category and brand of the candidate, and both fields of the user, [N, 4]."""
    candidate_RC = rows.candidate_RC
    columns = [GROUPS[name][candidate_RC] for name in GROUPS]
    columns += [np.repeat(rows.user_RK[:, task, None], candidate_RC.shape[1], 1) for task in range(2)]
    return np.stack([column.ravel() for column in columns], axis=1)


if __name__ == "__main__":
    main()
