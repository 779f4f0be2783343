"""Few of many live ads fit a user: several interests, popularity, and objects that the user had before.

A user has `INTERESTS` of `TOPICS`; an event is an object of one of them, drawn by popularity. The live ads of a request
are drawn evenly from all objects. The log-odds of a click are ``BASE``, ``POPULAR`` times the object's popularity,
``TOPIC`` more if its topic is in the history, and ``OWN`` x log(1 + n) for n events on the object itself. Topic and
popularity are a product of few dimensions, which two towers can express; an event on the same object is none.

Letters: R requests, C candidates, T events, O objects, of which row 0 is none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leadre.data.worlds import draws
from leadre.data.worlds.history import HistoryRows, topics_of

TOPICS = 48
OBJECTS = 20  # of a topic
INTERESTS = 4
BASE, POPULAR, TOPIC, OWN = -6.0, 0.8, 2.5, 0.5


def groups() -> dict[str, NDArray[np.int32]]:
    """The topic of each object as its category."""
    return {"category": topics_of(TOPICS, OBJECTS)}


def popularity() -> NDArray[np.float64]:
    """Popularity [O] of the objects, the same in every draw of rows; mean 0, standard deviation 1."""
    return np.append(0.0, np.random.default_rng(0).normal(size=TOPICS * OBJECTS))


def rows(requests: int, events: int, candidates: int, seed: int) -> HistoryRows:
    """Requests drawn independently by ``seed``."""
    rng = np.random.default_rng(seed)
    popularity_O = popularity()
    order_RK = rng.permuted(np.repeat(np.arange(TOPICS)[None], requests, axis=0), axis=1)
    which_RT = rng.integers(0, INTERESTS, (requests, events))
    topic_RT = np.take_along_axis(order_RK, which_RT, axis=1)
    below_KV = np.exp(popularity_O[1:]).reshape(TOPICS, OBJECTS).cumsum(1)
    draw_RT = rng.random((requests, events)) * below_KV[topic_RT, -1]
    history_RT = 1 + OBJECTS * topic_RT + (below_KV[topic_RT] <= draw_RT[..., None]).sum(2)
    every_RO = np.repeat(np.arange(1, TOPICS * OBJECTS + 1)[None], requests, axis=0)
    candidate_RC = rng.permuted(every_RO, axis=1)[:, :candidates]
    own_RC, topic_RC = (
        counts(group_O[history_RT], group_O[candidate_RC])
        for group_O in (np.arange(len(popularity_O)), groups()["category"])
    )
    logit_RC = BASE + POPULAR * popularity_O[candidate_RC] + TOPIC * (topic_RC > 0) + OWN * np.log1p(own_RC)
    return HistoryRows(
        history_RT=history_RT.astype(np.int32),
        candidate_RC=candidate_RC.astype(np.int32),
        label_RC=draws.events(logit_RC, rng),
        logit_RC=logit_RC,
    )


def counts(group_RT: NDArray[np.integer], group_RC: NDArray[np.integer]) -> NDArray[np.int64]:
    """The number of events with the group of each candidate, [R, C]."""
    size = 1 + int(max(group_RT.max(), group_RC.max()))
    count_RG = np.zeros((len(group_RT), size), np.int64)
    np.add.at(count_RG, (np.arange(len(group_RT))[:, None], group_RT), 1)
    return np.take_along_axis(count_RG, group_RC.astype(np.int64), axis=1)
