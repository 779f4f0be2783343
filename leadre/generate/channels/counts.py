"""The counts network as a channel: what counts of the user's history, popularity and neighbours explain.

Its counts of popularity are frozen at the end of training, as those of every channel. The collaborative scores among
its features are those of the channels `als` and `item_knn`, fitted twice: before the training visits, so that these
have features that have not seen them, and on all of training time. A model with a learnt prior reads the same fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leadre.generate.channels.contract import Method, Scores
from leadre.lm import counts_fit, counts_networks
from leadre.lm.counts_networks import CountsNetworks

if TYPE_CHECKING:
    from leadre.data.histories import Logs
    from leadre.data.moment import Moment


@dataclass(frozen=True, kw_only=True)
class Counts:
    """A fitted network."""

    fitted: CountsNetworks

    def score(self, moments: Iterable[Moment]) -> Iterator[Scores]:
        """The network's scores of the live ads' objects; see :class:`contract.Channel`."""
        for moment in moments:
            row_I = np.searchsorted(moment.inventory.objects, moment.inventory.ad_object)
            yield self.fitted.full.scores(moment)[row_I]

    def save(self, folder: Path) -> None:
        """Write the network and its tables."""
        self.fitted.save(folder)


def fit(logs: Logs, seed: int, threads: int) -> Counts:
    """Train on the last third of the training visits; `counts_fit.fit`."""
    return Counts(fitted=counts_fit.fit(logs, seed, threads))


def load(folder: Path) -> Counts:
    """The channel that `save` wrote."""
    return Counts(fitted=counts_networks.load(folder))


COUNTS_NETWORK = Method(title="Counts network", settings=counts_fit.SETTINGS, fit=fit, load=load)
