"""A long history decides: evidence for half of the interests lies far back, among many events without any.

A user has `INTERESTS` of `TOPICS`. An event is one of `COMMON` topics that all users share, or with probability
``SIGNAL`` of an interest of its time: the first half of the interests lies before the newest ``recent`` events, the
second half in them. Half of the candidates have a topic of the interests, the others any that is none. The log-odds of
a click are ``BASE``, and ``LOGIT`` more if the candidate's topic is in the history.

Letters: R requests, C candidates, T events.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leadre.data.worlds import draws
from leadre.data.worlds.history import HistoryRows, objects_of, topics_of

TOPICS = 40
COMMON = 8
OBJECTS = 20  # of a topic
INTERESTS = 8
SIGNAL = 0.2
BASE, LOGIT = -2.0, 4.0


def groups() -> dict[str, NDArray[np.int32]]:
    """The topic of each object as its category."""
    return {"category": topics_of(TOPICS + COMMON, OBJECTS)}


def rows(requests: int, events: int, recent: int, candidates: int, seed: int) -> HistoryRows:
    """Requests drawn independently by ``seed``."""
    assert 0 < recent < events, (recent, events)
    rng = np.random.default_rng(seed)
    order_RK = rng.permuted(np.repeat(np.arange(TOPICS)[None], requests, axis=0), axis=1)
    half = INTERESTS // 2
    which_RT = rng.integers(0, half, (requests, events)) + half * (np.arange(events) >= events - recent)
    topic_RT = np.take_along_axis(order_RK, which_RT, axis=1)
    is_common_RT = rng.random((requests, events)) >= SIGNAL
    topic_RT = np.where(is_common_RT, TOPICS + rng.integers(0, COMMON, (requests, events)), topic_RT)
    is_interest_RC = rng.random((requests, candidates)) < 0.5
    other_RC = rng.integers(INTERESTS, TOPICS, (requests, candidates))
    place_RC = np.where(is_interest_RC, rng.integers(0, INTERESTS, (requests, candidates)), other_RC)
    topic_RC = np.take_along_axis(order_RK, place_RC, axis=1)
    logit_RC = BASE + LOGIT * (topic_RT[:, None] == topic_RC[..., None]).any(2)
    return HistoryRows(
        history_RT=objects_of(topic_RT, OBJECTS, rng),
        candidate_RC=objects_of(topic_RC, OBJECTS, rng),
        label_RC=draws.events(logit_RC, rng),
        logit_RC=logit_RC,
    )
