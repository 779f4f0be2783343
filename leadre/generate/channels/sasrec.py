"""SASRec as a channel; a model with a learnt prior can read it as well (`lm.counts_fit`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leadre.generate.channels.contract import Method, Scores
from leadre.lm import sasrec, sasrec_fit

if TYPE_CHECKING:
    from leadre.data.histories import Logs
    from leadre.data.moment import Moment

BATCH = 128


@dataclass(frozen=True, kw_only=True)
class SasRec:
    """A fitted network."""

    fitted: sasrec.SasRec

    def score(self, moments: Iterable[Moment]) -> Iterator[Scores]:
        """The network's scores of the live ads' objects; see :class:`contract.Channel`."""
        remaining = iter(moments)
        while moments_B := list(islice(remaining, BATCH)):
            for moment, scores_I in zip(moments_B, self.fitted.scores(moments_B), strict=True):
                yield scores_I[np.searchsorted(moment.inventory.objects, moment.inventory.ad_object)]

    def save(self, folder: Path) -> None:
        """Write the weights."""
        self.fitted.save(folder)


def fit(logs: Logs, seed: int, threads: int) -> SasRec:
    """Train with the shape that suits the log; `sasrec_fit.fit`."""
    return SasRec(fitted=sasrec_fit.fit(logs, seed, threads))


def load(folder: Path) -> SasRec:
    """The channel that `save` wrote."""
    return SasRec(fitted=sasrec.load(folder))


SASREC = Method(title="SASRec (softmax)", settings=sasrec_fit.SETTINGS, fit=fit, load=load)
