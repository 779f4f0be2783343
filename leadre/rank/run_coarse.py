"""Ranker -> a coarse ranker: an order of all live ads by dot products, from which the ranker scores the first alone.

Reads ``work/<run>/rank-train`` as the final ranker, and writes ``work/<run>/rank-coarse``, a ranker with the same files
and curve.csv. Rows and features are those of the final ranker's training, and its scores on these rows are a part of
the loss (`rank/losses.py`). Scores of a coarse ranker order the ads of a request; they are no calibrated log-odds.

A killed training resumes from ``work/<run>/.rank-coarse.checkpoint`` and ends with the same weights.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from leadre import artifact, config, progress
from leadre.errors import InputError
from leadre.rank.options import RowOptions

if TYPE_CHECKING:  # torch and lightgbm are imported in run, so that --help stays quick
    from collections.abc import Sequence
    from pathlib import Path

    from leadre.rank.prepare import Prepared
    from leadre.rank.ranker import TrainedRanker
    from leadre.rank.rows import Example


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre rank coarse``."""

    model: Literal["finalmlp_split", "hcn", "two_tower"] = config.option("two_tower", "the coarse ranker")
    loss: Literal["softmax", "log"] = config.option("softmax", "over the live ads of a request, or of each row alone")
    teacher_weight: float = config.option(
        10.0, "weight of the final ranker's scores in the loss; 0 = labels alone", at_least=0
    )
    epochs: int = config.option(3, "epochs over which the rates fall to zero", at_least=1)
    checkpoint_s: float = config.option(60.0, "seconds between checkpoints", at_least=0)


def run(config: Config) -> None:
    """Write ``work/<run>/rank-coarse`` unless it is current. InputError if the ranker has other features."""
    data = artifact.read(config.folder("data"), artifact.TABLES)
    final = artifact.read(config.folder("rank-train"), artifact.RANKER)
    artifact.check_parent(final, data, "leadre rank train")
    parents = [data, final]
    codebook = None
    if final.meta["config"]["ids"]:
        codebook = artifact.read(config.folder("semid"), artifact.CODEBOOK)
        artifact.check_parent(final, codebook, "leadre rank train")
        parents.append(codebook)
    output = artifact.Output(
        folder=config.folder("rank-coarse"),
        kind=artifact.RANKER,
        config=config.flat(),
        seed=config.seed,
        parents=parents,
    )
    if output.skip("rank coarse"):
        return
    from leadre.rank import ranker

    teacher = ranker.load(final.path)
    checkpoint = config.folder(".rank-coarse.checkpoint")
    with output.create() as temporary:
        prepared = _rows(final, data, codebook, teacher, config.threads)
        _train(config, prepared, teacher, checkpoint, artifact.resume_key(config.flat(), parents), temporary)
    shutil.rmtree(checkpoint, ignore_errors=True)
    progress.say(f"rank coarse: {config.model} -> {output.folder}")


def _rows(
    final: artifact.Artifact,
    data: artifact.Artifact,
    codebook: artifact.Artifact | None,
    teacher: TrainedRanker,
    threads: int,
) -> Prepared:
    """The rows of the final ranker's training with its scores. InputError if this version has other features."""
    import numpy as np

    from leadre.rank.prepare import prepare

    recorded = final.meta["config"]
    if recorded.get("labels") == "bags":
        raise InputError(
            f"{final.path}: was trained on sums of bags; a coarse ranker needs one of rows: set --labels rows"
        )
    names = {field.name for field in dataclasses.fields(RowOptions)} & recorded.keys()
    options = dataclasses.replace(RowOptions(**{name: recorded[name] for name in names}), clicks=False)
    prepared = prepare(data, codebook, options, seed=final.meta["seed"], threads=threads)
    if dataclasses.replace(prepared.spec, labels=teacher.spec.labels, widths=teacher.spec.widths) != teacher.spec:
        raise InputError(f"{final.path}: reads other features than this version has; run `leadre rank train` again")

    def scored(rows: Sequence[Example]) -> list[Example]:
        scores = [teacher.logits(row.inputs)[:, 0].astype(np.float32) for row in rows]
        return [dataclasses.replace(row, teacher_C=score_C) for row, score_C in zip(rows, scores, strict=True)]

    return dataclasses.replace(prepared, train=scored(prepared.train), stop=scored(prepared.stop))


def _train(
    config: Config, prepared: Prepared, teacher: TrainedRanker, checkpoint: Path, key: str, folder: Path
) -> None:
    """Fit the model and write it into ``folder``."""
    import torch

    from leadre.rank import train
    from leadre.rank.checkpoint import Checkpoint
    from leadre.rank.losses import LiveSetLoss
    from leadre.rank.models.registry import RANKERS

    torch.set_num_threads(config.threads)
    weights, curve = train.fit(
        RANKERS[config.model],
        prepared.spec,
        prepared.train,
        prepared.stop,
        train.Training(epochs=config.epochs, checkpoint_s=config.checkpoint_s),
        config.seed,
        loss=LiveSetLoss(
            negatives=prepared.spec.negatives, is_softmax=config.loss == "softmax", teacher_weight=config.teacher_weight
        ),
        checkpoint=Checkpoint(folder=checkpoint, key=key),
    )
    coarse = dataclasses.replace(
        teacher, model=config.model, spec=prepared.spec, known=prepared.known, tables=prepared.tables, weights=weights
    )
    coarse.save(folder)
    curve.save(folder / "curve.csv")
