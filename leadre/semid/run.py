"""Ads -> semantic IDs: embeds the text of every object, quantises it, gives each object its own code path.

Writes the artifact ``work/<run>/semid``: the codebook (codebook.safetensors, codebook.json) and its quality report
(report.md, report.json, usage.png). With ``--extend FOLDER`` nothing is fitted: the IDs of that older codebook stay as
they are, and objects it does not know get free ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from leadre import artifact, config, progress
from leadre.errors import InputError

if TYPE_CHECKING:  # NumPy and torch load in run, so that --help stays quick
    from leadre.data.histories import Logs
    from leadre.semid.codebook import Codebook
    from leadre.semid.quantiser import Floats, Quantiser


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre semid``."""

    quantiser: Literal["rkmeans", "rqvae"] = config.option("rkmeans", "how vectors become codes")
    levels: tuple[int, ...] = config.option((256, 256, 256), "codes per quantised level, first level first")
    collisions: int = config.option(64, "slots of the last level, which tells apart objects that share all others")
    encoder: str = config.option("minilm", "text encoder: minilm (packaged) or a local sentence-transformers folder")
    collaborative: float = config.option(0.0, "weight of co-occurrence in users' histories beside the text, 0 = off")
    collaborative_dim: int = config.option(64, "columns of the co-occurrence vector")
    extend: Path | None = config.option(None, "older semid artifact whose IDs stay; objects new to it are appended")


def run(config: Config) -> None:
    """Write ``work/<run>/semid``, or say that it is current. InputError for options the data cannot meet."""
    from leadre.semid import embed, report

    folder = config.folder("semid")
    parents = [artifact.read(config.folder("data"), artifact.TABLES)]
    if config.extend is not None:
        parents.append(_older(config.extend, folder))
    # the files of an encoder may change under its name
    effective = dataclasses.asdict(config) | {"encoder_hash": embed.read_recipe(config.encoder).hash}
    for older in parents[1:]:
        if older.meta["config"]["encoder_hash"] != effective["encoder_hash"]:
            was = older.meta["config"]["encoder"]
            raise InputError(f"--encoder {config.encoder}: {older.path} was made with {was}; extend it with the same")
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
    """The codebook of the data artifact `parents[0]`, extending that of `parents[1]` if there; and its rows' titles."""
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
        book = older.encode(embed.embed(texts, config.encoder), [object_ids[row] for row in new]) if new else older
    else:
        text_OD = embed.embed(logs.objects["text"].to_list(), config.encoder)
        known, late = np.flatnonzero(~logs.hidden_O), np.flatnonzero(logs.hidden_O)
        vectors_OD = _with_collaborative(text_OD, logs, config)[known]
        quantiser = _fitter(config.quantiser)(vectors_OD, config.levels, config.seed)
        known_ids = [object_ids[row] for row in known]
        book = codebooks.fit(known_ids, vectors_OD, quantiser, config.collisions, text_OD.shape[1])
        book = book.encode(text_OD[late], [object_ids[row] for row in late])  # as a new ad gets its ID: from its text
    if book.moved:
        progress.say(
            f"semid: {book.moved} objects found all {book.sizes[-1]} slots of their path taken and went to the next "
            f"nearest path; more --collisions or larger --levels keep them together"
        )
    return book, [titles.get(object_id) or object_id for object_id in book.object_ids]


def _fitter(name: str) -> Callable[[Floats, Sequence[int], int], Quantiser]:
    """fit(vectors_ND, sizes, seed) of a quantiser; only the one that is used gets imported."""
    if name == "rqvae":
        from leadre.semid import rqvae

        return rqvae.fit
    from leadre.semid import rkmeans

    return rkmeans.fit


def _with_collaborative(text_OD: Floats, logs: Logs, config: Config) -> Floats:
    """Text vectors, with the weighted collaborative columns beside them where they are switched on."""
    import numpy as np

    if config.collaborative < 0:
        raise InputError(f"--collaborative {config.collaborative}: a weight is 0 (off) or more")
    if config.collaborative == 0:
        return text_OD
    from leadre.semid import collaborative

    columns = collaborative.vectors(logs, config.collaborative_dim, config.seed)
    return np.concatenate([text_OD, np.float32(config.collaborative) * columns], axis=1)


def _older(extend: Path, folder: Path) -> artifact.Artifact:
    """The codebook to extend; it must lie elsewhere, or a second run would extend its own result."""
    if extend.resolve() == folder.resolve():
        raise InputError(f"--extend {extend}: that is the folder this run writes; give --run another name")
    return artifact.read(extend, artifact.CODEBOOK)
