"""Logs -> a ranker: the log-odds that a user acts on a live ad.

Writes the artifact ``work/<run>/rank-train``: spec.json, the count tables, weights, importance.csv, curve.csv of a
network. Rows are the requests of the last part of training time, also those without an action, as a probability counts
them. The first half of the validation time stops the training early; `leadre rank calibrate` uses the second half.
With ``--labels bags`` training and stop read the sum of each bag of rows alone, and no importance.csv is written.

A killed training of a network resumes from ``work/<run>/.rank-train.checkpoint`` and ends with the same weights.
Several processes train one network: ``torchrun --nproc-per-node 2 -m leadre rank train ...``.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from leadre import artifact, config, progress
from leadre.errors import InputError
from leadre.rank.options import BagOptions, RowOptions

if TYPE_CHECKING:  # torch and lightgbm are imported in run, so that --help stays quick
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from leadre.rank.checkpoint import Curve
    from leadre.rank.models.gbdt import Forests
    from leadre.rank.prepare import Prepared
    from leadre.rank.processes import Processes


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre rank train``."""

    model: Literal[
        "gbdt",
        "autoint",
        "dcnv2",
        "dien",
        "din",
        "din_paper",
        "esmm",
        "finalmlp",
        "finalmlp_split",
        "gdcn",
        "hcn",
        "hstu",
        "infnet",
        "mlcc",
        "muse",
        "sdim",
        "tin",
        "two_tower",
    ] = config.option("gbdt", "the ranker: boosted trees or a network")
    training_rows: RowOptions = config.group(RowOptions())
    bags: BagOptions = config.group(BagOptions())
    epochs: int = config.option(3, "epochs of a network, over which its rates fall to zero", at_least=1)
    table_variance: float = config.option(
        0.0,
        "train a network twice, at last with the columns of each table that hold this share of its variance; 0 = once",
        at_least=0,
        at_most=1,
    )
    rounds: int = config.option(110, "most trees of gbdt: the time of a score grows with them", at_least=1)
    checkpoint_s: float = config.option(60.0, "seconds between checkpoints of a network", at_least=0)


def run(config: Config) -> None:
    """Write ``work/<run>/rank-train`` unless it is current. InputError for rows from which nothing can be learnt."""
    if config.model == "muse" and not config.training_rows.ids:
        raise InputError("--model muse: searches by the text vectors of the semantic IDs; set --ids true")
    if config.model == "esmm" and not config.training_rows.clicks:
        raise InputError("--model esmm: learns conversions as clicks and what follows them; set --clicks true")
    if config.model == "gbdt" and config.table_variance:
        raise InputError("--table-variance: trees have no tables; take a network as --model, or leave it out")
    if config.bags.labels == "bags" and (config.model == "gbdt" or config.training_rows.clicks):
        raise InputError("--labels bags: sums of one label train a network; choose one as --model, without --clicks")
    data = artifact.read(config.folder("data"), artifact.TABLES)
    codebook = artifact.read(config.folder("semid"), artifact.CODEBOOK) if config.training_rows.ids else None
    output = artifact.Output(
        folder=config.folder("rank-train"),
        kind=artifact.RANKER,
        config=config.flat(),
        seed=config.seed,
        parents=[data, codebook] if codebook else [data],
    )
    if output.skip("rank train"):
        return
    from leadre.rank import processes

    checkpoint = config.folder(".rank-train.checkpoint")
    with processes.joined() as group:
        if config.model == "gbdt" and group.count > 1:
            raise InputError("--model gbdt: trees are trained by one process; run it without torchrun")
        if group.number > 0:
            _train(config, data, codebook, group, None)  # process 0 writes the result
            return
        with output.create() as temporary:
            _train(config, data, codebook, group, temporary)
    shutil.rmtree(checkpoint, ignore_errors=True)
    progress.say(f"rank train: {config.model} -> {output.folder}")


def _train(
    config: Config,
    data: artifact.Artifact,
    codebook: artifact.Artifact | None,
    processes: Processes,
    folder: Path | None,
) -> None:
    """Prepare the rows, fit the model, and write the ranker into ``folder``."""
    from leadre.rank import dimensions, importance
    from leadre.rank.prepare import prepare
    from leadre.rank.ranker import TrainedRanker

    prepared = prepare(
        *(data, codebook, config.training_rows),
        seed=config.seed,
        threads=config.threads,
        bag_options=config.bags,
    )
    key = artifact.resume_key(config.flat(), [data, codebook] if codebook else [data])
    checkpoint = config.folder(".rank-train.checkpoint")
    weights, curve = _fit(config, prepared, checkpoint, key, processes)
    if config.table_variance:
        assert isinstance(weights, dict)
        widths = dimensions.widths(prepared.spec, weights, prepared.train, config.table_variance)
        progress.say(f"rank train: columns of the tables {widths}")
        prepared = dataclasses.replace(prepared, spec=dataclasses.replace(prepared.spec, widths=widths))
        weights, curve = _fit(config, prepared, checkpoint / "narrow", key, processes)
    if folder is None:
        return
    ranker = TrainedRanker(
        model=config.model,
        object_ids=prepared.object_ids,
        spec=prepared.spec,
        known=prepared.known,
        tables=prepared.tables,
        weights=weights,
    )
    ranker.save(folder)
    if not prepared.bags:  # the rise of the loss wants labels of rows
        importance.write(folder, ranker, prepared.stop, config.seed)
    if curve:
        curve.save(folder / "curve.csv")


def _fit(
    config: Config, prepared: Prepared, checkpoint: Path, key: str, processes: Processes
) -> tuple[Forests | dict[str, NDArray[np.float32]], Curve | None]:
    """The weights, and the losses by epoch of a network."""
    spec = prepared.spec
    if config.model == "gbdt":
        from leadre.rank.models import gbdt

        boosting = gbdt.Boosting(rounds=config.rounds)
        return gbdt.fit(prepared.train, prepared.stop, spec.numbers, boosting, config.seed, config.threads), None
    import torch

    from leadre.rank import train
    from leadre.rank.checkpoint import Checkpoint
    from leadre.rank.models.registry import RANKERS

    torch.set_num_threads(config.threads)
    ranker = RANKERS[config.model]
    training = train.Training(epochs=config.epochs, checkpoint_s=config.checkpoint_s)
    kept = Checkpoint(folder=checkpoint, key=key)
    if prepared.bags:
        from leadre.rank.proportions import learn

        return learn.fit(
            *(ranker, spec, *prepared.bags, training, learn.of_options(config.bags), config.seed, prepared.content_OW),
            checkpoint=kept,
            processes=processes,
        )
    return train.fit(
        *(ranker, spec, prepared.train, prepared.stop, training, config.seed, prepared.content_OW),
        checkpoint=kept,
        processes=processes,
    )
