"""Rankers on the logs of the demo: order, calibration, speed. Claims are in bench/RESULTS.md.

All models get the same rows and one feature pass. ``tin+gbdt-large`` is the mean of the log-odds of two models before
it. Choose on the default, the second half of the validation weeks; `--split test` reads the test weeks, and logs the
reading. `--users 300 --popularity fresh` are the visits and counts of a known sketch, and ``gbdt-large`` are its trees.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leadre import artifact, metrics, readings
from leadre.__main__ import main as leadre
from leadre.data import histories
from leadre.data.histories import SPLITS, VALID
from leadre.evaluate.retrieval import measure as retrieval
from leadre.rank import calibrate, lists, measure, rows, score, train
from leadre.rank.inputs import RequestInputs
from leadre.rank.models import gbdt
from leadre.rank.models.registry import RANKERS
from leadre.rank.options import STOP_SHARE, RowOptions
from leadre.rank.prepare import Prepared, prepare
from leadre.rank.ranker import GBDT, MODELS, TrainedRanker
from leadre.rank.score import ScoredRequest, ScoredRows

CONFIG = Path(__file__).parents[1] / "configs" / "rank.toml"
CANDIDATES = 1000
LARGE = gbdt.Boosting(rounds=400, learning_rate=0.06, num_leaves=63)
FORESTS = {GBDT: gbdt.Boosting(), "gbdt-large": LARGE}


def main() -> None:
    options = arguments()
    for stage in ("data", "semid"):
        assert leadre([stage, "--config", str(CONFIG)]) == 0
    data = artifact.read(Path("work/rank/data"), artifact.TABLES)
    codebook = artifact.read(Path("work/rank/semid"), artifact.CODEBOOK)
    row_options = RowOptions(popularity=options.popularity, requests=options.requests, empty=options.empty, ids=True)
    prepared = prepare(data, codebook, row_options, seed=0, threads=1)
    logs = histories.load(data, empty=options.empty)
    requests = histories.choose_requests(logs, split=options.split, users=options.users, seed=0)
    late = rows.period(logs, VALID, STOP_SHARE, 1)
    if options.split == SPLITS[VALID]:
        requests = np.intersect1d(requests, late)
    names = options.models.split(",")
    if options.split != SPLITS[VALID]:
        read = [f"rank.{name}" for name in names]
        readings.record(Path("work"), data, read, run="rank", requests=len(requests), config=vars(options))
    models: dict[str, Any] = {}
    rankers: dict[str, TrainedRanker] = {}
    for name in [name for name in names if "+" not in name]:
        rankers[name], rows_per_s = trained(name, prepared, options)
        models[name] = {"train_rows_per_s": round(rows_per_s)} | milliseconds(rankers[name], prepared)
    ads_of = rows.candidates(data, logs, prepared.spec.rows, empty=options.empty)
    fitted_on = scored(logs, late, ads_of, rankers, prepared)
    rated = fitted_on if np.array_equal(late, requests) else scored(logs, requests, ads_of, rankers, prepared)
    gaucs: list[metrics.Ratio] = []
    for name in names:
        values, gauc = figures(logs, mean_of(fitted_on, name), mean_of(rated, name), requests)
        gaucs.append(gauc)
        models[name] = values | models.get(name, {}) | {f"gauc_less_{names[0]}": less_first(gaucs)}
        sys.stdout.write(f"{name:8} {models[name]}\n")
    claim = {"bench": "rank", "split": options.split, "popularity": options.popularity, "models": models}
    sys.stdout.write(json.dumps(claim) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(("gbdt-large", *MODELS)), help="the first is compared with")
    parser.add_argument("--requests", type=int, default=0, help="training requests; 0 = all")
    parser.add_argument("--split", choices=("valid", "test"), default="valid")
    parser.add_argument("--users", type=int, default=0, help="users of the split; 0 = all")
    parser.add_argument("--popularity", choices=("frozen", "fresh"), default="frozen")
    training = train.Training()
    parser.add_argument("--epochs", type=int, default=training.epochs, help="of a network")
    parser.add_argument("--batch", type=int, default=training.batch, help="requests of a step of a network")
    parser.add_argument("--learning-rate", type=float, default=training.learning_rate, help="of a network")
    parser.add_argument("--table-rate", type=float, default=training.table_rate, help="rate of its tables")
    parser.add_argument("--seed", type=int, default=0, help="of the training of networks")
    parser.add_argument("--empty", action="store_true", help="visits without a conversion are rows too")
    return parser.parse_args()


def trained(name: str, prepared: Prepared, options: argparse.Namespace) -> tuple[TrainedRanker, float]:
    """(the ranker, rows a second of all its epochs or trees)."""
    count = sum(len(row.ads) for row in prepared.train)
    start_s = time.perf_counter()
    if name in FORESTS:
        weights = gbdt.fit(prepared.train, prepared.stop, prepared.spec.numbers, FORESTS[name], 0, 1)
        passes = 1
    else:
        weights, curve = train.fit(
            RANKERS[name],
            prepared.spec,
            prepared.train,
            prepared.stop,
            train.Training(
                epochs=options.epochs,
                batch=options.batch,
                learning_rate=options.learning_rate,
                table_rate=options.table_rate,
            ),
            options.seed,
            prepared.content_OW,
        )
        passes = len(curve.train)
    seconds = time.perf_counter() - start_s
    ranker = TrainedRanker(
        model=GBDT if name in FORESTS else name,
        object_ids=prepared.object_ids,
        spec=prepared.spec,
        known=prepared.known,
        tables=prepared.tables,
        weights=weights,
    )
    return ranker, count * passes / seconds


def scored(
    logs: histories.Logs,
    requests: np.ndarray,
    ads_of: Callable[[int], np.ndarray],
    rankers: Mapping[str, TrainedRanker],
    prepared: Prepared,
) -> dict[str, ScoredRows]:
    """The rows of the requests with the scores of each ranker."""
    spec = prepared.spec
    popularity = rows.Popularity(
        logs, prepared.tables.collaborative, histories.train_end_us(logs), is_fresh=spec.popularity == "fresh"
    )
    examples = rows.examples(logs, requests, ads_of, spec, prepared.known, popularity, negatives=1.0, seed=0)
    parts: dict[str, list[ScoredRequest]] = {name: [] for name in rankers}
    for row in examples:
        for name, ranker in rankers.items():
            request = ScoredRequest(
                request=row.request,
                ads=row.ads,
                logit_C=ranker.logits(row.inputs)[:, 0],
                new_score_C=ranker.new_scores(row.inputs),
                label_C=row.label_CH[:, 0],
                is_new_C=row.inputs.is_new_C,
            )
            parts[name].append(request)
    return {name: score.stacked(iter(requests)) for name, requests in parts.items()}


def mean_of(models: Mapping[str, ScoredRows], name: str) -> ScoredRows:
    """The rows with the mean log-odds of the models in a name, and in the view ``new`` the mean of their scores."""
    parts = [models[part] for part in name.split("+")]
    return dataclasses.replace(
        parts[0],
        logit_N=np.mean([part.logit_N for part in parts], axis=0),
        new_score_N=np.mean([part.new_score_N for part in parts], axis=0),
    )


def figures(
    logs: histories.Logs, fitted_on: ScoredRows, scored: ScoredRows, requests: np.ndarray
) -> tuple[dict[str, float], metrics.Ratio]:
    """(figures on the requests, calibrated on the second half of the validation weeks; GAUC by household)."""
    calibration = calibrate.fit(
        fitted_on.logit_N, fitted_on.label_N, calibrate.slices(fitted_on.is_new_N), len(calibrate.SLICES)
    )
    p_N = calibration.apply(scored.logit_N, calibrate.slices(scored.is_new_N))
    user_N = logs.request_user_R[scored.request_N].astype(np.int64)
    users, which_N = np.unique(user_N, return_inverse=True)
    by_user = measure.group_auc(scored.label_N, p_N, which_N)
    loss = measure.log_losses(scored.label_N, p_N).mean()
    new = scored.is_new_N
    result = {
        "auc": measure.auc(scored.label_N, p_N),
        "auc_new": measure.auc(scored.label_N[new], p_N[new]),
        "gauc": by_user.mean,
        "gauc_visit": measure.group_auc(scored.label_N, p_N, scored.request_N).mean,
        "ne": float(measure.normalised_entropy(loss, scored.label_N.mean())),
        "ece_rel": measure.calibration_error(scored.label_N, p_N),
        "ece_rel_of_draws": measure.drawn_calibration_error(p_N),
        "sum_ratio_seen": float(p_N[~new].sum() / scored.label_N[~new].sum()),
        "sum_ratio_new": float(p_N[new].sum() / scored.label_N[new].sum()),
    }
    frame = lists.best(logs, scored, p_N, np.arange(len(logs.request_user_R)), top=20, seed=0)
    answered = requests[np.diff(logs.relevant_offsets)[requests] > 0]
    views = [retrieval.build_view(logs, np.sort(answered), name) for name in retrieval.VIEWS]
    checked = retrieval.checked_lists(frame, logs, views, source="the ranker")
    tables = retrieval.tabulate(retrieval.iterate_lists(checked), views)
    for view in views:
        measures = retrieval.measure(view, tables[view.name])
        result[f"{view.name}_r10"] = measures["recall@10"].mean
        result[f"{view.name}_gmv10"] = measures["gmv@10"].mean
    figures = {name: round(value, 4) for name, value in result.items()}
    return figures, by_user.by_user(by_user.group_G, len(users))


def less_first(gaucs: list[metrics.Ratio]) -> list[float]:
    """GAUC of the last model less that of the first, with its paired interval over households: lo, mean, hi."""
    values_BM = metrics.bootstrap([gaucs[0], gaucs[-1]], resamples=1000, seed=0)
    interval = metrics.interval(gaucs[-1].mean - gaucs[0].mean, values_BM[:, 1] - values_BM[:, 0])
    return [round(interval[name], 5) for name in ("lo", "mean", "hi")]


def milliseconds(ranker: TrainedRanker, prepared: Prepared) -> dict[str, float]:
    """Median and 99th percentile of the processor time of scoring `CANDIDATES` ads of one request, features given."""
    times = []
    for row in prepared.stop[:: max(1, len(prepared.stop) // 300)]:
        request = repeated(row.inputs, CANDIDATES)
        start_s = time.thread_time()
        ranker.logits(request)
        times.append(time.thread_time() - start_s)
    median, late = 1000 * np.quantile(times, [0.5, 0.99])
    return {"ms_1000": round(float(median), 2), "ms_1000_p99": round(float(late), 2)}


def repeated(request: RequestInputs, candidates: int) -> RequestInputs:
    """The request with its candidates repeated up to a number."""
    places = np.arange(candidates) % len(request.is_new_C)
    parts = {name: getattr(request, name)[places] for name in ("number_CF", "field_CK", "content_C", "is_new_C")}
    return dataclasses.replace(request, **parts)


if __name__ == "__main__":
    main()
