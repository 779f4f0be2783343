"""A user's interests as of a moment: what long ago and how much of it, and what lately, in both domains.

A *visit* is all that a user did at one instant (a basket, a page view). Nothing here reads an event at or after the
moment asked for. Letters: U users, E events, V visits, N objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadre.data.histories import Logs

DECAY_PER_VISIT = 0.985  # an interest halves in 46 visits; the best of a few values on the validation weeks


@dataclass(frozen=True)
class VisitIndex:
    """Events grouped by user and time. ``event_offsets`` [V + 1] into events, ``user_offsets`` [U + 1] into visits."""

    at_us_V: NDArray[np.int64]
    event_offsets: NDArray[np.int64]
    user_offsets: NDArray[np.int64]

    def of_user(self, user: int) -> range:
        """Indices of the user's visits, oldest first."""
        return range(int(self.user_offsets[user]), int(self.user_offsets[user + 1]))

    def events(self, visit: int) -> slice:
        """The visit's events."""
        return slice(int(self.event_offsets[visit]), int(self.event_offsets[visit + 1]))

    def before(self, user: int, at_us: int) -> int:
        """The first visit of the user at or after ``at_us``; those before it may be read."""
        start, end = int(self.user_offsets[user]), int(self.user_offsets[user + 1])
        return start + int(np.searchsorted(self.at_us_V[start:end], at_us, side="left"))


@dataclass(frozen=True)
class LongTerm:
    """Interests of one domain, the most informative first; arrays of N distinct objects.

    ``weight_N`` counts events with the object, each decayed by its age in visits; ``count_N`` counts them plainly.
    """

    objects_N: NDArray[np.int32]
    weight_N: NDArray[np.float64]
    count_N: NDArray[np.int64]
    last_us_N: NDArray[np.int64]
    money_nanos_N: NDArray[np.int64]


def group_visits(logs: Logs) -> VisitIndex:
    """Group the events of ``logs``, which are sorted by user and time."""
    events = len(logs.at_us_E)
    user_E = np.repeat(np.arange(len(logs.event_offsets) - 1), np.diff(logs.event_offsets))
    new_E = np.ones(events, np.bool_)
    new_E[1:] = (np.diff(user_E) != 0) | (np.diff(logs.at_us_E) != 0)
    starts = np.flatnonzero(new_E)
    user_offsets = np.searchsorted(user_E[starts], np.arange(len(logs.event_offsets)))
    return VisitIndex(logs.at_us_E[starts], np.append(starts, events), user_offsets)


def long_term(logs: Logs, visits: VisitIndex, user: int, end_visit: int, domain: int, most: int) -> LongTerm:
    """The ``most`` strongest interests of a user in ``domain`` (CONTENT or AD) in the visits before ``end_visit``."""
    first = int(visits.user_offsets[user])
    start, end = int(visits.event_offsets[first]), int(visits.event_offsets[end_visit])
    sizes = np.diff(visits.event_offsets[first : end_visit + 1])
    age = np.repeat(np.arange(end_visit - first)[::-1], sizes)
    mine = logs.domain_E[start:end] == domain
    objects, inverse = np.unique(logs.object_E[start:end][mine], return_inverse=True)
    weight = np.asarray(np.bincount(inverse, DECAY_PER_VISIT ** age[mine], minlength=len(objects)), np.float64)
    money = np.bincount(inverse, logs.value_nanos_E[start:end][mine], minlength=len(objects))
    last_us = np.zeros(len(objects), np.int64)
    np.maximum.at(last_us, inverse, logs.at_us_E[start:end][mine])
    order = np.lexsort((objects, -weight))[:most]
    count = np.bincount(inverse, minlength=len(objects))
    return LongTerm(objects[order], weight[order], count[order], last_us[order], money[order].astype(np.int64))
