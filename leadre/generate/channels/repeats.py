"""Repeats: the objects that the user acted on most often, the strongest simple baseline if users buy repeatedly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file

from leadre.generate.channels.contract import Method, Scores

if TYPE_CHECKING:
    from leadre.data.histories import Logs
    from leadre.data.moment import Moment

FILE = "repeats.safetensors"
DECAY = 0.985  # per basket; the half-life is 46 baskets


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Counts of the user's own objects; a count loses the share 1 - `decay` with each later basket of the user."""

    decay: float

    def score(self, moments: Iterable[Moment]) -> Iterator[Scores]:
        """Decayed counts of the live ads' objects in the user's history; see :class:`contract.Channel`."""
        for moment in moments:
            history = moment.history
            ad_object = moment.inventory.ad_object
            basket_N = np.cumsum(np.diff(history.at_us_E, prepend=np.int64(-1)) != 0)
            age_N = basket_N[-1] - basket_N if len(basket_N) else basket_N
            # float64 sums: equal histories give equal scores in any order of addition
            live = 1 + int(ad_object.max(initial=-1))
            count_O = np.bincount(history.object_E, weights=self.decay**age_N, minlength=live)
            yield count_O[ad_object].astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write the decay; nothing else is fitted."""
        save_file({"decay": np.array([self.decay])}, folder / FILE)


def fit_plain(logs: Logs, seed: int, threads: int) -> Repeats:
    """All baskets have equal weight."""
    return Repeats(decay=1.0)


def fit_decayed(logs: Logs, seed: int, threads: int) -> Repeats:
    """Recent baskets have more weight."""
    return Repeats(decay=DECAY)


def load(folder: Path) -> Repeats:
    """The channel that `save` wrote."""
    return Repeats(decay=float(load_file(folder / FILE)["decay"][0]))


PLAIN = Method(title="Own frequency", settings={"decay": 1.0}, fit=fit_plain, load=load)
DECAYED = Method(title="Own frequency, decayed", settings={"decay": DECAY}, fit=fit_decayed, load=load)
