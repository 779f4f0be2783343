"""The counts network as a channel: what counts of the user's history, popularity and neighbours explain.

Its counts of popularity are frozen at the end of training, as those of every channel. The collaborative scores among
its features are those of the channels `als` and `item_knn`, fitted twice: before the training visits, so that these
have features that have not seen them, and on all of training time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from leadre import progress
from leadre.data import counts as tables
from leadre.data.collaborative import Collaborative
from leadre.data.histories import TRAIN, train_end_us
from leadre.data.moment import of_requests
from leadre.errors import InputError
from leadre.generate.channels import als, itemknn
from leadre.generate.channels.contract import Method, Scores, train_counts
from leadre.lm import counts as network

if TYPE_CHECKING:
    from leadre.data.histories import Logs
    from leadre.data.moment import Moment

HISTORY_SHARE = 0.65  # of the training requests: the tables of the training visits end with them
MAX_VISITS = 7_000
TRAINING = network.Training()
SETTINGS = {"history_share": HISTORY_SHARE, "max_visits": MAX_VISITS, **dataclasses.asdict(TRAINING)}


@dataclass(frozen=True, kw_only=True)
class Counts:
    """A fitted network."""

    network: network.CountsNetwork

    def score(self, moments: Iterable[Moment]) -> Iterator[Scores]:
        """The network's scores of the live ads' objects; see :class:`contract.Channel`."""
        for moment in moments:
            row_I = np.searchsorted(moment.inventory.objects, moment.inventory.ad_object)
            yield self.network.scores(moment)[row_I]

    def save(self, folder: Path) -> None:
        """Write the network and its tables."""
        self.network.save(folder)


def fit(logs: Logs, seed: int, threads: int) -> Counts:
    """Train on the last third of the training visits; at most `MAX_VISITS`, drawn by the seed."""
    rng = np.random.default_rng(seed)
    end_us = train_end_us(logs)
    before_us = tables_end_us(logs)
    early = tables.fit(logs, before_us, collaborative(logs, before_us, seed, threads))
    requests = training_visits(logs, before_us, rng)
    moments = of_requests(logs)
    visits = ((moments[r], logs.ad_object_A[logs.relevant(r)[0]]) for r in requests.tolist())
    bar = progress.bar(visits, total=len(requests), label="features of training visits")
    examples = network.examples(bar, early, rng)
    final = tables.fit(logs, end_us, collaborative(logs, end_us, seed, threads))
    return Counts(network=network.fit(examples, final, TRAINING, seed))


def tables_end_us(logs: Logs) -> int:
    """The time by which `HISTORY_SHARE` of the training requests have passed. InputError if there is no request."""
    at_us = logs.request_at_us_R[logs.request_split_R == TRAIN]
    if not len(at_us):
        raise InputError("counts_network: the log has no training request; leave it out with --channels")
    return int(np.quantile(at_us, HISTORY_SHARE, method="higher"))


def training_visits(logs: Logs, from_us: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most `MAX_VISITS` training requests with an answer, from ``from_us`` on, drawn and ascending.

    InputError if there is none.
    """
    answers_R = np.diff(logs.relevant_offsets)
    requests = np.flatnonzero((logs.request_split_R == TRAIN) & (logs.request_at_us_R >= from_us) & (answers_R > 0))
    if not len(requests):
        raise InputError(
            f"counts_network: none of the last {1 - HISTORY_SHARE:.0%} of the training requests has a positive action;"
            " leave it out with --channels"
        )
    return np.sort(rng.choice(requests, size=min(MAX_VISITS, len(requests)), replace=False))


def collaborative(logs: Logs, before_us: int, seed: int, threads: int) -> Collaborative:
    """ALS and item-kNN, with the settings of their channels, from the events before ``before_us``."""
    counts_UO = train_counts(logs, before_us)
    return Collaborative(
        factors_OD=als.factorise(counts_UO, seed, threads),
        regularisation=als.REGULARISATION,
        alpha=als.ALPHA,
        similarity_OO=itemknn.similarities(counts_UO, threads),
    )


def load(folder: Path) -> Counts:
    """The channel that `save` wrote."""
    return Counts(network=network.load(folder))


COUNTS_NETWORK = Method(title="Counts network", settings=SETTINGS, fit=fit, load=load)
