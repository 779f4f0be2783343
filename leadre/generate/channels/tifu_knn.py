"""TIFU-KNN: a user's decayed item frequencies, blended with those of similar users (Hu et al., SIGIR 2020).

The paper (arXiv 2006.00556) cuts a user's baskets into groups. A basket decays within its group, a group among the
groups; the user's vector is the mean over groups of the means over baskets. The score is alpha x the user's vector +
(1 - alpha) x the mean vector of the nearest users by Euclidean distance.

The vector of a user is that of the history at the Moment; the neighbours' vectors are of the end of training. A user is
no neighbour of their own.

Shapes: B Moments, U users, O objects, E events, K neighbours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy import sparse

from leadre.generate.channels.contract import (
    Method,
    Scores,
    csr_of,
    csr_parts,
    over_inventory,
    training_histories,
    weighted_histories,
)

if TYPE_CHECKING:
    from leadre.data.histories import Logs
    from leadre.data.moment import Moment

FILE = "tifu_knn.safetensors"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The paper's parameters; the best on the validation weeks of the `journey` source (LOG.md)."""

    group: int = 5  # baskets of a group
    within: float = 1.0  # decay by basket within a group
    between: float = 0.9  # decay by group
    neighbours: int = 100
    alpha: float = 0.9  # share of the user's own vector


@dataclass(frozen=True, kw_only=True)
class TifuKnn:
    """Vectors [U, O] of the users at the end of training."""

    vectors_UO: sparse.csr_matrix
    settings: Settings

    def score(self, moments: Iterable[Moment]) -> Iterator[Scores]:
        """The blend of own and neighbours' vectors at the live ads' objects; see :class:`contract.Channel`."""
        norm_U = np.asarray(self.vectors_UO.multiply(self.vectors_UO).sum(axis=1)).ravel()
        known_U = norm_U > 0
        transposed_OU = self.vectors_UO.T.tocsr()

        def score_objects(moments_B: Sequence[Moment]) -> Scores:
            histories = [moment.history for moment in moments_B]
            own_BO = weighted_histories(histories, partial(weights, self.settings), self.vectors_UO.shape[1])
            distance_BU = norm_U - 2 * (own_BO @ transposed_OU).toarray()  # + the user's own norm: no matter
            distance_BU[:, ~known_U] = np.inf
            for row, moment in enumerate(moments_B):
                if moment.user >= 0:
                    distance_BU[row, moment.user] = np.inf
            near_BU = nearest(distance_BU, self.settings.neighbours)
            alpha = np.float32(self.settings.alpha)
            blend = alpha * own_BO + (1 - alpha) * (near_BU @ self.vectors_UO)
            return np.asarray(blend.toarray(), dtype=np.float32)

        return over_inventory(moments, score_objects, batch=128)

    def save(self, folder: Path) -> None:
        """Write the vectors in CSR form, and the settings."""
        settings = np.array(dataclasses.astuple(self.settings), np.float64)
        shape = np.array(self.vectors_UO.shape)
        save_file({**csr_parts(self.vectors_UO), "shape": shape, "settings": settings}, folder / FILE)


def weights(settings: Settings, age_E: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weight of each event's basket in the user's vector, from the number of later baskets, float64 [E].

    The oldest group may have fewer baskets than the others; its mean is over those that it has.
    """
    baskets = 1 + int(age_E.max(initial=-1))
    groups = -(-baskets // settings.group)
    group_E = age_E // settings.group  # 0 = the latest
    size_E = np.where(group_E == groups - 1, baskets - (groups - 1) * settings.group, settings.group)
    decay_E = settings.within ** (age_E % settings.group) * settings.between**group_E
    return np.asarray(decay_E / (size_E * max(groups, 1)), np.float64)


def nearest(distance_BU: NDArray[np.float32], neighbours: int) -> sparse.csr_matrix:
    """Equal weights of the nearest users, summing to 1, [B, U]; infinite distances are never near."""
    count = min(neighbours, distance_BU.shape[1])
    user_BK = np.argpartition(distance_BU, count - 1, axis=1)[:, :count]
    valid_BK = np.isfinite(np.take_along_axis(distance_BU, user_BK, axis=1))
    row_BK = np.broadcast_to(np.arange(len(distance_BU))[:, None], user_BK.shape)
    weight_BK = valid_BK / np.maximum(valid_BK.sum(axis=1, keepdims=True), 1)
    entries = weight_BK.ravel().astype(np.float32), (row_BK.ravel(), user_BK.ravel())
    return sparse.coo_matrix(entries, shape=distance_BU.shape).tocsr()


def fit(logs: Logs, seed: int, threads: int) -> TifuKnn:
    """The vectors of all users at the end of training."""
    settings = Settings()
    vectors_UO = weighted_histories(training_histories(logs), partial(weights, settings), len(logs.objects))
    return TifuKnn(vectors_UO=vectors_UO, settings=settings)


def load(folder: Path) -> TifuKnn:
    """The channel that `save` wrote."""
    parts = load_file(folder / FILE)
    group, within, between, neighbours, alpha = parts["settings"].tolist()
    return TifuKnn(
        vectors_UO=csr_of(parts, columns=int(parts["shape"][1])),
        settings=Settings(group=int(group), within=within, between=between, neighbours=int(neighbours), alpha=alpha),
    )


TIFU_KNN = Method(title="TIFU-KNN", settings=dataclasses.asdict(Settings()), fit=fit, load=load)
