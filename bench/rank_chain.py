"""ESMM on a planted chain of click and conversion: how well is the conversion after a click known for all rows?

The law is `leadre/data/worlds/chain.py`, with three correlations of the effects on click and conversion. The models
differ in the rows of the conversion's loss, in shared tables, and in a correction of the selection. All have two
networks of the same size, or one of about as many parameters. The rate of each is the one with the lowest log loss of
the conversion (click and conversion) over all validation rows of the first seed. Figures and intervals are those of
`planted_rankers`. Claims are in bench/RESULTS.md, and the figures in docs/results/rank-chain.json.

Finished trainings are kept in ``--cache``, so that a killed run continues; delete it after a change of a model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from planted_rankers import PAGES, Results, intervals, milliseconds, scores, valid_loss, with_1000_candidates
from scipy.special import expit, logit

from leadre.data.worlds import chain
from leadre.rank import layers, planted, train
from leadre.rank.inputs import collate
from leadre.rank.models.dcnv2 import DcnV2
from leadre.rank.models.esmm import Esmm
from leadre.rank.models.shared import Ranker
from leadre.rank.rows import Example
from leadre.rank.spec import FeatureSpec

FIGURES = PAGES / "rank-chain.json"
CANDIDATES = 8
REQUESTS = (2500, 500, 1500)  # of training, validation and test
SELECTIONS = (-0.7, 0.7)
WIDTH = 8  # columns of each table
RATES = (3e-3, 1e-2, 3e-2)  # of dense layers; tables have three times as much
TOWER = (48, 24)
TOWERS = Esmm(chain=(), hidden=TOWER)  # each label has a tower alone
ESMM = Esmm(hidden=TOWER)
SHARED_BOTTOM = DcnV2(depth=0, deep=(80, 40))
MAX_WEIGHT = 10.0  # of an inverse propensity
MAX_QUOTIENT = 1 - 1e-6  # of probabilities
MODELS = ("clicked", "clicked+ipw", "shared", "division", "esmm")
PLAIN = "clicked"  # the model that others are compared with


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One training, or two for a model with a network of its own for each action. ``rate``: of dense layers."""

    model: str
    selection: float
    seed: int
    rate: float


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Log-odds of a click and of a conversion after it, [R, C, 2], of validation and test rows."""

    valid_RC2: np.ndarray
    test_RC2: np.ndarray
    parameters: int
    ms_1000: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("work/rank-chain.jsonl"))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    assert options.seeds > 1, "an interval needs two seeds"
    torch.set_num_threads(1)
    names = options.models.split(",")
    results = Results(options.cache, Fit, measured)

    def of(name: str, selection: float) -> list[dict[str, float]]:
        def fit(seed: int, rate: float) -> dict[str, float]:
            return results.of(Fit(model=name, selection=selection, seed=seed, rate=rate))

        rate = min(RATES, key=lambda rate: fit(0, rate)["valid_loss"])
        return [fit(seed, rate) for seed in range(options.seeds)]

    claim: dict[str, Any] = {"bench": "rank_chain", "requests": REQUESTS, "candidates": CANDIDATES}
    claim["models"] = {
        name: {f"{selection:g}": intervals(of(name, selection), of(PLAIN, selection)) for selection in SELECTIONS}
        for name in names
    }
    if set(names) == set(MODELS):
        FIGURES.write_text(json.dumps(claim, indent=1) + "\n")
    sys.stdout.write(json.dumps(claim) + "\n")


@cache
def data(selection: float, seed: int) -> tuple[FeatureSpec, list[chain.Rows], list[list[Example]]]:
    """The spec, and the rows of training, validation and test."""
    law = chain.draw(selection, seed)
    rows = [law.rows(requests, CANDIDATES, 10 * seed + part) for part, requests in enumerate(REQUESTS)]
    return planted.spec_of(law, WIDTH), rows, [planted.examples(part) for part in rows]


def measured(fit: Fit) -> dict[str, float]:
    """Train and test one model."""
    start_s = time.thread_time()
    fitted = alone(fit) if fit.model.startswith("clicked") else together(fit)
    seconds = time.thread_time() - start_s
    _, (_, valid, test), _ = data(fit.selection, fit.seed)
    click_N = test.click_RC.ravel()
    converts_N = test.converts_RC.ravel()
    true_click_N = test.click_logit_RC.ravel()
    true_N = test.converts_logit_RC.ravel()
    both_N = layers.logit_of_both(true_click_N, true_N)
    after_N = fitted.test_RC2[..., 1].ravel()
    is_rare_N = true_click_N < np.quantile(true_click_N, 1 / 3)
    both = scores(click_N & converts_N, product(fitted.test_RC2).ravel(), both_N)
    clicked = scores(converts_N[click_N], after_N[click_N], true_N[click_N])
    return scores(converts_N, after_N, true_N) | {
        "clicked_auc": clicked["auc"],
        "clicked_auc_possible": clicked["auc_possible"],
        "product_share": both["share"],
        "product_auc": both["auc"],
        "rare_ratio": round(float(expit(after_N[is_rare_N]).sum() / expit(true_N[is_rare_N]).sum()), 4),
        "valid_loss": valid_loss((valid.click_RC & valid.converts_RC).ravel(), product(fitted.valid_RC2).ravel()),
        "parameters": fitted.parameters,
        "ms_1000": fitted.ms_1000,
        "train_s": round(seconds, 1),
    }


def product(logit_RC2: np.ndarray) -> np.ndarray:
    """Log-odds of a click and a conversion after it."""
    return layers.logit_of_both(logit_RC2[..., 0], logit_RC2[..., 1])


def together(fit: Fit) -> Fitted:
    """One training with both actions as labels.

    ``shared``: the loss of the conversion is on clicked rows alone. ``esmm``: it is on the product over all rows.
    ``division``: the conversion is learnt on all rows, and its probability divided by that of the click.
    """
    spec, rows, examples = data(fit.selection, fit.seed)
    if fit.model == "shared":
        examples = [planted.examples(part, on_clicks(part, np.ones(part.click_RC.shape))) for part in rows]
    ranker = {"shared": TOWERS, "division": SHARED_BOTTOM, "esmm": ESMM}[fit.model]
    params = trained(ranker, spec, examples, fit.seed, fit.rate)
    reader = SHARED_BOTTOM if fit.model == "division" else TOWERS
    logit_RC2 = [logits(reader, spec, params, part) for part in examples[1:]]
    if fit.model == "division":
        for part in logit_RC2:
            quotient_RC = expit(part[..., 1]) / expit(part[..., 0])
            part[..., 1] = logit(np.minimum(quotient_RC, MAX_QUOTIENT))
    request = collate([with_1000_candidates(examples[2])])
    return Fitted(
        valid_RC2=logit_RC2[0],
        test_RC2=logit_RC2[1],
        parameters=parameters(params),
        ms_1000=milliseconds(lambda: train.logits(ranker, spec, params, request)),
    )


def alone(fit: Fit) -> Fitted:
    """A network for the click, and one for the conversion with its loss on clicked rows alone.

    ``clicked+ipw`` weighs each clicked row by 1 / p(click), as the first network has it, relative to the mean rate.
    """
    spec, rows, examples = data(fit.selection, fit.seed)
    click_spec, converts_spec = (replace(spec, labels=(label,)) for label in spec.labels)
    click = click_alone(fit.selection, fit.seed, fit.rate)
    weight_RC = [np.ones(part.click_RC.shape) for part in rows]
    if fit.model == "clicked+ipw":
        p_RC = [expit(logits(TOWERS, click_spec, click, part)[..., 0]) for part in examples]
        weight_RC = [np.minimum(rows[0].click_RC.mean() / p, MAX_WEIGHT) for p in p_RC]
    weighted = [
        of_label(planted.examples(part, on_clicks(part, weight)), 1)
        for part, weight in zip(rows, weight_RC, strict=True)
    ]
    converts = trained(TOWERS, converts_spec, weighted, fit.seed, fit.rate)
    logit_RC2 = [
        np.concatenate([logits(TOWERS, click_spec, click, part), logits(TOWERS, converts_spec, converts, part)], axis=2)
        for part in examples[1:]
    ]
    request = collate([with_1000_candidates(examples[2])])
    return Fitted(
        valid_RC2=logit_RC2[0],
        test_RC2=logit_RC2[1],
        parameters=parameters(click) + parameters(converts),
        ms_1000=2 * milliseconds(lambda: train.logits(TOWERS, click_spec, click, request)),
    )


@cache
def click_alone(selection: float, seed: int, rate: float) -> train.Arrays:
    """A network for the click, which both models with a network for each action have."""
    spec, _, examples = data(selection, seed)
    return trained(TOWERS, replace(spec, labels=spec.labels[:1]), [of_label(part, 0) for part in examples], seed, rate)


def on_clicks(rows: chain.Rows, weight_RC: np.ndarray) -> np.ndarray:
    """Weights [R, C, 2] of the labels: 1 for the click, and for the conversion those given, 0 without a click."""
    return np.stack([np.ones(weight_RC.shape), weight_RC * rows.click_RC], axis=2).astype(np.float32)


def of_label(examples: list[Example], label: int) -> list[Example]:
    """The rows with one of their labels."""
    chosen = slice(label, label + 1)
    return [
        replace(
            row,
            label_CH=row.label_CH[:, chosen],
            weight_CH=None if row.weight_CH is None else row.weight_CH[:, chosen],
        )
        for row in examples
    ]


def trained(ranker: Ranker, spec: FeatureSpec, examples: list[list[Example]], seed: int, rate: float) -> train.Arrays:
    """Parameters after training."""
    training = train.Training(epochs=10, patience=3, learning_rate=rate, table_rate=3 * rate)
    return train.fit(ranker, spec, examples[0], examples[1], training, seed)[0]


def logits(ranker: Ranker, spec: FeatureSpec, params: train.Arrays, examples: list[Example]) -> np.ndarray:
    """Log-odds [R, C, H] of rows."""
    return train.logits(ranker, spec, params, collate([row.inputs for row in examples]))


def parameters(params: train.Arrays) -> int:
    """Trained numbers of a model."""
    return sum(values.size for name, values in params.items() if not name.startswith("fixed."))


if __name__ == "__main__":
    main()
