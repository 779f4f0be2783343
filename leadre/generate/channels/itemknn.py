"""Item-kNN: objects that share users with the objects of the history (`implicit`; Sarwar et al., WWW 2001)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy import sparse

from leadre.data.collaborative_fit import K1, NEIGHBOURS, B, similarities
from leadre.data.user_counts import damped, train_counts
from leadre.generate.channels.contract import Method, Scores, csr_of, csr_parts, history_counts, over_inventory

if TYPE_CHECKING:
    from leadre.data.histories import Logs
    from leadre.data.moment import Moment

FILE = "itemknn.safetensors"


@dataclass(frozen=True, kw_only=True)
class ItemKnn:
    """Similarities [O, O] of each object to its nearest objects; zero elsewhere and on the diagonal."""

    similarity_OO: sparse.csr_matrix

    def score(self, moments: Iterable[Moment]) -> Iterator[Scores]:
        """Sum of the similarities of the live ads' objects to the user's history; see :class:`contract.Channel`."""

        def score_objects(moments_B: Sequence[Moment]) -> Scores:
            weights_BO = damped(history_counts(moments_B, self.similarity_OO.shape[0]))
            return np.asarray((weights_BO @ self.similarity_OO).todense(), dtype=np.float32)

        return over_inventory(moments, score_objects)

    def save(self, folder: Path) -> None:
        """Write the similarities in CSR form."""
        save_file(csr_parts(self.similarity_OO), folder / FILE)


def fit(logs: Logs, seed: int, threads: int) -> ItemKnn:
    """Similarities of the counts of training time."""
    return ItemKnn(similarity_OO=similarities(train_counts(logs), threads))


def load(folder: Path) -> ItemKnn:
    """The channel that `save` wrote."""
    parts = load_file(folder / FILE)
    return ItemKnn(similarity_OO=csr_of(parts, columns=len(parts["indptr"]) - 1))


ITEM_KNN = Method(title="Item-kNN", settings={"neighbours": NEIGHBOURS, "k1": K1, "b": B}, fit=fit, load=load)
