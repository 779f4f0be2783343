"""Item-kNN: objects that share users with the objects of the history (`implicit`; Sarwar et al., WWW 2001)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from implicit.nearest_neighbours import ItemItemRecommender, bm25_weight
from safetensors.numpy import load_file, save_file
from scipy import sparse

from leadre.generate.channels.contract import (
    Method,
    Scores,
    csr_of,
    csr_parts,
    history_counts,
    over_inventory,
    train_counts,
)

if TYPE_CHECKING:
    from leadre.data.histories import Logs
    from leadre.data.moment import Moment

FILE = "itemknn.safetensors"
NEIGHBOURS = 50
K1, B = 1.2, 0.75


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


def similarities(counts_UO: sparse.csr_matrix, threads: int) -> sparse.csr_matrix:
    """Similarity [O, O] of BM25-weighted, damped counts by user; keeps the `NEIGHBOURS` nearest of each object.

    Best of 18 settings on the validation weeks of the `journey` source (cosine, TF-IDF, BM25; 50 to all neighbours).
    """
    if not counts_UO.nnz:  # the library would divide by the mean number of events
        return sparse.csr_matrix((counts_UO.shape[1],) * 2, dtype=np.float32)
    model = ItemItemRecommender(K=NEIGHBOURS + 1, num_threads=threads)  # an object is its own nearest neighbour
    # as the library's BM25Recommender, which passes on a COO matrix and therefore warns
    weighted_UO = bm25_weight(damped(counts_UO).T, K1=K1, B=B).T.tocsr()
    model.fit(weighted_UO, show_progress=False)
    similarity_OO = model.similarity.tolil()
    similarity_OO.setdiag(0.0)
    similarity_OO = similarity_OO.tocsr().astype(np.float32)
    similarity_OO.eliminate_zeros()
    return similarity_OO


def load(folder: Path) -> ItemKnn:
    """The channel that `save` wrote."""
    parts = load_file(folder / FILE)
    return ItemKnn(similarity_OO=csr_of(parts, columns=len(parts["indptr"]) - 1))


def damped(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """log(1 + count): a repeated purchase adds less than the first."""
    return counts.log1p().tocsr()


ITEM_KNN = Method(title="Item-kNN", settings={"neighbours": NEIGHBOURS, "k1": K1, "b": B}, fit=fit, load=load)
