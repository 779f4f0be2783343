"""Rows of a law in which a history decides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class HistoryRows:
    """R requests: objects of the history, oldest first, of the candidates, labels, and their log-odds.

    Objects count from 1 on, as row 0 of a table is for unseen values; a short history has 0 before its first event.
    ``logit_RC`` are the best log-odds that history and candidate allow.
    """

    history_RT: NDArray[np.int32]
    candidate_RC: NDArray[np.int32]
    label_RC: NDArray[np.bool_]
    logit_RC: NDArray[np.float64]


def objects_of(topic: NDArray[np.int64], objects: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Objects of topics from 0 on, each of which has ``objects``, drawn evenly."""
    drawn: NDArray[np.int32] = (1 + objects * topic + rng.integers(0, objects, topic.shape)).astype(np.int32)
    return drawn


def topics_of(topics: int, objects: int) -> NDArray[np.int32]:
    """The topic of each object of `objects_of`, from 1 on; row 0 is no object."""
    return np.concatenate([[0], np.repeat(np.arange(topics) + 1, objects)]).astype(np.int32)
