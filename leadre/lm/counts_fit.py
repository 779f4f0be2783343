"""Fit of the counts network: as a rival of the language model (a channel), and as its prior.

Everything is fitted forward in time: the count tables of the training visits end before the first of them. A prior that
has seen the answers of a training visit would leave nothing to learn there, so there are networks that have not seen a
group of users, with these tables, beside the network of all users, with the tables of the end of training. Some of the
training visits count once more with a part of their history: users of whom little is known are rare among them.

The prior may read a sequence model beside the counts. It is fitted forward in time too: SASRec of the events before the
training visits for the networks of training, the channel SASRec for all other requests.
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
from leadre.data.histories import TRAIN, VALID, train_end_us
from leadre.data.moment import Moments, of_requests
from leadre.errors import InputError
from leadre.lm import counts, sasrec_fit
from leadre.lm.counts import CountsNetwork, Training
from leadre.lm.counts_networks import FOLDS, CountsNetworks, load
from leadre.lm.fits import Method

if TYPE_CHECKING:
    from leadre.data.histories import Logs
    from leadre.lm.sasrec import SasRec

NAME = "counts_network"  # of the channel and its folder
NAME_WITH_SEQUENCE = "counts_sequence"  # of the folder of the networks that read SASRec
HISTORY_SHARE = 0.65  # of the training requests: the tables of the training visits end with them
MAX_VISITS = 7_000
SHORT_SHARE = 0.5  # of the training visits: once more, with a shortened history
EMPTY_SHARE = 0.15  # of the shortened histories
MIXTURE_VISITS = 2_000  # validation visits that weigh the network and a sequence model
TRAINING = Training()
SETTINGS: Mapping[str, object] = {
    "history_share": HISTORY_SHARE,
    "max_visits": MAX_VISITS,
    "short_share": SHORT_SHARE,
    "empty_share": EMPTY_SHARE,
    "folds": FOLDS,
    **dataclasses.asdict(TRAINING),
}


def current(
    channels: Path, logs: Logs, data: artifact.Artifact, *, sequence: bool, seed: int, threads: int
) -> CountsNetworks:
    """The networks of ``logs``, those of ``data``, from the folder of fitted ``channels``; missing ones are fitted.

    ``sequence``: the networks read SASRec as well.
    """
    if not sequence:
        return COUNTS.current(channels / NAME, logs, data, seed=seed, threads=threads)

    def fit_both(logs: Logs, seed: int, threads: int) -> CountsNetworks:
        final = sasrec_fit.SASREC.current(channels / "sasrec", logs, data, seed=seed, threads=threads)
        return fit(logs, seed, threads, sequence=final)

    settings = {**SETTINGS, "sequence": sasrec_fit.SETTINGS, "mixture_visits": MIXTURE_VISITS}
    both = Method(settings=settings, fit=fit_both, load=load)
    return both.current(channels / NAME_WITH_SEQUENCE, logs, data, seed=seed, threads=threads)


def fit(logs: Logs, seed: int, threads: int, sequence: SasRec | None = None) -> CountsNetworks:
    """Train on the last third of the training visits; at most `MAX_VISITS`, drawn by the seed.

    ``sequence``: SASRec of ``logs``, if the networks read it; one of the time before the visits is fitted then.
    InputError if the log has no such visits.
    """
    rng = np.random.default_rng(seed)
    end_us = train_end_us(logs)
    before_us = tables_end_us(logs)
    early = tables.fit(logs, before_us, collaborative_fit.fit(logs, before_us, seed, threads))
    early_sequence = None if sequence is None else earlier(sequence, logs, before_us, seed, threads)
    requests = training_visits(logs, before_us, rng)
    moments = of_requests(logs)
    short = requests[rng.random(len(requests)) < SHORT_SHARE]
    every = np.concatenate([requests, short])
    shown = itertools.chain(moments.at(requests), shortened(moments, short, rng).at(short))
    visits = ((moment, logs.ad_object_A[logs.relevant(r)[0]]) for moment, r in zip(shown, every.tolist(), strict=True))
    tracked = progress.bar(visits, total=len(every), label="features of training visits")
    examples = counts.examples(tracked, early, rng, early_sequence)
    final = tables.fit(logs, end_us, collaborative_fit.fit(logs, end_us, seed, threads))
    full = counts.fit(examples, final, TRAINING, seed, sequence)
    if sequence is not None:
        full = mixed_on_validation(full, logs, moments, rng)
    fold_V = logs.request_user_R[every] % FOLDS
    # with visits of one fold alone, the other's network has nothing to learn from; then it learns from all
    others = (examples.of(fold_V != fold) if (fold_V != fold).any() else examples for fold in range(FOLDS))
    # a generator: the examples of one fold at a time
    fits = (counts.fit(part, early, TRAINING, seed, early_sequence) for part in others)
    return CountsNetworks(full=full, held_out=tuple(dataclasses.replace(part, mixture=full.mixture) for part in fits))


def mixed_on_validation(
    network: CountsNetwork, logs: Logs, moments: Moments, rng: np.random.Generator
) -> CountsNetwork:
    """The network with its weights of network and sequence model, chosen on at most `MIXTURE_VISITS` validation visits.

    Without such visits it stays as it is.
    """
    requests = logs.requests_of(VALID)
    requests = requests[np.diff(logs.relevant_offsets)[requests] > 0]
    if not len(requests):
        return network
    requests = np.sort(rng.choice(requests, size=min(MIXTURE_VISITS, len(requests)), replace=False))
    visits = (
        (moment, logs.ad_object_A[logs.relevant(r)[0]])
        for moment, r in zip(moments.at(requests), requests.tolist(), strict=True)
    )
    return counts.mixed(network, counts.examples(visits, network.tables, rng, network.sequence), TRAINING)


COUNTS = Method(settings=SETTINGS, fit=fit, load=load)


def ending(logs: Logs, end_us: int) -> Logs:
    """The same log whose training time ends at ``end_us``.

    Training requests from then on are held out; those before it lose the actions that came later.
    """
    is_late_R = logs.request_at_us_R >= end_us
    split_R = np.where(is_late_R & (logs.request_split_R == TRAIN), VALID, logs.request_split_R).astype(np.int8)
    ads = len(logs.ads)
    known_E = (logs.request_E >= 0) & (logs.ad_E >= 0) & (logs.at_us_E < end_us)
    known = logs.request_E[known_E].astype(np.int64) * ads + logs.ad_E[known_E]
    request_N = np.repeat(np.arange(len(is_late_R)), np.diff(logs.relevant_offsets))
    kept_N = is_late_R[request_N] | np.isin(request_N * ads + logs.relevant_ads, known)
    return dataclasses.replace(
        logs,
        request_split_R=split_R,
        relevant_offsets=np.concatenate([[0], np.cumsum(kept_N)])[logs.relevant_offsets],
        relevant_ads=logs.relevant_ads[kept_N],
        relevant_value_nanos=logs.relevant_value_nanos[kept_N],
    )


def earlier(final: SasRec, logs: Logs, end_us: int, seed: int, threads: int) -> SasRec:
    """SASRec as it would have been at ``end_us``: trained on events before it, in the shape of the ``final`` one."""
    early = sasrec_fit.train(ending(logs, end_us), seed=seed, threads=threads, shape=final.shape)
    return dataclasses.replace(early, repeats=final.repeats)


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
