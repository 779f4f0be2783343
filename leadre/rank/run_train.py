"""Logs -> a ranker: the log-odds that a user acts on a live ad.

Writes the artifact ``work/<run>/rank-train``: spec.json, the count tables, weights, curve.csv of a network. Rows are
the requests of the last part of training time, also those without an action, as a probability counts them. The first
half of the validation time stops the training early; `leadre rank calibrate` uses the second half.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from leadre import artifact, config, progress
from leadre.errors import InputError
from leadre.rank.options import RowOptions

if TYPE_CHECKING:  # torch and lightgbm are imported in run, so that --help stays quick
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from leadre.rank.models.gbdt import Forests
    from leadre.rank.prepare import Prepared

RANKER = artifact.Kind("ranker", 2)


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre rank train``."""

    model: Literal["gbdt", "dcnv2", "din", "muse", "tin"] = config.option(
        "gbdt", "the ranker: boosted trees or a network"
    )
    training_rows: RowOptions = config.group(RowOptions())
    epochs: int = config.option(8, "most epochs of a network", at_least=1)
    rounds: int = config.option(400, "most trees of gbdt", at_least=1)


def run(config: Config) -> None:
    """Write ``work/<run>/rank-train`` unless it is current. InputError for rows from which nothing can be learnt."""
    if config.model == "muse" and not config.training_rows.ids:
        raise InputError("--model muse: searches by the text vectors of the semantic IDs; set --ids true")
    data = artifact.read(config.folder("data"), artifact.TABLES)
    codebook = artifact.read(config.folder("semid"), artifact.CODEBOOK) if config.training_rows.ids else None
    output = artifact.Output(
        folder=config.folder("rank-train"),
        kind=RANKER,
        config=config.flat(),
        seed=config.seed,
        parents=[data, codebook] if codebook else [data],
    )
    if output.skip("rank train"):
        return
    from leadre.rank.prepare import prepare
    from leadre.rank.ranker import TrainedRanker

    with output.create() as temporary:
        prepared = prepare(data, codebook, config.training_rows, seed=config.seed, threads=config.threads)
        ranker = TrainedRanker(
            model=config.model,
            object_ids=prepared.object_ids,
            spec=prepared.spec,
            known=prepared.known,
            tables=prepared.tables,
            weights=_fit(config, prepared, temporary),
        )
        ranker.save(temporary)
    progress.say(f"rank train: {config.model} -> {output.folder}")


def _fit(config: Config, prepared: Prepared, folder: Path) -> Forests | dict[str, NDArray[np.float32]]:
    """The weights. Writes curve.csv of a network."""
    from leadre.rank import train
    from leadre.rank.models import gbdt
    from leadre.rank.models.registry import RANKERS
    from leadre.rank.ranker import GBDT

    spec = prepared.spec
    if config.model == GBDT:
        boosting = gbdt.Boosting(rounds=config.rounds)
        return gbdt.fit(prepared.train, prepared.stop, spec.numbers, boosting, config.seed, config.threads)
    ranker = RANKERS[config.model]
    training = train.Training(epochs=config.epochs)
    weights, curve = train.fit(ranker, spec, prepared.train, prepared.stop, training, config.seed, prepared.content_OW)
    with (folder / "curve.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("epoch", "train_loss", "valid_loss"))
        writer.writerows((n, *losses) for n, losses in enumerate(zip(curve.train, curve.valid, strict=True), 1))
    return weights
