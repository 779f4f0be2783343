"""The count of events decides: the more events of a topic a history has, the likelier is a click on that topic.

Each of `TOPICS` has 0, 1, 2, 4 or 8 events, drawn for each user and topic alone and in a random order, so histories
differ in length, and the share of a topic in a history is not its count. The log-odds of a click are ``BASE`` +
``STEP`` x log2(1 + n), n the number of events with the candidate's topic. In the control they are ``BASE`` +
``PRESENCE`` for any n above 0: whether there is an event decides, not how many.

Letters: R requests, C candidates, K topics, T events.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leadre.data.worlds import draws
from leadre.data.worlds.history import HistoryRows, objects_of, topics_of

TOPICS = 5
OBJECTS = 10  # of a topic
COUNTS = (0, 0, 1, 2, 4, 8)  # equally likely
EVENTS = TOPICS * max(COUNTS)  # of the longest history
BASE, STEP, PRESENCE = -3.0, 1.2, 2.5


def groups() -> dict[str, NDArray[np.int32]]:
    """The topic of each object as its category."""
    return {"category": topics_of(TOPICS, OBJECTS)}


def rows(requests: int, candidates: int, seed: int, *, counted: bool = True) -> HistoryRows:
    """Requests drawn independently by ``seed``; ``counted`` False is the control."""
    rng = np.random.default_rng(seed)
    count_RK = rng.choice(COUNTS, (requests, TOPICS))
    is_event_RKN = np.arange(max(COUNTS)) < count_RK[..., None]
    order_RT = np.where(is_event_RKN, rng.random(is_event_RKN.shape), -1).reshape(requests, EVENTS).argsort(1)
    topic_RT = order_RT // max(COUNTS)
    is_event_RT = np.take_along_axis(is_event_RKN.reshape(requests, EVENTS), order_RT, axis=1)
    topic_RC = rng.integers(0, TOPICS, (requests, candidates))
    count_RC = np.take_along_axis(count_RK, topic_RC, axis=1)
    strength_RC = STEP * np.log2(1 + count_RC) if counted else PRESENCE * (count_RC > 0)
    logit_RC = BASE + strength_RC.astype(np.float64)
    return HistoryRows(
        history_RT=objects_of(topic_RT, OBJECTS, rng) * is_event_RT,
        candidate_RC=objects_of(topic_RC, OBJECTS, rng),
        label_RC=draws.events(logit_RC, rng),
        logit_RC=logit_RC,
    )
