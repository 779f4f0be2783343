"""Popularity: the ads that most users act on; lists differ by the live inventory only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file

from leadre.data.counts import PSEUDO_ACTIONS, actions, exposures, smoothed
from leadre.data.histories import train_end_us
from leadre.data.user_counts import train_counts
from leadre.generate.channels.contract import Method, Scores

if TYPE_CHECKING:
    from leadre.data.histories import Logs
    from leadre.data.moment import Moment

FILE = "popularity.safetensors"


@dataclass(frozen=True, kw_only=True)
class Popularity:
    """One score for each ad, [A]: a count or a rate of training time."""

    score_A: Scores

    def score(self, moments: Iterable[Moment]) -> Iterator[Scores]:
        """The ads' scores, the same for every Moment; see :class:`contract.Channel`."""
        for moment in moments:
            yield self.score_A[moment.inventory.ads]

    def save(self, folder: Path) -> None:
        """Write the scores."""
        save_file({"score_A": self.score_A}, folder / FILE)


def fit_conversions(logs: Logs, seed: int, threads: int) -> Popularity:
    """Count the ad conversions of training time."""
    return Popularity(score_A=count_conversions(logs, train_end_us(logs)))


def count_conversions(logs: Logs, before_us: int) -> Scores:
    """Conversions of each ad strictly before a time, [A]."""
    ad_N = logs.ad_E[(logs.at_us_E < before_us) & (logs.ad_E >= 0)]
    return np.bincount(ad_N, minlength=len(logs.ads)).astype(np.float32)


def fit_buyers(logs: Logs, seed: int, threads: int) -> Popularity:
    """Count the distinct users who acted on the ad's object in either domain: the better predictor of new objects."""
    buyers_O = np.bincount(train_counts(logs).indices, minlength=len(logs.objects)).astype(np.float32)
    return Popularity(score_A=buyers_O[logs.ad_object_A])


def fit_rate(logs: Logs, seed: int, threads: int) -> Popularity:
    """Requests with a conversion of the ad's object per request with it live in training time, smoothed."""
    end_us = train_end_us(logs)
    rate_O = smoothed(actions(logs, 0, end_us), exposures(logs, 0, end_us))
    return Popularity(score_A=rate_O[logs.ad_object_A].astype(np.float32))


def load(folder: Path) -> Popularity:
    """The channel that `save` wrote."""
    return Popularity(score_A=load_file(folder / FILE)["score_A"])


CONVERSIONS = Method(title="Popularity (conversions)", settings={"of": "conversions"}, fit=fit_conversions, load=load)
BUYERS = Method(title="Popularity (distinct buyers)", settings={"of": "buyers"}, fit=fit_buyers, load=load)
RATE = Method(
    title="Popularity (conversions per exposure)",
    settings={"of": "conversions per exposure", "pseudo_actions": PSEUDO_ACTIONS},
    fit=fit_rate,
    load=load,
)
