"""ALS: matrix factorisation of implicit feedback (library `implicit`; Hu, Koren and Volinsky, ICDM 2008)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from leadre.data import collaborative_fit as fits
from leadre.data.user_counts import damped, train_counts
from leadre.generate.channels.contract import Method, Scores, history_counts, over_inventory

if TYPE_CHECKING:
    from leadre.data.histories import Logs
    from leadre.data.moment import Moment

FILE = "als.safetensors"
SETTINGS = {
    "factors": fits.FACTORS,
    "regularisation": fits.REGULARISATION,
    "alpha": fits.ALPHA,
    "iterations": fits.ITERATIONS,
}


@dataclass(frozen=True, kw_only=True)
class Als:
    """Object factors [O, F]; a user's factors are solved for from the history at each Moment, never stored."""

    factors_OF: Scores
    threads: int = 0

    def score(self, moments: Iterable[Moment]) -> Iterator[Scores]:
        """Inner products of the live ads' objects and the user at the Moment; see :class:`contract.Channel`."""

        def objects(moments_B: Sequence[Moment]) -> Scores:
            history_BO = damped(history_counts(moments_B, len(self.factors_OF))) * np.float32(fits.ALPHA)
            # the solver has threads of its own; BLAS threads inside them compete for the cores
            with threadpool_limits(1, "blas"):
                model = fits.als_model(self.factors_OF.shape[1], seed=0, threads=self.threads)
                model.item_factors = self.factors_OF
                users_BF = model.recalculate_user(np.arange(len(moments_B)), history_BO)
            return np.asarray(users_BF @ self.factors_OF.T, dtype=np.float32)

        return over_inventory(moments, objects)

    def save(self, folder: Path) -> None:
        """Write the object factors."""
        save_file({"factors_OF": self.factors_OF}, folder / FILE)


def fit(logs: Logs, seed: int, threads: int) -> Als:
    """Factorise the users' damped counts of training time."""
    return Als(factors_OF=fits.factorise(train_counts(logs), seed, threads), threads=threads)


def load(folder: Path) -> Als:
    """The channel that `save` wrote."""
    return Als(factors_OF=load_file(folder / FILE)["factors_OF"])


ALS = Method(title="ALS", settings=SETTINGS, fit=fit, load=load)
