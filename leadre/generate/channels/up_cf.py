"""UP-CF@r: collaborative filtering on users' recent frequencies (Faggioli, Polato and Aiolli, UMAP 2020).

The frequency of an object is the share of the user's last r baskets that hold it. The score of an object is the sum of
its frequencies over all users, each weighted by the user's similarity to the power q. The similarity is the asymmetric
cosine of sets of objects: the number in common over (number of the user's)^a x (number of the other's)^(1 - a).

The user's own row is that of the history at the Moment, with similarity 1; the other users' are of the end of training.

Shapes: B Moments, U users, O objects, E events.
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
    history_counts,
    over_inventory,
    training_histories,
    weighted_histories,
)

if TYPE_CHECKING:
    from leadre.data.histories import Logs
    from leadre.data.moment import Moment

FILE = "up_cf.safetensors"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The paper's parameters; the best on the validation weeks of the `journey` source (LOG.md)."""

    recent: int = 50  # r, the baskets that frequencies are taken from
    asymmetry: float = 0.5  # 0.5 is the cosine
    locality: float = 8.0  # q, the power of a similarity


@dataclass(frozen=True, kw_only=True)
class UpCf:
    """Training users at the end of training: their recent frequencies and the sets of objects of their baskets."""

    frequency_UO: sparse.csr_matrix
    seen_UO: sparse.csr_matrix  # 1 for each object of the history
    settings: Settings

    def score(self, moments: Iterable[Moment]) -> Iterator[Scores]:
        """Similarity-weighted frequencies of the live ads' objects; see :class:`contract.Channel`."""
        objects = self.seen_UO.shape[1]
        size_U = np.diff(self.seen_UO.indptr).astype(np.float32)
        transposed_OU = self.seen_UO.T.tocsr()

        def score_objects(moments_B: Sequence[Moment]) -> Scores:
            histories = [moment.history for moment in moments_B]
            own_BO = weighted_histories(histories, partial(weights, self.settings.recent), objects)
            seen_BO = history_counts(moments_B, objects)
            seen_BO.data[:] = 1.0
            common_BU = (seen_BO @ transposed_OU).toarray()
            near_BU = similarity(common_BU, np.diff(seen_BO.indptr), size_U, self.settings)
            for row, moment in enumerate(moments_B):
                if moment.user >= 0:
                    near_BU[row, moment.user] = 0.0  # the own row is added with similarity 1
            return np.asarray(own_BO + near_BU @ self.frequency_UO, dtype=np.float32)

        return over_inventory(moments, score_objects, batch=128)

    def save(self, folder: Path) -> None:
        """Write both matrices in CSR form, and the settings."""
        parts = {"settings": np.array(dataclasses.astuple(self.settings)), "shape": np.array(self.seen_UO.shape)}
        parts |= csr_parts(self.frequency_UO, "frequency.") | csr_parts(self.seen_UO, "seen.")
        save_file(parts, folder / FILE)


def weights(recent: int, age_E: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weight of each event's basket: one over the number of recent baskets, 0 for older ones, float64 [E]."""
    baskets = min(1 + int(age_E.max(initial=-1)), recent)
    return np.asarray((age_E < recent) / max(baskets, 1), np.float64)


def similarity(
    common_BU: NDArray[np.float32], own_B: NDArray[np.int32], size_U: NDArray[np.float32], settings: Settings
) -> NDArray[np.float32]:
    """Asymmetric cosine to the power q, [B, U], from numbers of common objects, own objects and the other's objects."""
    own_B1 = np.maximum(own_B, 1)[:, None].astype(np.float32) ** np.float32(settings.asymmetry)
    other_U = np.maximum(size_U, 1) ** np.float32(1 - settings.asymmetry)
    return np.asarray((common_BU / (own_B1 * other_U)) ** np.float32(settings.locality), np.float32)


def fit(logs: Logs, seed: int, threads: int) -> UpCf:
    """Frequencies and sets of all users at the end of training."""
    settings = Settings()
    histories = training_histories(logs)
    frequency_UO = weighted_histories(histories, partial(weights, settings.recent), len(logs.objects))
    seen_UO = weighted_histories(histories, np.ones_like, len(logs.objects))
    seen_UO.data[:] = 1.0
    frequency_UO.eliminate_zeros()
    return UpCf(frequency_UO=frequency_UO, seen_UO=seen_UO, settings=settings)


def load(folder: Path) -> UpCf:
    """The channel that `save` wrote."""
    parts = load_file(folder / FILE)
    objects = int(parts["shape"][1])
    recent, asymmetry, locality = parts["settings"].tolist()
    settings = Settings(recent=int(recent), asymmetry=asymmetry, locality=locality)
    return UpCf(
        frequency_UO=csr_of(parts, objects, "frequency."), seen_UO=csr_of(parts, objects, "seen."), settings=settings
    )


UP_CF = Method(title="UP-CF@r", settings=dataclasses.asdict(Settings()), fit=fit, load=load)
