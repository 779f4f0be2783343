"""Popularity: the ads that most people act on, the same for everybody but for what is live in the request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from leadre.data.histories import train_end_us
from leadre.generate.channels.contract import Method, Scores, train_counts

if TYPE_CHECKING:
    from leadre.data.histories import Logs

FILE = "popularity.safetensors"


@dataclass(frozen=True, kw_only=True)
class Popularity:
    """One score for each ad, [A]: a count of training time."""

    score_A: Scores

    def score(self, logs: Logs, requests_R: NDArray[np.int64]) -> Iterator[tuple[int, Scores]]:
        """The ads' counts, the same for every request; see :class:`contract.Channel`."""
        for r in requests_R.tolist():
            yield r, self.score_A[logs.inventory(r)]

    def save(self, folder: Path) -> None:
        """Write the counts."""
        save_file({"score_A": self.score_A}, folder / FILE)


def fit_conversions(logs: Logs, seed: int, threads: int) -> Popularity:
    """Count conversions in the ad domain: what was bought while it was advertised."""
    ad_N = logs.ad_E[(logs.at_us_E < train_end_us(logs)) & (logs.ad_E >= 0)]
    return Popularity(score_A=np.bincount(ad_N, minlength=len(logs.ads)).astype(np.float32))


def fit_buyers(logs: Logs, seed: int, threads: int) -> Popularity:
    """Count the distinct users who acted on the ad's object in either domain: the better guess at what is new."""
    buyers_O = np.bincount(train_counts(logs).indices, minlength=len(logs.objects)).astype(np.float32)
    return Popularity(score_A=buyers_O[logs.ad_object_A])


def load(folder: Path) -> Popularity:
    """Read what `save` wrote."""
    return Popularity(score_A=load_file(folder / FILE)["score_A"])


CONVERSIONS = Method(title="Popularity (conversions)", settings={"of": "conversions"}, fit=fit_conversions, load=load)
BUYERS = Method(title="Popularity (distinct buyers)", settings={"of": "buyers"}, fit=fit_buyers, load=load)
