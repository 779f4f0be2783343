"""Ads -> semantic IDs: embeds the text of every object, quantises it and assigns each object its own code path.

Writes the artifact ``work/<run>/semid``: the codebook (codebook.safetensors, codebook.json) and its quality report
(report.md, report.json, usage.png). With ``--extend FOLDER`` nothing is fitted: the objects of that older codebook keep
their IDs, and objects new to it get free ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from leadre import artifact, config, progress
from leadre.errors import InputError

if TYPE_CHECKING:  # NumPy and torch are imported in run, so that --help stays quick
    from leadre.data.histories import Logs
    from leadre.semid.codebook import Codebook
    from leadre.semid.quantiser import Floats, Quantiser


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre semid``."""

    quantiser: Literal["rkmeans", "rqvae"] = config.option("rkmeans", "method that converts vectors to codes")
    levels: tuple[int, ...] = config.option((256, 256, 256), "codes per quantised level, first level first", at_least=1)
    collisions: int = config.option(
        64, "slots of the last level, which separates objects that share all other codes", at_least=1
    )
    encoder: str = config.option("minilm", "text encoder: minilm (packaged) or a local sentence-transformers folder")
    collaborative: float = config.option(
        0.0, "weight of co-occurrence in users' histories beside the text, 0 = off", at_least=0
    )
    collaborative_dim: int = config.option(64, "columns of the co-occurrence vector", at_least=1)
    extend: Path | None = config.option(None, "older semid artifact to keep the IDs of; new objects are appended")


def run(config: Config) -> None:
    """Write ``work/<run>/semid`` unless it is current. Raises InputError for options that the data cannot meet."""
    from leadre.semid import embed, report

    folder = config.folder("semid")
    parents = [artifact.read(config.folder("data"), artifact.TABLES)]
    if config.extend is not None:
        parents.append(_older(config.extend, folder))
    # the hash, since the files of an encoder may change under its name
    effective = config.flat() | {"encoder_hash": embed.read_recipe(config.encoder).hash}
    for older in parents[1:]:
        if older.meta["config"]["encoder_hash"] != effective["encoder_hash"]:
            encoder = older.meta["config"]["encoder"]
            raise InputError(
                f"--encoder {config.encoder}: {older.path} was made with {encoder}; extend it with the same encoder"
            )
    output = artifact.Output(folder=folder, kind=artifact.CODEBOOK, config=effective, seed=config.seed, parents=parents)
    if output.skip("semid"):
        return
    with output.create() as temporary:
        codebook, titles = make(config, parents)
        codebook.save(temporary)
        facts = report.write(temporary, codebook, titles, config.seed)
    last = facts["levels"][-1]
    used = ", ".join(f"{level['codes_used']} of {level['size']}" for level in facts["levels"])
    progress.say(
        f"semid: {facts['objects']:,} objects in {folder}; codes used {used}; "
        f"{last['sharing_share']:.1%} shared their path before the last level; see {folder / 'report.md'}"
    )


def make(config: Config, parents: Sequence[artifact.Artifact]) -> tuple[Codebook, list[str]]:
    """(codebook of the data artifact `parents[0]`, which extends `parents[1]` if present; titles of its rows)."""
    import numpy as np
    import torch

    from leadre.data import histories
    from leadre.semid import codebook as codebooks
    from leadre.semid import embed

    if config.threads:
        torch.set_num_threads(config.threads)
    logs = histories.load(parents[0])
    object_ids = logs.objects["object_id"].to_list()
    titles = dict(zip(object_ids, logs.objects["title"].to_list(), strict=True))
    if len(parents) > 1:
        older = codebooks.load(parents[1])
        new = [row for row, object_id in enumerate(object_ids) if object_id not in older.row_of]
        texts = logs.objects["text"].gather(new).to_list()
        progress.say(f"semid: {len(new)} objects are new to {parents[1].path}, {len(older.object_ids)} keep their IDs")
        codebook = older.encode(embed.embed(texts, config.encoder), [object_ids[row] for row in new]) if new else older
    else:
        text_OD = embed.embed(logs.objects["text"].to_list(), config.encoder)
        known = np.flatnonzero(~logs.hidden_O)
        late = np.flatnonzero(logs.hidden_O)
        vectors_OD = _with_collaborative(text_OD, logs, config)[known]
        quantiser = _fitter(config.quantiser)(vectors_OD, config.levels, config.seed)
        known_ids = [object_ids[row] for row in known]
        codebook = codebooks.fit(known_ids, vectors_OD, quantiser, config.collisions, text_OD.shape[1])
        codebook = codebook.encode(
            text_OD[late], [object_ids[row] for row in late]
        )  # from the text alone, as for a new ad
    if codebook.moved:
        progress.say(
            f"semid: {codebook.moved} objects were moved to the next nearest path, since all {codebook.sizes[-1]} "
            f"slots of theirs were taken; more --collisions or larger --levels keep them together"
        )
    return codebook, [titles.get(object_id) or object_id for object_id in codebook.object_ids]


def _fitter(name: str) -> Callable[[Floats, Sequence[int], int], Quantiser]:
    """The function fit(vectors_ND, sizes, seed) of a quantiser; only the selected one is imported."""
    if name == "rqvae":
        from leadre.semid import rqvae

        return rqvae.fit
    from leadre.semid import rkmeans

    return rkmeans.fit


def _with_collaborative(text_OD: Floats, logs: Logs, config: Config) -> Floats:
    """Text vectors, with the weighted collaborative columns beside them if they are switched on."""
    import numpy as np

    if config.collaborative == 0:
        return text_OD
    from leadre.semid import collaborative

    columns = collaborative.vectors(logs, config.collaborative_dim, config.seed)
    return np.concatenate([text_OD, np.float32(config.collaborative) * columns], axis=1)


def _older(extend: Path, folder: Path) -> artifact.Artifact:
    """The codebook to extend. It must be in another folder, or a second run would extend its own result."""
    if extend.resolve() == folder.resolve():
        raise InputError(f"--extend {extend}: is the folder that this run writes; choose another --run")
    return artifact.read(extend, artifact.CODEBOOK)
