"""DIN and DCNv2 against those of FuxiCTR: AUC, speed of training, time of scoring, on the same rows and sizes.

FuxiCTR runs in an environment of its own, work/fuxictr/venv, which the first run makes. Both read the numbers, the
fields of the candidate, user and context, and the last 50 ads of the history. Sizes are those of
leadre/rank/models/shared.py: width of each embedding, layers 128 and 64, 16 hidden units of the attention, three cross
layers. In FuxiCTR a number is a value within -1 and 1, and one of ten bins, so the width is equal too. Its
regularizers are off. Both see the same batches in the same order for the same epochs, the best on the rows of the early
stop counts, and both compute on one thread. FuxiCTR's `dcnv2` has full matrices, its default, and `dcnv2_low_rank` the
rank of ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rank import CANDIDATES, CONFIG, repeated

from leadre import artifact
from leadre.__main__ import main as leadre
from leadre.data import histories
from leadre.data.histories import VALID, train_end_us
from leadre.rank import measure, rows, train
from leadre.rank.inputs import collate
from leadre.rank.layers import MAX_DEVIATION
from leadre.rank.models.registry import RANKERS
from leadre.rank.models.shared import fit_numbers
from leadre.rank.options import STOP_SHARE, RowOptions
from leadre.rank.prepare import Prepared, prepare
from leadre.rank.ranker import TrainedRanker
from leadre.rank.rows import Example

FOLDER = Path("work/fuxictr")
PACKAGES = ("fuxictr==2.3.10", "torch==2.13.0")
MODELS = ("din", "dcnv2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4000, help="training requests")
    parser.add_argument("--scored", type=int, default=1000, help="requests of the validation weeks to score")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=train.Training().learning_rate, help="of ours")
    parser.add_argument("--table-rate", type=float, default=train.Training().table_rate, help="of our tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    assert leadre(["data", "--config", str(CONFIG)]) == 0
    data = artifact.read(Path("work/rank/data"), artifact.TABLES)
    prepared = prepare(data, None, RowOptions(requests=options.requests), seed=0, threads=1)
    prepared = dataclasses.replace(
        prepared, spec=dataclasses.replace(prepared.spec, sequences=prepared.spec.sequences[:1])
    )
    scored = late_rows(data, prepared, options.scored)
    training = train.Training(
        epochs=options.epochs,
        patience=options.epochs,
        learning_rate=options.learning_rate,
        table_rate=options.table_rate,
    )
    write_rows(prepared, scored, training)
    subprocess.run([environment(), "bench/rivals/fuxictr_models.py", str(FOLDER), str(options.epochs)], check=True)
    theirs = dict(np.load(FOLDER / "scores.npz", allow_pickle=False))
    times = json.loads((FOLDER / "times.json").read_text())
    label_N = np.concatenate([row.label_CH[:, 0] for row in scored])
    user_N = users_of(data, scored)
    models: dict[str, dict[str, float]] = {}
    for name, logit_N in theirs.items():
        models[f"fuxictr.{name}"] = order(label_N, logit_N, user_N) | times[name]
    for name in MODELS:
        models[f"leadre.{name}"] = ours(name, prepared, scored, training, label_N, user_N)
    for name, figures in models.items():
        sys.stdout.write(f"{name:24} {figures}\n")
    claim = {"bench": "fuxictr", **vars(options), "rows": len(label_N), "models": models}
    sys.stdout.write(json.dumps(claim) + "\n")


def late_rows(data: artifact.Artifact, prepared: Prepared, count: int) -> list[Example]:
    """All live ads of some requests of the second half of the validation weeks."""
    logs = histories.load(data, empty=True)
    requests = rows.drawn(rows.period(logs, VALID, STOP_SHARE, 1), count, 0)
    popularity = rows.Popularity(logs, prepared.tables.collaborative, train_end_us(logs), is_fresh=False)
    ads_of = rows.candidates(data, logs, "live", empty=True)
    of = rows.examples(logs, requests, ads_of, prepared.spec, prepared.known, popularity, negatives=1.0, seed=0)
    return list(of)


def users_of(data: artifact.Artifact, scored: Sequence[Example]) -> np.ndarray:
    """The user of each row."""
    logs = histories.load(data, empty=True)
    return np.concatenate([np.full(len(row.ads), logs.request_user_R[row.request], np.int64) for row in scored])


def environment() -> str:
    """The Python of FuxiCTR's environment, which is made if it is missing."""
    folder = FOLDER / "venv"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (folder / "complete").touch()
    return str(python)


def write_rows(prepared: Prepared, scored: Sequence[Example], training: train.Training) -> None:
    """Write the rows as plain arrays, and the sizes of the tables."""
    spec = prepared.spec
    fixed = fit_numbers(np.concatenate([row.inputs.number_CF for row in prepared.train]))
    order_ER = [np.random.default_rng([0, epoch]).permutation(len(prepared.train)) for epoch in range(training.epochs)]
    arrays: dict[str, np.ndarray] = {"order_ER": np.stack(order_ER)}
    for part, examples in (("train", prepared.train), ("stop", prepared.stop), ("score", scored)):
        batch = collate([dataclasses.replace(row.inputs, number_CF=row.inputs.number_CF[:0]) for row in examples])
        number_NF = np.concatenate([row.inputs.number_CF for row in examples])
        sequence = batch.sequences[spec.sequences[0].name]
        arrays |= {
            f"{part}_label_N": np.concatenate([row.label_CH[:, 0] for row in examples]),
            f"{part}_request_N": np.repeat(np.arange(len(examples)), [len(row.ads) for row in examples]),
            f"{part}_value_NF": (number_NF - fixed["fixed.centre"]) / fixed["fixed.scale"],
            f"{part}_bin_NF": bins(number_NF, fixed["fixed.low"]),
            f"{part}_user_RP": batch.user_RP,
            f"{part}_field_NK": np.concatenate([row.inputs.field_CK for row in examples]),
            f"{part}_event_RTK": sequence.field_RTK,
            f"{part}_mask_RT": sequence.mask_RT,
        }
        arrays[f"{part}_value_NF"] = arrays[f"{part}_value_NF"].clip(-MAX_DEVIATION, MAX_DEVIATION) / MAX_DEVIATION
    sizes = {
        "numbers": dict.fromkeys(spec.numbers, fixed["fixed.low"].shape[1] + 1),
        "user": {name: spec.tables[name] for name in spec.user_tables},
        "fields": {name: spec.tables[name] for name in spec.fields},
        "batch": {"requests": training.batch},
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    np.savez(FOLDER / "rows.npz", **arrays)
    (FOLDER / "sizes.json").write_text(json.dumps(sizes))


def bins(number_NF: np.ndarray, low_FB: np.ndarray) -> np.ndarray:
    """The bin of each number, 0 below the first bound, [N, F]."""
    columns = [
        np.searchsorted(low_B, number_N, side="right") for low_B, number_N in zip(low_FB, number_NF.T, strict=True)
    ]
    return np.stack(columns, axis=1)


def ours(
    name: str,
    prepared: Prepared,
    scored: Sequence[Example],
    training: train.Training,
    label_N: np.ndarray,
    user_N: np.ndarray,
) -> dict[str, float]:
    """Figures of a ranker of LEADRE; the time of training includes batches and the early stop."""
    start_s = time.thread_time()
    weights, curve = train.fit(RANKERS[name], prepared.spec, prepared.train, prepared.stop, training, 0)
    seconds = time.thread_time() - start_s
    ranker = TrainedRanker(
        model=name,
        object_ids=prepared.object_ids,
        spec=prepared.spec,
        known=prepared.known,
        tables=prepared.tables,
        weights=weights,
    )
    logit_N = np.concatenate([ranker.logits(row.inputs)[:, 0] for row in scored])
    times = []
    for row in scored[:: max(1, len(scored) // 60)]:
        request = repeated(row.inputs, CANDIDATES)
        scored_s = time.thread_time()
        ranker.logits(request)
        times.append(time.thread_time() - scored_s)
    trained = sum(len(row.ads) for row in prepared.train) * len(curve.train)
    speed = {"train_rows_per_s": round(trained / seconds), "ms_1000": round(1000 * float(np.median(times)), 2)}
    return order(label_N, logit_N, user_N) | speed


def order(label_N: np.ndarray, logit_N: np.ndarray, user_N: np.ndarray) -> dict[str, Any]:
    """AUC, and GAUC by user."""
    assert np.isfinite(logit_N).all()
    return {
        "auc": round(measure.auc(label_N, logit_N), 4),
        "gauc": round(measure.group_auc(label_N, logit_N, user_N).mean, 4),
    }


if __name__ == "__main__":
    main()
