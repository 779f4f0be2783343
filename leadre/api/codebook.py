"""The codebook from Python: semantic IDs of objects, objects under a prefix, IDs for new objects from their text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leadre import artifact, extras
from leadre.data import text
from leadre.errors import InputError

if TYPE_CHECKING:  # its packages are in extras, which `load` does not need
    from leadre.semid import codebook as codebooks


@dataclass(frozen=True, kw_only=True)
class NewObject:
    """The text of an object that has no semantic ID yet; the fields have the names of the columns of the ads table."""

    object_id: str
    title: str
    brand: str | None = None
    category_path: Sequence[str] = ()
    description: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Codebook:
    """Semantic IDs of objects. An ID is a tuple of codes, coarse to fine; similar objects share a prefix.

    ``sizes``: codes per level. ``version``: a hash of the IDs; `extend` changes it.
    """

    ids: codebooks.Codebook = field(repr=False)
    encoder: str = field(repr=False)
    encoder_hash: str = field(repr=False)

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.ids.sizes

    @property
    def version(self) -> str:
        return self.ids.version

    def __len__(self) -> int:
        return len(self.ids.object_ids)

    def __contains__(self, object_id: object) -> bool:
        return object_id in self.ids.row_of

    def __repr__(self) -> str:
        return f"Codebook({len(self):,} objects, codes per level {' x '.join(map(str, self.sizes))}, {self.version})"

    def semantic_id(self, object_id: str) -> tuple[int, ...]:
        """The codes of an object. Raises InputError if it has none."""
        if object_id not in self:
            raise InputError(
                f"object {object_id!r} has no semantic ID; Codebook.extend computes it from text, "
                f"`leadre semid --extend` for a run"
            )
        return tuple(self.ids.codes_OL[self.ids.row_of[object_id]].tolist())

    def under(self, prefix: Sequence[int]) -> list[str]:
        """IDs of the objects whose semantic ID begins with ``prefix``, in the order of their semantic IDs.

        Raises InputError for a prefix that is no beginning of an ID.
        """
        codes = list(prefix)
        sizes = self.sizes[: len(codes)]
        if len(codes) > len(self.sizes) or not all(0 <= code < size for code, size in zip(codes, sizes, strict=True)):
            raise InputError(
                f"prefix {tuple(codes)}: must be at most {len(self.sizes)} codes, each at least 0 and below "
                f"{' and '.join(map(str, self.sizes))}"
            )
        codes_OL = self.ids.codes_OL
        rows = np.flatnonzero((codes_OL[:, : len(codes)] == np.array(codes, np.int64)).all(axis=1))
        order = np.lexsort(codes_OL[rows].T[::-1])
        return [self.ids.object_ids[row] for row in rows[order].tolist()]

    def extend(self, objects: Iterable[NewObject]) -> Codebook:
        """A codebook with IDs for new objects, from their text, as `leadre semid --extend` assigns them.

        IDs in use do not change; an object that has one keeps it. Nothing is written to disk. Raises InputError for a
        repeated object, for a codebook without a free ID, and if the text encoder is missing or has changed.
        """
        from leadre.semid import embed  # imports torch, which no other method needs

        if embed.read_recipe(self.encoder).hash != self.encoder_hash:
            raise InputError(f"the encoder {self.encoder} has changed since this codebook was made; restore it")
        new = [entry for entry in objects if entry.object_id not in self]
        if not new:
            return self
        texts = [text.join(entry.title, entry.brand, entry.category_path, entry.description) for entry in new]
        vectors_ND = embed.embed(texts, self.encoder)
        return replace(self, ids=self.ids.encode(vectors_ND, [entry.object_id for entry in new]))


def load_codebook(path: str | Path) -> Codebook:
    """The codebook in the folder of a semid artifact, such as ``work/demo/semid``.

    Raises ArtifactError, which names the command to run, if there is none.
    """
    return open_codebook(artifact.read(Path(path), artifact.CODEBOOK))


def open_codebook(source: artifact.Artifact) -> Codebook:
    """The codebook of a semid artifact. Raises InputError if a package is missing."""
    extras.require("a codebook", "generate")
    from leadre.semid import codebook as codebooks

    made_with = source.meta["config"]
    return Codebook(ids=codebooks.load(source), encoder=made_with["encoder"], encoder_hash=made_with["encoder_hash"])
