"""Coarse rankers: how many of the final ranker's ten best ads are in a cut to K, with and without distillation?

Two sets: the planted law of `leadre/data/worlds/interests.py`, whose final ranker are boosted trees on counts, and the
visits of the demo with its ranker, if ``--demo`` is the folder of a finished run. A seed draws rows and weights, of the
demo weights alone. The rate of each network on the law is the one with the lowest loss on validation rows of the first
seed. Intervals are those of Student over the seeds. Claims are in bench/RESULTS.md, figures in docs/results.

Finished trainings are kept in ``--cache``, so that a killed run continues; delete it after a change of a model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import lightgbm
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from planted_rankers import PAGES, Results, interval, milliseconds, served_request, serving

from leadre import artifact
from leadre.data import histories
from leadre.data.histories import VALID
from leadre.data.worlds import interests
from leadre.data.worlds.history import HistoryRows
from leadre.evaluate import plots
from leadre.rank import coarse, planted_histories, ranker, rows, train
from leadre.rank.inputs import collate
from leadre.rank.losses import LiveSetLoss
from leadre.rank.models import hcn, towers
from leadre.rank.models.finalmlp import FinalMlpSplit
from leadre.rank.models.hcn import Hcn
from leadre.rank.models.registry import COARSE, RANKERS
from leadre.rank.models.shared import Ranker, fit_numbers
from leadre.rank.models.two_tower import TwoTower
from leadre.rank.options import STOP_SHARE, RowOptions
from leadre.rank.prepare import prepare
from leadre.rank.rows import Example
from leadre.rank.spec import FeatureSpec

FIGURES = PAGES / "rank-coarse.json"
CUTS = (10, 20, 50, 100, 200)
NEGATIVES = 0.1
PLANTED, DEMO = "interests", "demo"
RATES: Mapping[str, tuple[float, ...]] = {PLANTED: (1e-2, 3e-2), DEMO: (1e-2,)}  # of dense layers; tables three times
EVENTS, LIVE = 40, 400
REQUESTS = (3000, 300, 300)  # of training, validation and test on the planted law
DEMO_REQUESTS, DEMO_USERS = 2000, 100
ROUNDS = 100
BOOSTING: dict[str, Any] = {"objective": "binary", "num_leaves": 15, "verbosity": -1, "num_threads": 1}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A coarse ranker and its loss."""

    ranker: Ranker
    teacher_weight: float = 0.0
    is_softmax: bool = True


TEACHER = 10.0
PLAIN = "two_tower"  # the model that others are compared with
BARE = TwoTower(repeats=False)
CENTRES = 4
MODELS: Mapping[str, Model] = {
    "log": Model(ranker=BARE, is_softmax=False),
    PLAIN: Model(ranker=BARE),
    "two_tower+teacher": Model(ranker=BARE, teacher_weight=TEACHER),
    "repeats": Model(ranker=TwoTower()),
    "repeats+teacher": Model(ranker=TwoTower(), teacher_weight=TEACHER),
    "wide+teacher": Model(ranker=TwoTower(width=CENTRES * TwoTower().width), teacher_weight=TEACHER),
    "finalmlp_split+teacher": Model(ranker=FinalMlpSplit(), teacher_weight=TEACHER),
    "routing+teacher": Model(ranker=Hcn(residual=0, penalty=0, centres=CENTRES), teacher_weight=TEACHER),
    "hcn": Model(ranker=Hcn(centres=CENTRES)),
    "hcn+teacher": Model(ranker=Hcn(centres=CENTRES), teacher_weight=TEACHER),
}
OF_DEMO = (PLAIN, "repeats+teacher")

PLOTTED = {  # title and colour of a line
    "popularity": ("popularity", plots.FAINT),
    "own": ("own events", plots.RIVAL),
    PLAIN: ("two towers", plots.KIN),
    "repeats+teacher": ("+ repeats, distilled", plots.OURS),
    "routing+teacher": ("four vectors: routing", plots.ACCENT),
    "hcn+teacher": ("four vectors: after HCN", plots.INK),
}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One training. ``rate``: of dense layers; 0 for a baseline."""

    data: str
    model: str
    seed: int
    rate: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """Rows of training and validation with scores of the final ranker, and all live ads of the test requests.

    ``final_N``: the final ranker's scores of the test rows; ``new_N``: those among objects new to the user, -inf for
    others; ``baselines``: scores of orders that learn nothing.
    """

    spec: FeatureSpec
    rows: Sequence[Example]
    stop: Sequence[Example]
    test: Sequence[Example]
    final_N: np.ndarray
    new_N: np.ndarray
    baselines: Mapping[str, np.ndarray]
    epochs: int
    batch: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("work/rank-coarse.jsonl"))
    parser.add_argument("--demo", type=Path, default=Path("work/demo"), help="the folder of a finished `make demo`")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    assert options.seeds > 1, "an interval needs two seeds"
    torch.set_num_threads(1)
    results = Results(options.cache, Fit, partial(measured, demo=options.demo))
    claim: dict[str, Any] = {"bench": "rank_coarse", "negatives": NEGATIVES}
    sets = (PLANTED, DEMO) if (options.demo / "rank-train").exists() else (PLANTED,)
    for name in sets:
        claim[name] = compared(name, results, options.seeds, options.demo)
    claim["serving"] = serving(COARSE)
    claim["cached"] = {name: cached_milliseconds(RANKERS[name]) for name in COARSE}
    if DEMO in claim:
        FIGURES.write_text(json.dumps(claim, indent=1) + "\n")
        plot(claim).savefig(FIGURES.with_suffix(".png"), dpi=120)
    sys.stdout.write(json.dumps(claim) + "\n")


def compared(data: str, results: Results, seeds: int, demo: Path) -> dict[str, Any]:
    """Figures of all baselines and models on a set: means and intervals over seeds, paired with `PLAIN`."""
    by_name = {}
    for name in (*task(data, 0, demo).baselines, *(MODELS if data == PLANTED else OF_DEMO)):
        rates = RATES[data] if name in MODELS else (0.0,)
        first = [results.of(Fit(data=data, model=name, seed=0, rate=rate)) for rate in rates]
        rate = rates[int(np.argmin([result["valid_loss"] for result in first]))]
        by_name[name] = [results.of(Fit(data=data, model=name, seed=seed, rate=rate)) for seed in range(seeds)]
    table: dict[str, Any] = {}
    for name, fits in by_name.items():
        table[name] = {key: round(float(np.mean([fit[key] for fit in fits])), 4) for key in fits[0]}
        for key in [f"{part}_{size}" for part in ("recall", "new") for size in CUTS]:
            values, plain = (np.array([fit[key] for fit in part]) for part in (fits, by_name[PLAIN]))
            table[name][key] = {"value": interval(values), "less": interval(values - plain)}
    return table


def measured(fit: Fit, demo: Path) -> dict[str, float]:
    """Train and test one model, or test one baseline."""
    data = task(fit.data, fit.seed, demo)
    if fit.model in data.baselines:
        return tested(data, data.baselines[fit.model]) | {"valid_loss": 0.0, "parameters": 0.0}
    model = MODELS[fit.model]
    training = train.Training(
        epochs=data.epochs,
        patience=data.epochs,
        batch=data.batch,
        learning_rate=fit.rate,
        table_rate=3 * fit.rate,
    )
    loss = LiveSetLoss(negatives=NEGATIVES, is_softmax=model.is_softmax, teacher_weight=model.teacher_weight)
    params, curve = train.fit(model.ranker, data.spec, data.rows, data.stop, training, fit.seed, loss=loss)
    scores = []
    cosines = []
    for start in range(0, len(data.test), 20):
        batch = collate([row.inputs for row in data.test[start : start + 20]])
        state = model.ranker.user(params, data.spec, batch)
        scores.append(model.ranker.score(params, data.spec, state, batch)[..., 0][batch.mask_RC])
        if "centres" in state:
            cosines.append(hcn.cosines(state["centres"]).mean())
    size = sum(values.size for name, values in params.items() if not name.startswith("fixed."))
    result = tested(data, np.concatenate(scores)) | {"valid_loss": round(min(curve.valid), 5), "parameters": size}
    return result | {"cosine": round(float(np.mean(cosines)), 4)} if cosines else result


def tested(data: Task, score_N: np.ndarray) -> dict[str, float]:
    """Recall of the final ranker's ten best by the size of the cut, also of new objects; recall of clicks after it."""
    request_N = np.repeat(np.arange(len(data.test)), [len(row.ads) for row in data.test])
    label_N = np.concatenate([row.label_CH[:, 0] for row in data.test])
    result = {"labels": clicked(request_N, label_N, data.final_N)}
    for size in CUTS:
        is_in_N = coarse.first(request_N, score_N, size, seed=0)
        result[f"recall_{size}"] = float(coarse.recall(request_N, data.final_N, is_in_N, seed=0).mean())
        new = data.new_N > -np.inf
        new_recall_R = coarse.recall(request_N[new], data.new_N[new], is_in_N[new], seed=0)
        result[f"new_{size}"] = float(new_recall_R.mean())
        result[f"labels_{size}"] = clicked(request_N, label_N, np.where(is_in_N, data.final_N, -np.inf))
    return {name: round(value, 4) for name, value in result.items()}


def clicked(request_N: np.ndarray, label_N: np.ndarray, score_N: np.ndarray) -> float:
    """R@10 of clicks over the requests that have one."""
    is_top_N = coarse.first(request_N, score_N, 10, seed=0)
    hits_R, clicks_R = (np.bincount(request_N, weights=mask_N) for mask_N in (label_N & is_top_N, label_N))
    return float((hits_R / np.minimum(clicks_R, 10).clip(min=1))[clicks_R > 0].mean())


@cache
def task(data: str, seed: int, demo: Path) -> Task:
    """A set; that of the demo is the same for all seeds."""
    return planted_task(seed) if data == PLANTED else demo_task(demo)


def planted_task(seed: int) -> Task:
    """The law of interests. The final ranker is fitted on the rows of the coarse ones."""
    groups = interests.groups()
    parts = [interests.rows(requests, EVENTS, LIVE, 10 * seed + part) for part, requests in enumerate(REQUESTS)]
    events_O = np.bincount(parts[0].history_RT.ravel(), minlength=len(groups["category"]))
    features = [law_features(part, groups["category"], events_O) for part in parts]
    rng = np.random.default_rng(seed)
    kept = [part.label_RC | (rng.random(part.label_RC.shape) < NEGATIVES) for part in parts[:2]]
    kept.append(np.ones_like(parts[2].label_RC))
    dataset = lightgbm.Dataset(features[0][kept[0]], parts[0].label_RC[kept[0]])
    trees = lightgbm.train(BOOSTING | {"seed": seed}, dataset, ROUNDS)
    final = [
        np.asarray(trees.predict(part[kept_RC], raw_score=True)) for part, kept_RC in zip(features, kept, strict=True)
    ]
    examples = []
    for part, kept_RC, score_N in zip(parts, kept, final, strict=True):
        whole = planted_histories.examples(part, groups, EVENTS)
        scores = np.split(score_N.astype(np.float32), kept_RC.sum(1).cumsum()[:-1])
        examples.append([some(*row) for row in zip(whole, kept_RC, scores, strict=True)])
    popular_N = events_O[parts[2].candidate_RC].ravel()
    own_N = features[2][..., 0].ravel()
    return Task(
        spec=planted_histories.spec_of(groups, EVENTS),
        rows=examples[0],
        stop=examples[1],
        test=examples[2],
        final_N=final[2],
        new_N=np.where(own_N > 0, -np.inf, final[2]),
        baselines={"popularity": popular_N, "own": own_N + popular_N / (1 + popular_N.max())},
        epochs=4,
        batch=32,
    )


def law_features(part: HistoryRows, topic_O: np.ndarray, events_O: np.ndarray) -> np.ndarray:
    """Counts [R, C, 3] that decide the law: events on the object, events on its topic, events of all users on it."""
    own_RC, topic_RC = (
        interests.counts(group_O[part.history_RT], group_O[part.candidate_RC])
        for group_O in (np.arange(len(topic_O)), topic_O)
    )
    return np.stack([own_RC, topic_RC, events_O[part.candidate_RC]], axis=2).astype(np.float32)


def some(row: Example, kept_C: np.ndarray, teacher_C: np.ndarray) -> Example:
    """Some of the candidates of a request, with scores of the final ranker."""
    names = ("number_CF", "field_CK", "content_C", "is_new_C")
    inputs = replace(row.inputs, **{name: getattr(row.inputs, name)[kept_C] for name in names})
    return replace(row, ads=row.ads[kept_C], label_CH=row.label_CH[kept_C], inputs=inputs, teacher_C=teacher_C)


def demo_task(demo: Path) -> Task:
    """Visits of the demo: a part of its training rows; late validation visits of some households, all live ads."""
    data = artifact.read(demo / "data", artifact.TABLES)
    teacher = ranker.load(demo / "rank-train")
    prepared = prepare(data, None, RowOptions(requests=DEMO_REQUESTS), seed=0, threads=1)
    assert prepared.spec == teacher.spec and prepared.spec.negatives == NEGATIVES, "run `make demo` again"
    logs = histories.load(data, empty=True)
    requests = histories.choose_requests(logs, split="valid", users=DEMO_USERS, seed=0)
    late = np.intersect1d(requests, rows.period(logs, VALID, STOP_SHARE, 1))
    popularity = rows.Popularity(logs, prepared.tables.collaborative, histories.train_end_us(logs), is_fresh=False)
    test = list(
        rows.examples(*(logs, late, logs.inventory, prepared.spec, prepared.known, popularity), negatives=1.0, seed=0)
    )
    with_scores = [
        [replace(row, teacher_C=teacher.logits(row.inputs)[:, 0].astype(np.float32)) for row in part]
        for part in (prepared.train, prepared.stop, test)
    ]
    new_N = np.concatenate([np.where(row.inputs.is_new_C, teacher.new_scores(row.inputs), -np.inf) for row in test])
    number_NF = np.concatenate([row.inputs.number_CF for row in test])
    popular_N, own_N = (number_NF[:, prepared.spec.numbers.index(name)] for name in ("rate", "own_fast"))
    return Task(
        spec=prepared.spec,
        rows=with_scores[0],
        stop=with_scores[1],
        test=with_scores[2],
        final_N=np.concatenate([row.teacher_C for row in with_scores[2] if row.teacher_C is not None]),
        new_N=new_N,
        baselines={"popularity": popular_N, "own": own_N + 1e-3 * popular_N},
        epochs=2,
        batch=32,
    )


def cached_milliseconds(model: Ranker, candidates: int = 1000) -> float:
    """Milliseconds of a request whose candidates' vectors are cached: the user's state and the dot products."""
    assert isinstance(model, towers.Coarse)
    spec, request = served_request(candidates, ("click",))
    params = model.init(spec, np.random.default_rng(0)) | fit_numbers(request.number_CF)
    batch = collate([request])
    vectors = model.vectors(params, spec, batch)
    object_RC = batch.field_RCK[..., 0].copy()
    return milliseconds(lambda: towers.score(spec, model.user(params, spec, batch), vectors, object_RC))


def plot(claim: Mapping[str, Any]) -> Figure:
    """Recall of the final ranker's ten best by the size of the cut, a panel for each set."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        for axes, name in zip(figure.subplots(1, 2, sharey=True), (PLANTED, DEMO), strict=True):
            for model, (title, colour) in PLOTTED.items():
                if model not in claim[name]:
                    continue
                cells = [claim[name][model][f"recall_{size}"]["value"] for size in CUTS]
                line = "-" if model in MODELS else "--"
                axes.plot(
                    CUTS, [cell["mean"] for cell in cells], line, color=colour, marker="o", markersize=3, label=title
                )
            axes.set(title=name, xlabel="ads in the cut", xscale="log", xticks=CUTS, xticklabels=CUTS, ylim=(0, 1))
        figure.axes[0].set_ylabel("share of the final ranker's ten best")
        figure.axes[0].legend(frameon=False, loc="lower right")
    return figure


if __name__ == "__main__":
    main()
