"""Item-item affinity (EASE, low rank): how well a live object fits a user's history.

EASE (Steck, WWW 2019, arXiv 1905.03375) is a linear autoencoder over users' counts. It finds in closed form the weights
that best predict each object from all other objects of the same user. A language model of a few layers has only its
code rows to learn which objects belong together, and objects with a common path share them; EASE has weights for each
object. It is fitted on training time and does not learn further: a user's affinities shape the prior (`lm.prior`), and
the model learns where users depart from it.

A fit has seen the targets of the training requests. A prior from it would look better in training than it is, and the
model would learn to rely on it. So the prior of a user's training requests uses a fit to the users of all other folds
(`held_out`).

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
from leadre.data.user_counts import event_users
from leadre.semid.codebook import Codebook
from leadre.semid.collaborative import training_end_us

FILE = "affinity.safetensors"
RANK = 64
PENALTY = 300.0  # best of 100, 300, 1000 on the `journey` source's validation weeks
FOLDS = 4
MAX_OBJECTS = 10_000  # the most frequent ones; the closed form inverts a matrix of this size


@dataclass(frozen=True)
class Affinity:
    """Factors float32 [O, P] by codebook row: ``read_OP @ live_OP.T`` weighs a live object by an object of the history.

    Scores have unit variance over training users and objects. New ads have rows of zeros: no affinity.
    """

    read_OP: NDArray[np.float32]
    live_OP: NDArray[np.float32]

    def scores(self, rows_E: NDArray[np.integer], live_N: NDArray[np.integer]) -> NDArray[np.float32]:
        """Affinity of a user who acted on ``rows_E`` (with repeats) to the live rows: float32 [N]."""
        rows_H, counts_H = np.unique(rows_E, return_counts=True)
        user_P = np.log1p(counts_H).astype(np.float32) @ self.read_OP[rows_H]
        if 4 * len(live_N) > len(self.live_OP):  # then a product with all rows costs less than a copy of the live ones
            return np.asarray((self.live_OP @ user_P)[live_N], dtype=np.float32)
        return np.asarray(self.live_OP[live_N] @ user_P, dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Write the factors."""
        save_file({"read_OP": self.read_OP, "live_OP": self.live_OP}, folder / FILE)


def load(folder: Path, objects: int) -> Affinity:
    """The affinity that `Affinity.save` wrote, with rows of zeros for later objects, ``objects`` rows in all."""
    named = load_file(folder / FILE)
    return Affinity(**{name: np.pad(part, ((0, objects - len(part)), (0, 0))) for name, part in named.items()})


def fit(logs: Logs, codebook: Codebook, seed: int) -> Affinity:
    """Affinities from the events of ``logs`` before the first held-out request; row ``n`` is that of the codebook.

    Objects without events have zero rows. With fewer than three objects that have events, all rows are zero.
    """
    return _fit(_damped_counts(logs, codebook), seed)


def held_out(logs: Logs, codebook: Codebook, seed: int) -> list[Affinity]:
    """`FOLDS` fits: the one at ``user % FOLDS`` has not seen the user."""
    counts_UO = _damped_counts(logs, codebook)
    fold_U = np.arange(len(logs.users)) % FOLDS
    return [_fit(counts_UO[np.flatnonzero(fold_U != fold)], seed) for fold in range(FOLDS)]


def _fit(counts_UO: sparse.csr_array, seed: int) -> Affinity:
    events_O = np.asarray(counts_UO.sum(0)).ravel()
    count = min(MAX_OBJECTS, int((events_O > 0).sum()))
    frequent = np.sort(np.argsort(-events_O, kind="stable")[:count])
    read_OP, live_OP = np.zeros((2, len(events_O), RANK), dtype=np.float32)
    if len(frequent) > 2:
        read, live = _factorise(counts_UO[:, frequent], min(RANK, len(frequent) - 2), seed)
        read_OP[frequent, : read.shape[1]] = read
        live_OP[frequent, : live.shape[1]] = live
    return Affinity(read_OP, live_OP)


def _damped_counts(logs: Logs, codebook: Codebook) -> sparse.csr_array:
    """log(1 + count) of each user's events of training time, [U, O]."""
    known_E = logs.at_us_E < training_end_us(logs)
    user_E = event_users(logs)[known_E]
    row_E = codebook.rows(logs.objects["object_id"].to_list())[logs.object_E[known_E]]
    ones = np.ones(len(row_E), np.float32)
    shape = len(logs.users), len(codebook.object_ids)
    return sparse.coo_array((ones, (user_E, row_E)), shape=shape).tocsr().log1p()  # tocsr sums duplicate entries


def _factorise(counts_UO: sparse.csr_array, rank: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(read [O, rank], live [O, rank]): truncated SVD of EASE's weights, scaled to scores of unit variance."""
    gram_OO = (counts_UO.T @ counts_UO).toarray().astype(np.float64)
    gram_OO[np.diag_indices_from(gram_OO)] += PENALTY
    precision_OO = np.linalg.inv(gram_OO)
    weights_OO = -precision_OO / np.diag(precision_OO)
    np.fill_diagonal(weights_OO, 0.0)
    start = np.random.default_rng(seed).normal(size=len(weights_OO))
    left_OP, strength_P, right_PO = svds(weights_OO, k=rank, v0=start)
    read = left_OP * np.sqrt(strength_P)
    live = right_PO.T * np.sqrt(strength_P)
    spread = float(np.std((counts_UO @ read) @ live.T))
    return (read / spread if spread else read).astype(np.float32), live.astype(np.float32)
