"""Rankers of field interactions on a planted law: how much of the possible does each of them learn?

The law is a product of ``order`` signs among 12 fields (`leadre/data/worlds/interaction.py`). A seed draws law, rows
and initial weights. Figures and intervals are those of `planted_rankers`. Networks that are compared have about as many
parameters, and the rate of each is the best on validation rows of one seed, as are leaves and rate of the trees.
Claims are in bench/RESULTS.md, and the figures in docs/results/rank-models.json: a run of some models with three seeds
replaces their rows there.

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
import planted_rankers
import torch
from planted_rankers import (
    PAGES,
    Fitted,
    Results,
    boosted,
    merge_into,
    milliseconds,
    serving,
    summary,
    with_1000_candidates,
)
from scipy.special import expit

from leadre.data.worlds import interaction
from leadre.errors import InputError
from leadre.rank import calibrate, dimensions, measure, planted, train
from leadre.rank.inputs import collate
from leadre.rank.models.autoint import AutoInt
from leadre.rank.models.dcnv2 import DcnV2
from leadre.rank.models.finalmlp import FinalMlp
from leadre.rank.models.gdcn import Gdcn
from leadre.rank.models.mlcc import Mlcc
from leadre.rank.models.shared import Ranker
from leadre.rank.rows import Example

FIGURES = PAGES / "rank-models.json"
CANDIDATES = 8
REQUESTS = (3000, 600, 2000)  # of training, validation and test
FIELDS, VALUES = 12, 10
WIDTH = 8  # columns of each table
ORDERS = (3, 4)
TUNED_ON = 4  # the order
SEEDS = 3
RATES = (3e-3, 1e-2, 3e-2)  # of dense layers; tables have three times as much
BOOSTING = tuple({"num_leaves": leaves, "learning_rate": rate} for leaves in (63, 255) for rate in (0.05, 0.1, 0.3))
TREES = "trees"
NETWORKS: Mapping[str, Ranker] = {
    "mlp": DcnV2(depth=0, deep=(96, 32)),
    "dcnv2": DcnV2(rank=8, deep=(48, 24)),
    "autoint1": AutoInt(blocks=1, width=40, deep=()),
    "autoint2": AutoInt(blocks=2, width=32, deep=()),
    "autoint+": AutoInt(blocks=2, width=24, deep=(48, 16)),
    "streams": FinalMlp(hidden=(48, 24), heads=0, gate=0),
    "streams+bilinear": FinalMlp(hidden=(48, 24), heads=4, gate=0),
    "finalmlp": FinalMlp(hidden=(40, 20), heads=4, gate=8),
    "gdcn": Gdcn(rank=4, deep=(48, 24)),
    "mlcc": Mlcc(width=8, heads=2, levels=(3, 1), deep=(32, 16)),
    "mlcc3": Mlcc(width=8, heads=2, levels=(3, 2, 1), deep=(24, 16)),
    "mc-mlcc": Mlcc(width=8, channels=2, heads=1, levels=(3, 1), deep=(24, 12)),
    **{
        f"levels{len(levels)}": Mlcc(width=8, heads=2, levels=levels, gated=False, deep=())
        for levels in ((6,), (4, 3), (3, 3, 3))
    },
    **{f"cross{depth}": DcnV2(depth=depth, rank=96 // depth, deep=()) for depth in (1, 2, 3, 5)},
    **{f"gated{depth}": Gdcn(depth=depth, rank=48 // depth, deep=()) for depth in (1, 2, 3, 5)},
}
SERVED = ("autoint", "dcnv2", "finalmlp", "gdcn", "mlcc", "tin")  # with their defaults
PLAIN = "mlp"  # the model that others are compared with
COLUMNS = {f"{width} columns": float(width) for width in (WIDTH, 4, 2)} | {"FDO, 95 %": 0.95, "FDO, 80 %": 0.8}
DEPTHS = tuple(name for name in NETWORKS if name[:5] in ("cross", "gated"))
LEVELS = tuple(name for name in NETWORKS if name.startswith("levels"))  # tuned on each order: none knows all of them


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One training.

    ``rate``: of dense layers, or the place in `BOOSTING` for trees. ``tables``: columns of every table, or below 1 the
    share of FDO.
    """

    model: str
    order: int
    seed: int
    rate: float
    tables: float = WIDTH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("work/rank-models.jsonl"))
    parser.add_argument("--models", default=",".join((TREES, *NETWORKS)))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    assert options.seeds > 1, "an interval needs two seeds"
    torch.set_num_threads(1)
    names = options.models.split(",")
    results = Results(options.cache, Fit, measured)
    rates = {
        (name, order): best_rate(name, order if name in LEVELS else TUNED_ON, results)
        for name in dict.fromkeys((*names, PLAIN))
        for order in ORDERS
    }
    orders = {name: (TUNED_ON,) if name in DEPTHS else ORDERS for name in names}

    def of(name: str, order: int, tables: float = WIDTH) -> list[dict[str, float]]:
        fits = [
            Fit(model=name, order=order, seed=n, rate=rates[name, order], tables=tables) for n in range(options.seeds)
        ]
        return [results.of(fit) for fit in fits]

    claim: dict[str, Any] = {"bench": "rank_models", "requests": REQUESTS, "candidates": CANDIDATES}
    claim["models"] = {
        name: {"rate": rates[name, TUNED_ON]}
        | {f"order{order}": summary(of(name, order), of(PLAIN, order)) for order in orders[name]}
        for name in names
    }
    if "gdcn" in names:
        claim["tables"] = {
            title: summary(of("gdcn", TUNED_ON, columns), of("gdcn", TUNED_ON)) for title, columns in COLUMNS.items()
        }
    claim["serving"] = serving(SERVED)
    if options.seeds == SEEDS:
        merge_into(FIGURES, claim)
    sys.stdout.write(json.dumps(claim) + "\n")


def best_rate(name: str, order: int, results: Results) -> float:
    """The rate with the lowest validation loss on the first seed."""
    rates = range(len(BOOSTING)) if name == TREES else RATES
    return min(rates, key=lambda rate: results.of(Fit(model=name, order=order, seed=0, rate=rate))["valid_loss"])


@cache
def data(order: int, seed: int) -> tuple[interaction.Interaction, list[interaction.Rows], list[list[Example]]]:
    """The law, and its rows of training, validation and test."""
    law = interaction.draw(order, seed, fields=FIELDS, values=VALUES)
    rows = [law.rows(requests, CANDIDATES, 10 * seed + part) for part, requests in enumerate(REQUESTS)]
    return law, rows, [planted.examples(part) for part in rows]


def measured(fit: Fit) -> dict[str, float]:
    """Train and test one model."""
    start_s = time.thread_time()
    fitted = forest(fit) if fit.model == TREES else network(fit)
    seconds = time.thread_time() - start_s
    _, (_, valid, test), _ = data(fit.order, fit.seed)
    label_N = test.label_RC.ravel()
    return planted_rankers.scores(label_N, fitted.test_N, test.logit_RC.ravel()) | {
        "loss": round(float(measure.log_losses(label_N, expit(fitted.test_N)).mean()), 5),
        "loss_calibrated": calibrated_loss(valid.label_RC.ravel(), label_N, fitted),
        "valid_loss": planted_rankers.valid_loss(valid.label_RC.ravel(), fitted.valid_N),
        "parameters": fitted.parameters,
        "columns_law": fitted.columns_law,
        "columns_noise": fitted.columns_noise,
        "ms_1000": fitted.ms_1000,
        "train_s": round(seconds, 1),
    }


def calibrated_loss(valid_N: np.ndarray, label_N: np.ndarray, fitted: Fitted) -> float:
    """Log loss of the test rows after a calibration on the validation rows; of the rate if log-odds have no order."""
    try:
        platt = calibrate.fit(fitted.valid_N, valid_N, np.zeros(len(valid_N), np.int64), 1)
    except InputError:
        p_N = np.full(len(label_N), valid_N.mean())
    else:
        p_N = platt.apply(fitted.test_N, np.zeros(len(label_N), np.int64))
    return round(float(measure.log_losses(label_N, p_N).mean()), 5)


@dataclass(frozen=True, kw_only=True)
class FittedTables(Fitted):
    """Also the mean columns of the tables of the fields in the law, and of the others; 1 for trees."""

    columns_law: float = 1
    columns_noise: float = 1


def network(fit: Fit) -> FittedTables:
    """A network; with an FDO share it is trained twice, and the second one counts."""
    law, _, (rows, valid, test) = data(fit.order, fit.seed)
    ranker = NETWORKS[fit.model]
    training = train.Training(epochs=6, patience=6, learning_rate=fit.rate, table_rate=3 * fit.rate)
    spec = planted.spec_of(law, WIDTH if fit.tables < 1 else int(fit.tables))
    params, _ = train.fit(ranker, spec, rows, valid, training, fit.seed)
    if fit.tables < 1:
        spec = replace(spec, widths=dimensions.widths(spec, params, rows, fit.tables))
        params, _ = train.fit(ranker, spec, rows, valid, training, fit.seed)
    logit = [train.logits(ranker, spec, params, collate([row.inputs for row in part])) for part in (valid, test)]
    columns = [0] * len(spec.widths)
    columns[::2] = [spec.widths[name] for name in spec.user_tables]
    columns[1::2] = [spec.widths[name] for name in spec.fields]
    request = collate([with_1000_candidates(test)])
    return FittedTables(
        valid_N=logit[0][..., 0].ravel(),
        test_N=logit[1][..., 0].ravel(),
        parameters=sum(values.size for name, values in params.items() if not name.startswith("fixed.")),
        columns_law=float(np.mean(columns[: law.order])),
        columns_noise=float(np.mean(columns[law.order :])),
        ms_1000=milliseconds(lambda: train.logits(ranker, spec, params, request)),
    )


def forest(fit: Fit) -> FittedTables:
    """LightGBM with all fields as categories; ``parameters`` are its leaves."""
    law, (rows, valid, test), _ = data(fit.order, fit.seed)
    fields = [
        np.concatenate([np.repeat(part.user_RP[:, None], CANDIDATES, 1), part.candidate_RCK], 2).reshape(
            -1, len(law.sign_FV)
        )
        for part in (rows, valid, test)
    ]
    labels = [part.label_RC.ravel() for part in (rows, valid, test)]
    return FittedTables(**vars(boosted(fields, labels, range(fields[0].shape[1]), BOOSTING[int(fit.rate)], fit.seed)))


if __name__ == "__main__":
    main()
