"""Repeats: what the user acted on most often before, the strongest simple guess where people buy again and again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from leadre.generate.channels.contract import Method, Scores

if TYPE_CHECKING:
    from leadre.data.histories import Logs

FILE = "repeats.safetensors"
DECAY = 0.985  # per basket; the half-life is 46 baskets


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Counts of the user's own objects; a count loses the share 1 - `decay` with each later basket of the user."""

    decay: float

    def score(self, logs: Logs, requests_R: NDArray[np.int64]) -> Iterator[tuple[int, Scores]]:
        """Decayed counts of the live ads' objects in the user's history; see :class:`contract.Channel`."""
        for r in requests_R.tolist():
            span = logs.history(r)
            basket_N = np.cumsum(np.diff(logs.at_us_E[span], prepend=np.int64(-1)) != 0)
            age_N = basket_N[-1] - basket_N if len(basket_N) else basket_N
            # float64 sums: equal histories give equal scores, whichever order they are added in
            count_O = np.bincount(logs.object_E[span], weights=self.decay**age_N, minlength=len(logs.objects))
            yield r, count_O[logs.ad_object_A[logs.inventory(r)]].astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write the decay: there is nothing else to fit."""
        save_file({"decay": np.array([self.decay])}, folder / FILE)


def fit_plain(logs: Logs, seed: int, threads: int) -> Repeats:
    """Every basket counts alike."""
    return Repeats(decay=1.0)


def fit_decayed(logs: Logs, seed: int, threads: int) -> Repeats:
    """Recent baskets count more."""
    return Repeats(decay=DECAY)


def load(folder: Path) -> Repeats:
    """Read what `save` wrote."""
    return Repeats(decay=float(load_file(folder / FILE)["decay"][0]))


PLAIN = Method(title="Own frequency", settings={"decay": 1.0}, fit=fit_plain, load=load)
DECAYED = Method(title="Own frequency, decayed", settings={"decay": DECAY}, fit=fit_decayed, load=load)
