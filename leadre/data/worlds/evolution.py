"""The order of events decides: a user's interest moves from topic to topic, and a click follows its last move.

The interest is one of `TOPICS` in a circle. Between two events it stays with probability ``STAY``, and otherwise moves
on by 1, 2 or 3. An event is an object of the interest, with probability ``NOISE`` one of any topic. The log-odds of a
click are ``BASE``, and ``LOGIT`` more for a candidate of the interest after the last event, or of the topic that
continues the last move: 2 on after a move of 2. Candidates have topics from 3 behind that of the last event to 3 before
it, so about half of them are topics that the user has left.

The best log-odds come from the probability of interest and last move after all events (the forward algorithm of a
hidden Markov chain). Shuffled histories are the control: they have the same events in an order without meaning.

Letters: R requests, C candidates, T events, S states: interest and last move.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leadre.data.worlds import draws
from leadre.data.worlds.history import HistoryRows, objects_of, topics_of

TOPICS = 12
OBJECTS = 5  # of a topic
MOVES = 4  # 0: none yet; 1, 2, 3
STAY = 0.8
NOISE = 0.1
BASE, LOGIT = -2.0, 4.0
NEAR = 3  # topics before and behind the last event that candidates have

Floats = NDArray[np.float64]


def groups() -> dict[str, NDArray[np.int32]]:
    """The topic of each object as its category."""
    return {"category": topics_of(TOPICS, OBJECTS)}


def rows(requests: int, events: int, candidates: int, seed: int, *, shuffled: bool = False) -> HistoryRows:
    """Requests drawn independently by ``seed``. ``logit_RC`` are those of the order before shuffling."""
    rng = np.random.default_rng(seed)
    interest_R = rng.integers(0, TOPICS, requests)
    move_R = np.zeros(requests, np.int64)
    topic_RT = np.zeros((requests, events), np.int64)
    for t in range(events):
        moves_R = (rng.random(requests) >= STAY) * (t > 0)
        move_R = np.where(moves_R, rng.integers(1, MOVES, requests), move_R)
        interest_R = (interest_R + moves_R * move_R) % TOPICS
        is_noise_R = rng.random(requests) < NOISE
        topic_RT[:, t] = np.where(is_noise_R, rng.integers(0, TOPICS, requests), interest_R)
    topic_RC = (topic_RT[:, -1:] + rng.integers(-NEAR, NEAR + 1, (requests, candidates))) % TOPICS
    label_RC = draws.events(_logit(topic_RC - interest_R[:, None], move_R[:, None]), rng)
    p_RC = click_probabilities(topic_RT, topic_RC)
    history_RT = objects_of(topic_RT, OBJECTS, rng)
    return HistoryRows(
        history_RT=rng.permuted(history_RT, axis=1) if shuffled else history_RT,
        candidate_RC=objects_of(topic_RC, OBJECTS, rng),
        label_RC=label_RC,
        logit_RC=np.log(p_RC / (1 - p_RC)),
    )


def click_probabilities(topic_RT: NDArray[np.int64], topic_RC: NDArray[np.int64]) -> Floats:
    """The probability [R, C] of a click on candidates of topics, after events of topics."""
    interest_S = np.repeat(np.arange(TOPICS), MOVES)
    move_S = np.tile(np.arange(MOVES), TOPICS)
    reached_SS = interest_S[None] == (interest_S[:, None] + move_S[None]) % TOPICS
    next_SS = STAY * np.eye(TOPICS * MOVES) + (1 - STAY) / (MOVES - 1) * (reached_SS & (move_S > 0))
    p_RS = np.repeat((move_S == 0)[None] / TOPICS, len(topic_RT), axis=0)
    for t in range(topic_RT.shape[1]):
        p_RS = p_RS @ next_SS if t else p_RS
        p_RS = p_RS * (NOISE / TOPICS + (1 - NOISE) * (interest_S == topic_RT[:, t, None]))
        p_RS /= p_RS.sum(1, keepdims=True)
    ahead_VS = np.arange(TOPICS)[:, None] - interest_S
    p_VS = 1 / (1 + np.exp(-_logit(ahead_VS, move_S)))
    probability: Floats = np.take_along_axis(p_RS @ p_VS.T, topic_RC, axis=1)
    return probability


def _logit(ahead: NDArray[np.int64], move: NDArray[np.int64]) -> Floats:
    """Log-odds of a click on a topic so far ahead of the interest, after a move."""
    logit: Floats = BASE + LOGIT * ((ahead % TOPICS == 0) | (ahead % TOPICS == move))
    return logit
