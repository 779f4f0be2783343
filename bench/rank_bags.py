"""Rankers from sums of bags on a planted law: how well do they order rows, by the size of a bag?

The law is `leadre/data/worlds/bags.py`, with bags of chance, of groups and of a key that leans to the label. All models
are one network; they differ in its labels and loss. A seed draws law, rows, bags and initial weights. The rate of each
model is the one of two with the lowest log loss of the validation bags, on the first seed of random bags of one size:
labels of rows are read by the ceiling alone. Intervals are those of `planted_rankers`. Claims are in
bench/RESULTS.md, and the figures in docs/results/rank-bags.json and its plot.

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

import torch
from matplotlib.figure import Figure
from planted_rankers import PAGES, Results, intervals, scores

from leadre.data.worlds import bags as law
from leadre.rank import planted, train
from leadre.rank.inputs import collate
from leadre.rank.models.dcnv2 import DcnV2
from leadre.rank.proportions import bags, learn
from leadre.rank.proportions.learn import Proportions
from leadre.rank.rows import Example
from leadre.rank.spec import FeatureSpec

FIGURES = PAGES / "rank-bags.json"
PLOT = PAGES / "rank-bags.png"
CANDIDATES = 8
REQUESTS = (2048, 512, 1500)  # of training, validation and test
SIZES: Mapping[law.Kind, tuple[int, ...]] = {"iid": (128, 8, 512, 32, 2048), "cluster": (128,), "key": (128,)}
TUNED_SIZE = 128
RATES = (5e-3, 2e-2)  # of dense layers; tables have three times as much
EPOCHS = 6
MANY_EPOCHS = 12  # for bags that are a step each
NETWORK = DcnV2(depth=0, deep=(64, 32))
PLAIN = "dllp"  # the model that others are compared with
CEILING = "rows"
METHODS: Mapping[str, Proportions] = {
    "dllp": Proportions(method="dllp"),
    "easyllp": Proportions(method="easyllp"),
    "bp": Proportions(method="bp"),
}
COLOURS = ("#0072B2", "#E69F00", "#D55E00")  # of Okabe and Ito
TITLES = {"dllp": "DLLP", "easyllp": "EasyLLP", "bp": "belief propagation"}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One training; ``size`` 1 for labels of rows. ``rate``: of dense layers."""

    model: str
    kind: law.Kind
    size: int
    seed: int
    rate: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("work/rank-bags.jsonl"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    assert options.seeds > 1, "an interval needs two seeds"
    torch.set_num_threads(1)
    results = Results(options.cache, Fit, measured)

    def of(model: str, kind: law.Kind, size: int) -> list[dict[str, float]]:
        rate = best_rate(model, results)
        return [results.of(Fit(model=model, kind=kind, size=size, seed=n, rate=rate)) for n in range(options.seeds)]

    def cells(kind: law.Kind, size: int) -> dict[str, Any]:
        return {model: intervals(of(model, kind, size), of(PLAIN, kind, size)) for model in METHODS}

    claim: dict[str, Any] = {"bench": "rank_bags", "requests": REQUESTS, "candidates": CANDIDATES}
    ceiling = of(CEILING, "iid", 1)
    claim["rows"] = intervals(ceiling, ceiling)
    claim["kinds"] = {kind: {size: cells(kind, size) for size in sizes} for kind, sizes in SIZES.items()}
    FIGURES.write_text(json.dumps(claim, indent=1) + "\n")
    plot(claim)
    sys.stdout.write(json.dumps(claim) + "\n")


def best_rate(model: str, results: Results) -> float:
    """The rate with the lowest validation loss on the first seed, in random bags of `TUNED_SIZE`."""
    size = 1 if model == CEILING else TUNED_SIZE
    return min(
        RATES, key=lambda rate: results.of(Fit(model=model, kind="iid", size=size, seed=0, rate=rate))["valid_loss"]
    )


@cache
def data(seed: int) -> tuple[FeatureSpec, list[law.Rows], list[list[Example]]]:
    """The spec, and the rows of training, validation and test."""
    drawn = law.draw(seed)
    rows = [drawn.rows(requests, CANDIDATES, 10 * seed + part) for part, requests in enumerate(REQUESTS)]
    return planted.spec_of(drawn, 8), rows, [planted.examples(part) for part in rows]


def measured(fit: Fit) -> dict[str, float]:
    """Train and test one model."""
    spec, rows, examples = data(fit.seed)
    epochs = MANY_EPOCHS if fit.size > learn.BATCH_ROWS else EPOCHS
    training = train.Training(epochs=epochs, patience=epochs, learning_rate=fit.rate, table_rate=3 * fit.rate)
    start_s = time.thread_time()
    if fit.model == CEILING:
        training = replace(training, batch=learn.BATCH_ROWS // CANDIDATES)
        params, curve = train.fit(NETWORK, spec, *examples[:2], training, fit.seed)
    else:
        hidden = [
            bags.hide(part, law.bags(drawn, fit.kind, fit.size, 10 * fit.seed + number))
            for number, (part, drawn) in enumerate(zip(examples[:2], rows[:2], strict=True))
        ]
        params, curve = learn.fit(NETWORK, spec, *hidden, training, METHODS[fit.model], fit.seed)
    seconds = time.thread_time() - start_s
    logit_RC = train.logits(NETWORK, spec, params, collate([row.inputs for row in examples[2]]))[..., 0]
    return scores(rows[2].label_RC.ravel(), logit_RC.ravel(), rows[2].logit_RC.ravel()) | {
        "valid_loss": round(min(curve.valid), 5),
        "train_s": round(seconds, 1),
    }


def plot(claim: Mapping[str, Any]) -> None:
    """AUC by the size of random bags: means, and a dash for each seed."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    sizes = sorted(claim["kinds"]["iid"])
    for colour, name in zip(COLOURS, METHODS, strict=True):
        cells = [claim["kinds"]["iid"][size][name]["auc"] for size in sizes]
        axes.plot(sizes, [cell["value"]["mean"] for cell in cells], marker="o", color=colour, label=TITLES[name])
        for size, cell in zip(sizes, cells, strict=True):
            axes.scatter([size] * len(cell["seeds"]), cell["seeds"], marker="_", color=colour)
    for key, name, style in (("auc", "labels of rows", "--"), ("auc_possible", "true log-odds", ":")):
        axes.axhline(claim["rows"][key]["value"]["mean"], color="grey", linestyle=style, label=name)
    axes.set(xscale="log", xlabel="rows of a bag", ylabel="AUC of test rows", ylim=(0.42, 0.85))
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.minorticks_off()
    axes.legend()
    figure.savefig(PLOT, dpi=150)


if __name__ == "__main__":
    main()
