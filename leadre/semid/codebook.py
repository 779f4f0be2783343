"""Semantic IDs of objects: the codes of the quantiser, and a last level that makes every ID unique.

Two objects that share all quantised codes take slots 0, 1, 2, ... of the last level, in the order of their IDs. A new
object takes the first slot that is free; existing rows never change, so a language model trained on them remains valid.
If all slots of a prefix are taken, the object gets the next nearest prefix with a free slot.

Letters: O objects, N new objects, L levels (the last one resolves collisions), Q = L - 1 quantised levels, D width.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from leadre.artifact import Artifact
from leadre.errors import InputError
from leadre.semid import collaborative
from leadre.semid import quantiser as quantisers
from leadre.semid.quantiser import Codes, Floats, Quantiser

ARRAYS, FACTS = "codebook.safetensors", "codebook.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Codebook:
    """Semantic IDs of O objects.

    codes_OL        int32; rows are distinct paths; the last level resolves collisions
    sizes           codes per level, L of them
    object_ids      O of them; row o belongs to object_ids[o]
    embeddings_OD   float32, what was quantised: text first, then `D - text_width` collaborative columns, if any
    moved           objects whose nearest prefix was full, so that they have another one
    """

    codes_OL: Codes
    sizes: tuple[int, ...]
    object_ids: tuple[str, ...]
    embeddings_OD: Floats
    quantiser: Quantiser
    text_width: int
    moved: int = 0

    def __post_init__(self) -> None:
        assert self.codes_OL.shape == (len(self.object_ids), len(self.sizes)), f"codes of shape {self.codes_OL.shape}"
        assert self.sizes[:-1] == self.quantiser.sizes, f"sizes {self.sizes} against {self.quantiser.sizes}"

    @property
    def centroids(self) -> tuple[Floats, ...]:
        """Centroids of the quantised levels, float32 [sizes[l], Z] each; for RQ-VAE Z is the width of its latent."""
        return self.quantiser.centroids

    @cached_property
    def version(self) -> str:
        """Hash of codes, object IDs and quantiser. An added object changes it; `quantiser.version` stays."""
        digest = hashlib.sha256(json.dumps([self.quantiser.version, self.sizes, self.object_ids]).encode())
        digest.update(np.ascontiguousarray(self.codes_OL).tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def row_of(self) -> Mapping[str, int]:
        """The row of each object ID."""
        return {object_id: row for row, object_id in enumerate(self.object_ids)}

    def rows(self, object_ids: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Rows of these objects, int64, in their order; InputError if one has no ID yet."""
        missing = [object_id for object_id in object_ids if object_id not in self.row_of]
        if missing:
            raise InputError(
                f"{len(missing)} objects have no semantic ID, {missing[0]!r} among them; "
                f"add them with Codebook.encode or run `leadre semid` again"
            )
        return np.array([self.row_of[object_id] for object_id in object_ids], dtype=np.int64)

    def encode(self, vectors_ND: Floats, ids: Sequence[str]) -> Codebook:
        """A codebook with the new objects `ids` appended, in their order; existing rows do not change.

        `vectors_ND` float32 [N, D], or only the text columns: those of an object without events are then predicted.
        An object that already has an ID keeps it, even if its text has changed. InputError for a duplicate ID, or if
        every ID is taken.
        """
        vectors = self._widen(np.asarray(vectors_ND, dtype=np.float32))
        assert len(vectors) == len(ids), f"{len(vectors)} vectors for {len(ids)} objects"
        new = [position for position, object_id in enumerate(ids) if object_id not in self.row_of]
        added = tuple(ids[position] for position in new)
        _check_distinct(added)
        if not added:
            return self
        codes, moved = assign(self.complete(vectors[new]), self.quantiser, self.sizes[-1], taken_OL=self.codes_OL)
        return replace(
            self,
            codes_OL=np.concatenate([self.codes_OL, codes]),
            object_ids=self.object_ids + added,
            embeddings_OD=np.concatenate([self.embeddings_OD, vectors[new]]),
            moved=self.moved + moved,
        )

    def _widen(self, vectors_ND: Floats) -> Floats:
        """Text columns only: the collaborative ones are zero."""
        width = self.embeddings_OD.shape[1]
        assert vectors_ND.ndim == 2 and vectors_ND.shape[1] in (self.text_width, width), (
            f"vectors of shape {vectors_ND.shape}; wants width {self.text_width} (text) or {width}"
        )
        return np.pad(vectors_ND, ((0, 0), (0, width - vectors_ND.shape[1])))

    def complete(self, vectors_ND: Floats) -> Floats:
        """Vectors to quantise, float32 [N, D]: collaborative columns of zeros, or none, are predicted from the text."""
        vectors = self._widen(vectors_ND)
        text_OT, columns_OW = np.split(self.embeddings_OD, [self.text_width], axis=1)
        missing = np.flatnonzero(~vectors[:, self.text_width :].any(axis=1))
        if len(missing) and columns_OW.shape[1]:
            text_NT = vectors[missing, : self.text_width]
            vectors[missing, self.text_width :] = collaborative.predict(text_NT, text_OT, columns_OW)
        return vectors

    def save(self, folder: Path) -> None:
        """Write the two files of the codebook into `folder`."""
        arrays = {"codes_OL": self.codes_OL, "embeddings_OD": self.embeddings_OD, **self.quantiser.arrays()}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / ARRAYS)
        facts = {"version": self.version, "sizes": self.sizes, "text_width": self.text_width, "moved": self.moved}
        text = json.dumps(facts | {"object_ids": self.object_ids}, ensure_ascii=False, indent=0)
        (folder / FACTS).write_text(text + "\n", encoding="utf-8")


def fit(object_ids: Sequence[str], vectors_OD: Floats, quantiser: Quantiser, slots: int, text_width: int) -> Codebook:
    """The first codebook of a catalogue: rows in the order of `object_ids`, slots assigned in ascending object ID.

    `slots` is the size of the last level. InputError for a duplicate ID, or if the slots cannot hold the objects.
    """
    _check_distinct(object_ids)
    if slots < 1:
        raise InputError(f"--collisions {slots}: wants at least one slot")
    vectors = np.asarray(vectors_OD, dtype=np.float32)
    order = np.array(sorted(range(len(object_ids)), key=lambda position: object_ids[position]), dtype=np.int64)
    none_yet = np.zeros((0, len(quantiser.sizes) + 1), dtype=np.int32)
    sorted_codes, moved = assign(vectors[order], quantiser, slots, taken_OL=none_yet)
    codes_OL = np.empty_like(sorted_codes)
    codes_OL[order] = sorted_codes
    return Codebook(
        codes_OL=codes_OL,
        sizes=(*quantiser.sizes, slots),
        object_ids=tuple(object_ids),
        embeddings_OD=vectors,
        quantiser=quantiser,
        text_width=text_width,
        moved=moved,
    )


def load(artifact: Artifact) -> Codebook:
    """The codebook of a `semid` artifact."""
    named = load_file(artifact.path / ARRAYS)
    facts = json.loads((artifact.path / FACTS).read_text(encoding="utf-8"))
    codebook = Codebook(
        codes_OL=named["codes_OL"],
        sizes=tuple(facts["sizes"]),
        object_ids=tuple(facts["object_ids"]),
        embeddings_OD=named["embeddings_OD"],
        quantiser=quantisers.from_arrays(named),
        text_width=facts["text_width"],
        moved=facts["moved"],
    )
    assert codebook.version == facts["version"], f"{artifact.path}: version {codebook.version} of {facts['version']}"
    return codebook


def shuffled(codebook: Codebook, seed: int) -> Codebook:
    """The same IDs permuted among the objects by ``seed``: a control experiment without their meaning."""
    order = np.random.default_rng(seed).permutation(len(codebook.codes_OL))
    return replace(codebook, codes_OL=codebook.codes_OL[order])


def assign(vectors_ND: Floats, quantiser: Quantiser, slots: int, *, taken_OL: Codes) -> tuple[Codes, int]:
    """Paths int32 [N, L] beside those in `taken_OL`, and the number of objects that are not on their nearest prefix.

    First each object whose prefix has room takes the next slot there, in row order; then the others take, one by one,
    the nearest prefix with room (see `_nearest_with_room`). InputError if none has.
    """
    prefixes_NQ = quantiser.encode(vectors_ND)
    count: dict[tuple[int, ...], int] = {}
    for path in taken_OL.tolist():
        prefix = tuple(path[:-1])
        count[prefix] = max(count.get(prefix, 0), path[-1] + 1)
    codes = np.concatenate([prefixes_NQ, np.zeros((len(prefixes_NQ), 1), dtype=np.int32)], axis=1)
    displaced = []
    for row, path in enumerate(prefixes_NQ.tolist()):
        prefix = tuple(path)
        codes[row, -1] = count.get(prefix, 0)
        if codes[row, -1] >= slots:
            displaced.append(row)
        else:
            count[prefix] = int(codes[row, -1]) + 1
    for row in displaced:
        residual_1Z = quantiser.residuals(vectors_ND[row : row + 1], prefixes_NQ[row : row + 1, :0])
        room = _nearest_with_room((), residual_1Z, quantiser, slots, count)
        if room is None:
            raise InputError(_no_room(vectors_ND, quantiser.sizes, slots, len(taken_OL)))
        codes[row] = (*room, count.get(room, 0))
        count[room] = count.get(room, 0) + 1
    return codes, len(displaced)


def _no_room(vectors_ND: Floats, sizes: Sequence[int], slots: int, taken: int) -> str:
    """The message for IDs that are all taken: larger levels are no cure for objects that nothing distinguishes."""
    size = " x ".join(map(str, (*sizes, slots)))
    distinct = len(np.unique(vectors_ND, axis=0))
    if sizes[0] < distinct:
        return f"all {size} IDs are taken; give --collisions more than {slots}, or larger --levels"
    needed = -(-(taken + len(vectors_ND)) // math.prod(sizes))
    return (
        f"all {size} IDs are taken: {len(vectors_ND):,} objects have {distinct:,} different texts, so larger levels do"
        f" not separate them; give them titles that differ (features are words as well), or --collisions {needed}"
    )


def _nearest_with_room(
    before: tuple[int, ...],
    residual_1Z: np.ndarray[Any, np.dtype[np.float64]],
    quantiser: Quantiser,
    slots: int,
    count: Mapping[tuple[int, ...], int],
) -> tuple[int, ...] | None:
    """The first prefix with a free slot, nearest codes first, the last level changed before the one above it.

    `residual_1Z` is the residual after the codes `before`. The search visits only full prefixes, which are few.
    """
    level = len(before)
    if level == len(quantiser.centroids):
        return before if count.get(before, 0) < slots else None
    centroids = quantiser.centroids[level]
    for code in quantisers.distances(residual_1Z, centroids)[0].argsort(kind="stable").tolist():
        prefix = _nearest_with_room((*before, code), residual_1Z - centroids[code], quantiser, slots, count)
        if prefix is not None:
            return prefix
    return None


def _check_distinct(object_ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for object_id in object_ids:
        if object_id in seen:
            raise InputError(f"object {object_id!r} is there twice; an object has one semantic ID")
        seen.add(object_id)
