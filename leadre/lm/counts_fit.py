"""Fit of the counts network: as a rival of the language model (a channel), and as its prior.

Everything is fitted forward in time: the count tables of the training visits end before the first of them. A prior that
has seen the answers of a training visit would leave nothing to learn there, so there are networks that have not seen a
group of users, with these tables, beside the network of all users, with the tables of the end of training. Some of the
training visits count once more with a part of their history: users of whom little is known are rare among them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from leadre import artifact, progress
from leadre.data import collaborative_fit
from leadre.data import counts as tables
from leadre.data.histories import TRAIN, train_end_us
from leadre.data.moment import Moments, of_requests
from leadre.errors import InputError
from leadre.lm import counts
from leadre.lm.counts import Training
from leadre.lm.counts_networks import FOLDS, CountsNetworks, load

if TYPE_CHECKING:
    from leadre.data.histories import Logs

NAME = "counts_network"  # of the channel and its folder
HISTORY_SHARE = 0.65  # of the training requests: the tables of the training visits end with them
MAX_VISITS = 7_000
SHORT_SHARE = 0.5  # of the training visits: once more, with a shortened history
EMPTY_SHARE = 0.15  # of the shortened histories
TRAINING = Training()
SETTINGS: Mapping[str, object] = {
    "history_share": HISTORY_SHARE,
    "max_visits": MAX_VISITS,
    "short_share": SHORT_SHARE,
    "empty_share": EMPTY_SHARE,
    "folds": FOLDS,
    **dataclasses.asdict(TRAINING),
}


def current(folder: Path, logs: Logs, data: artifact.Artifact, *, seed: int, threads: int) -> CountsNetworks:
    """The fit of ``logs``, those of ``data``, from ``folder``; if it is not current there, fit and write it first."""
    settings = {"channel": NAME, **SETTINGS}
    output = artifact.Output(folder=folder, kind=artifact.CHANNEL, config=settings, seed=seed, parents=[data])
    if not output.is_current():
        with output.create() as temporary:
            fit(logs, seed, threads).save(temporary)
    return load(folder)


def fit(logs: Logs, seed: int, threads: int) -> CountsNetworks:
    """Train on the last third of the training visits; at most `MAX_VISITS`, drawn by the seed.

    InputError if the log has no such visits.
    """
    rng = np.random.default_rng(seed)
    end_us = train_end_us(logs)
    before_us = tables_end_us(logs)
    early = tables.fit(logs, before_us, collaborative_fit.fit(logs, before_us, seed, threads))
    requests = training_visits(logs, before_us, rng)
    moments = of_requests(logs)
    short = requests[rng.random(len(requests)) < SHORT_SHARE]
    every = np.concatenate([requests, short])
    shown = itertools.chain(moments.at(requests), shortened(moments, short, rng).at(short))
    visits = ((moment, logs.ad_object_A[logs.relevant(r)[0]]) for moment, r in zip(shown, every.tolist(), strict=True))
    examples = counts.examples(progress.bar(visits, total=len(every), label="features of training visits"), early, rng)
    final = tables.fit(logs, end_us, collaborative_fit.fit(logs, end_us, seed, threads))
    full = counts.fit(examples, final, TRAINING, seed)
    fold_V = logs.request_user_R[every] % FOLDS
    # with visits of one fold alone, the other's network has nothing to learn from; then it learns from all
    others = (examples.of(fold_V != fold) if (fold_V != fold).any() else examples for fold in range(FOLDS))
    held_out = tuple(counts.fit(part, early, TRAINING, seed) for part in others)  # the examples of one fold at a time
    return CountsNetworks(full=full, held_out=held_out)


def shortened(moments: Moments, rows: NDArray[np.int64], rng: np.random.Generator) -> Moments:
    """The same moments, those at ``rows`` with a number of last visits alone: drawn in equal ratios from none to all.

    `EMPTY_SHARE` of them have an empty history.
    """
    visits_N = (moments.visits_before() - moments.first_visits())[rows]
    kept_N = np.exp(rng.uniform(0, np.log(visits_N + 1))).astype(np.int64) - 1
    kept_N[rng.random(len(rows)) < EMPTY_SHARE] = 0
    kept_M = np.full(len(moments), len(moments.visits))
    kept_M[rows] = kept_N
    return moments.last_visits(kept_M)


def tables_end_us(logs: Logs) -> int:
    """The time by which `HISTORY_SHARE` of the training requests have passed. InputError if there is no request."""
    at_us = logs.request_at_us_R[logs.request_split_R == TRAIN]
    if not len(at_us):
        raise InputError(f"{NAME}: the log has no training request; leave it out with --channels")
    return int(np.quantile(at_us, HISTORY_SHARE, method="higher"))


def training_visits(logs: Logs, from_us: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most `MAX_VISITS` training requests with an answer, from ``from_us`` on, drawn and ascending.

    InputError if there is none.
    """
    answers_R = np.diff(logs.relevant_offsets)
    requests = np.flatnonzero((logs.request_split_R == TRAIN) & (logs.request_at_us_R >= from_us) & (answers_R > 0))
    if not len(requests):
        raise InputError(
            f"{NAME}: none of the last {1 - HISTORY_SHARE:.0%} of the training requests has a positive action;"
            " leave it out with --channels"
        )
    return np.sort(rng.choice(requests, size=min(MAX_VISITS, len(requests)), replace=False))
