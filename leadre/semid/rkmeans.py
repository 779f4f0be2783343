"""Residual k-means: k-means of the vectors, then of their residuals, level by level (faiss).

The quantiser of OneRec (arXiv 2502.18965) without its balancing, and a strong, fast alternative to RQ-VAE. It cannot
collapse: faiss splits a large cluster as soon as another one is empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import faiss
import numpy as np

from leadre import progress
from leadre.errors import InputError
from leadre.semid.quantiser import Floats, Quantiser, distances

ROUNDS = 25  # of Lloyd's algorithm; later ones move the error by less than 0.1 %


def fit(vectors_ND: Floats, sizes: Sequence[int], seed: int) -> Quantiser:
    """Residual k-means of `vectors_ND` (float32 [N, D]) with `sizes[l]` centroids at level l.

    The same vectors and seed give the same bytes. Equal vectors count once, so that a text which many objects share
    does not attract the centroids. A level gets at most as many codes as there are distinct residuals; if fewer than
    configured, a message is printed.
    """
    check(vectors_ND, sizes)
    residual_ND = np.unique(np.asarray(vectors_ND, dtype=np.float32), axis=0).astype(np.float64)
    centroids = []
    with progress.track("residual k-means, levels", len(sizes)) as advance:
        for level, size in enumerate(sizes):
            centroids.append(cluster(residual_ND.astype(np.float32), size, seed + level, label=f"level {level + 1}"))
            residual_ND = residual_ND - centroids[-1][distances(residual_ND, centroids[-1]).argmin(axis=1)]
            advance(1, note=f"mean squared residual {(residual_ND**2).sum(axis=1).mean():.4f}")
    return Quantiser(centroids=tuple(centroids))


def cluster(vectors_ND: Floats, size: int, seed: int, *, label: str) -> Floats:
    """Centroids of `size` clusters, float32 [C, D]; C < size if there are fewer distinct vectors."""
    distinct_ND = np.unique(vectors_ND, axis=0)
    if len(distinct_ND) <= size:
        if len(distinct_ND) < size:
            progress.say(
                f"semid: {label} gets {len(distinct_ND)} codes instead of {size}: there are no more distinct vectors; "
                f"smaller --levels would let similar objects share a prefix"
            )
        return distinct_ND
    with _one_thread():
        kmeans = faiss.Kmeans(
            distinct_ND.shape[1],
            size,
            niter=ROUNDS,
            seed=seed,
            min_points_per_centroid=1,  # with fewer points faiss warns; with more than the next limit it samples
            max_points_per_centroid=len(distinct_ND),
        )
        kmeans.train(distinct_ND)
    return np.array(kmeans.centroids, dtype=np.float32).reshape(size, -1)


def check(vectors_ND: Floats, sizes: Sequence[int]) -> None:
    """Raises InputError for level sizes without a code, AssertionError for empty, malformed or infinite vectors."""
    if not sizes or min(sizes) < 1:
        raise InputError(f"--levels {','.join(map(str, sizes))}: give at least one level of at least one code")
    assert vectors_ND.ndim == 2 and len(vectors_ND), f"nothing to quantise: vectors of shape {vectors_ND.shape}"
    assert np.isfinite(vectors_ND).all(), f"{(~np.isfinite(vectors_ND)).any(axis=1).sum()} vectors are not finite"


@contextmanager
def _one_thread() -> Iterator[None]:
    """faiss on one thread: with more, sums come in another order and the last bits of centroids change."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
