"""Rankers on the logs of the demo: order, calibration, speed. Claims are in bench/RESULTS.md.

All models get the same rows and one feature pass. Choose on the default, the second half of the validation weeks;
`--split test` reads the test weeks. `--users 300 --popularity fresh` are the visits and counts of a known sketch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from leadre import artifact
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

CONFIG = Path(__file__).parents[1] / "configs" / "rank.toml"
CANDIDATES = 1000


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
    models: dict[str, Any] = {}
    for name in options.models.split(","):
        ranker, rows_per_s = trained(name, prepared)
        models[name] = figures(logs, ranker, late, requests, data, options) | {
            "train_rows_per_s": round(rows_per_s),
            "ms_1000": round(milliseconds(ranker, prepared), 2),
        }
        sys.stdout.write(f"{name:8} {models[name]}\n")
    claim = {"bench": "rank", "split": options.split, "popularity": options.popularity, "models": models}
    sys.stdout.write(json.dumps(claim) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--requests", type=int, default=0, help="training requests; 0 = all")
    parser.add_argument("--split", choices=("valid", "test"), default="valid")
    parser.add_argument("--users", type=int, default=0, help="users of the split; 0 = all")
    parser.add_argument("--popularity", choices=("frozen", "fresh"), default="frozen")
    parser.add_argument("--empty", action="store_true", help="visits without a conversion are rows too")
    return parser.parse_args()


def trained(name: str, prepared: Prepared) -> tuple[TrainedRanker, float]:
    """(the ranker, rows a second of all its epochs or trees)."""
    count = sum(len(row.ads) for row in prepared.train)
    start_s = time.perf_counter()
    if name == GBDT:
        weights = gbdt.fit(prepared.train, prepared.stop, prepared.spec.numbers, gbdt.Boosting(), 0, 1)
        passes = 1
    else:
        weights, curve = train.fit(
            RANKERS[name], prepared.spec, prepared.train, prepared.stop, train.Training(), 0, prepared.content_OW
        )
        passes = len(curve.train)
    seconds = time.perf_counter() - start_s
    ranker = TrainedRanker(
        model=name,
        object_ids=prepared.object_ids,
        spec=prepared.spec,
        known=prepared.known,
        tables=prepared.tables,
        weights=weights,
    )
    return ranker, count * passes / seconds


def figures(
    logs: histories.Logs,
    ranker: TrainedRanker,
    late: np.ndarray,
    requests: np.ndarray,
    data: artifact.Artifact,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Figures on the requests, calibrated on the second half of the validation weeks."""
    ads_of = rows.candidates(data, logs, ranker.spec.rows, empty=options.empty)
    fitted_on = score.stacked(score.score(logs, late, ads_of, ranker))
    scored = fitted_on if np.array_equal(late, requests) else score.stacked(score.score(logs, requests, ads_of, ranker))
    calibration = calibrate.fit(
        fitted_on.logit_N, fitted_on.label_N, calibrate.slices(fitted_on.is_new_N), len(calibrate.SLICES)
    )
    p_N = calibration.apply(scored.logit_N, calibrate.slices(scored.is_new_N))
    user_N = logs.request_user_R[scored.request_N].astype(np.int64)
    loss = measure.log_losses(scored.label_N, p_N).mean()
    new = scored.is_new_N
    result = {
        "auc": measure.auc(scored.label_N, p_N),
        "auc_new": measure.auc(scored.label_N[new], p_N[new]),
        "gauc": measure.group_auc(scored.label_N, p_N, user_N).mean,
        "gauc_visit": measure.group_auc(scored.label_N, p_N, scored.request_N).mean,
        "ne": float(measure.normalised_entropy(loss, scored.label_N.mean())),
        "ece_rel": measure.calibration_error(scored.label_N, p_N),
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
    return {name: round(value, 4) for name, value in result.items()}


def milliseconds(ranker: TrainedRanker, prepared: Prepared) -> float:
    """Median time of scoring `CANDIDATES` ads of one request, features given, over requests of the early stop."""
    times = []
    for row in prepared.stop[:: max(1, len(prepared.stop) // 50)]:
        request = repeated(row.inputs, CANDIDATES)
        start_s = time.perf_counter()
        ranker.logits(request)
        times.append(time.perf_counter() - start_s)
    return 1000 * float(np.median(times))


def repeated(request: RequestInputs, candidates: int) -> RequestInputs:
    """The request with its candidates repeated up to a number."""
    places = np.arange(candidates) % len(request.is_new_C)
    parts = {name: getattr(request, name)[places] for name in ("number_CF", "field_CK", "content_C", "is_new_C")}
    return dataclasses.replace(request, **parts)


if __name__ == "__main__":
    main()
