"""Fits of collaborative filtering (library `implicit`): channels and count features share them.

The library is imported where it is used, so that reading a fit needs numpy alone.

Letters: U users, O objects, F factors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from leadre.data.collaborative import Collaborative, Floats
from leadre.data.user_counts import damped, train_counts

if TYPE_CHECKING:
    from leadre.data.histories import Logs

# of ALS, the best of 15 settings on the `journey` source's validation weeks
FACTORS = 128
REGULARISATION = 3.0
ALPHA = 0.1
ITERATIONS = 10
# of item-kNN
NEIGHBOURS = 50
K1, B = 1.2, 0.75


def fit(logs: Logs, before_us: int, seed: int, threads: int) -> Collaborative:
    """ALS and item-kNN from the events before ``before_us``; ``threads`` of the processor, 0 = all."""
    counts_UO = train_counts(logs, before_us)
    return Collaborative(
        factors_OD=factorise(counts_UO, seed, threads),
        regularisation=REGULARISATION,
        alpha=ALPHA,
        similarity_OO=similarities(counts_UO, threads),
    )


def factorise(counts_UO: sparse.csr_matrix, seed: int, threads: int) -> Floats:
    """Object factors [O, F] of users' counts, with the confidence alpha x log(1 + count) of an action."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # the solver has threads of its own; BLAS threads inside them compete for the cores
    with threadpool_limits(1, "blas"):
        model = als_model(FACTORS, seed=seed, threads=threads)
        model.fit(damped(counts_UO) * np.float32(ALPHA), show_progress=False)
    return np.asarray(model.item_factors, dtype=np.float32)


def als_model(factors: int, *, seed: int, threads: int) -> Any:
    """A model of the library with our settings, not fitted."""
    from implicit.cpu.als import AlternatingLeastSquares

    return AlternatingLeastSquares(
        factors=factors,
        regularization=REGULARISATION,
        iterations=ITERATIONS,
        random_state=seed,
        num_threads=threads,
    )


def similarities(counts_UO: sparse.csr_matrix, threads: int) -> sparse.csr_matrix:
    """Similarity [O, O] of BM25-weighted, damped counts by user; keeps the `NEIGHBOURS` nearest of each object.

    Best of 18 settings on the validation weeks of the `journey` source (cosine, TF-IDF, BM25; 50 to all neighbours).
    """
    if not counts_UO.nnz:  # the library would divide by the mean number of events
        return sparse.csr_matrix((counts_UO.shape[1],) * 2, dtype=np.float32)
    from implicit.nearest_neighbours import ItemItemRecommender, bm25_weight

    model = ItemItemRecommender(K=NEIGHBOURS + 1, num_threads=threads)  # an object is its own nearest neighbour
    # as the library's BM25Recommender, which passes on a COO matrix and therefore warns
    weighted_UO = bm25_weight(damped(counts_UO).T, K1=K1, B=B).T.tocsr()
    model.fit(weighted_UO, show_progress=False)
    similarity_OO = model.similarity.tolil()
    similarity_OO.setdiag(0.0)
    similarity_OO = similarity_OO.tocsr().astype(np.float32)
    similarity_OO.eliminate_zeros()
    return similarity_OO
