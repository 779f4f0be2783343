"""What goes with what a user acted on before: a linear autoencoder over users' counts, kept at low rank.

EASE (Steck, WWW 2019, arXiv 1905.03375) finds in closed form the weights by which every object is best told from all
others that the same user acted on. A language model of a few layers has its code rows to say which objects go
together, and objects that share a path share them; this says it object by object. It is fitted on training time and
does not learn: a user's affinities shape the prior on the trie (`lm.live`), and the model learns where to depart.

The fit has seen what training requests ask for. Their prior would look better than it is, and the model would learn to
lean on it; so a user's training requests are weighed by a fit to the users of all other folds (`held_out`).

Letters: U users, O objects, P rank, H objects of a history, N live objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy import sparse
from scipy.sparse.linalg import svds

from leadre.data.histories import Logs
from leadre.semid.codebook import Codebook
from leadre.semid.collaborative import training_end_us

FILE = "affinity.safetensors"
RANK = 64
PENALTY = 300.0  # the best of 100, 300, 1000 on the `journey` source's validation weeks
FOLDS = 4
MAX_OBJECTS = 10_000  # the most frequent ones; the closed form inverts a matrix of that side


@dataclass(frozen=True)
class Affinity:
    """Factors float32 [O, P] by row of a codebook: what a history read speaks for the live ones by ``read @ live.T``.

    Scores have unit variance over training users and objects. Rows of zeros say nothing, such as those of new ads.
    """

    read_OP: NDArray[np.float32]
    live_OP: NDArray[np.float32]

    def scores(self, rows_E: NDArray[np.integer], live_N: NDArray[np.integer]) -> NDArray[np.float32]:
        """Affinity of a user who acted on ``rows_E`` (with repeats) to each of the live rows: float32 [N]."""
        rows_H, counts_H = np.unique(rows_E, return_counts=True)
        user_P = np.log1p(counts_H).astype(np.float32) @ self.read_OP[rows_H]
        return np.asarray(self.live_OP[live_N] @ user_P, dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Write the factors."""
        save_file({"read_OP": self.read_OP, "live_OP": self.live_OP}, folder / FILE)


def load(folder: Path, objects: int) -> Affinity:
    """Read what `Affinity.save` wrote, with rows of zeros for objects that came after it, up to ``objects``."""
    named = load_file(folder / FILE)
    return Affinity(**{name: np.pad(part, ((0, objects - len(part)), (0, 0))) for name, part in named.items()})


def fit(logs: Logs, codebook: Codebook, seed: int) -> Affinity:
    """Affinities from the events of ``logs`` before the first held-out request; row ``n`` is that of the codebook.

    An object that was not met says nothing; nor does any where fewer than three were.
    """
    return _fit(_damped_counts(logs, codebook), seed)


def held_out(logs: Logs, codebook: Codebook, seed: int) -> list[Affinity]:
    """`FOLDS` fits: the one at ``user % FOLDS`` has not seen the user."""
    counts_UO = _damped_counts(logs, codebook)
    fold_U = np.arange(len(logs.users)) % FOLDS
    return [_fit(counts_UO[np.flatnonzero(fold_U != fold)], seed) for fold in range(FOLDS)]


def _fit(counts_UO: sparse.csr_array, seed: int) -> Affinity:
    events_O = np.asarray(counts_UO.sum(0)).ravel()
    met = np.sort(np.argsort(-events_O, kind="stable")[: min(MAX_OBJECTS, int((events_O > 0).sum()))])
    read_OP, live_OP = np.zeros((2, len(events_O), RANK), dtype=np.float32)
    if len(met) > 2:
        read, live = _factorise(counts_UO[:, met], min(RANK, len(met) - 2), seed)
        read_OP[met, : read.shape[1]], live_OP[met, : live.shape[1]] = read, live
    return Affinity(read_OP, live_OP)


def _damped_counts(logs: Logs, codebook: Codebook) -> sparse.csr_array:
    """log(1 + count) of each user's events of training time, [U, O]."""
    known_E = logs.at_us_E < training_end_us(logs)
    user_E = np.repeat(np.arange(len(logs.users)), np.diff(logs.event_offsets))[known_E]
    row_E = codebook.rows(logs.objects["object_id"].to_list())[logs.object_E[known_E]]
    ones = np.ones(len(row_E), np.float32)
    shape = len(logs.users), len(codebook.object_ids)
    return sparse.coo_array((ones, (user_E, row_E)), shape=shape).tocsr().log1p()  # tocsr sums what stands twice


def _factorise(counts_UO: sparse.csr_array, rank: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(read [O, rank], live [O, rank]) whose products are the strongest part of EASE's weights, at unit variance."""
    gram_OO = (counts_UO.T @ counts_UO).toarray().astype(np.float64)
    gram_OO[np.diag_indices_from(gram_OO)] += PENALTY
    precision_OO = np.linalg.inv(gram_OO)
    weights_OO = -precision_OO / np.diag(precision_OO)
    np.fill_diagonal(weights_OO, 0.0)
    start = np.random.default_rng(seed).normal(size=len(weights_OO))
    left_OP, strength_P, right_PO = svds(weights_OO, k=rank, v0=start)
    read, live = left_OP * np.sqrt(strength_P), right_PO.T * np.sqrt(strength_P)
    spread = float(np.std((counts_UO @ read) @ live.T))
    return (read / spread if spread else read).astype(np.float32), live.astype(np.float32)
