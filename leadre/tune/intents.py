"""A user's long-term interests in one domain, weighted by how often and how lately they acted on each object.

An interest decays by visit, not by day, so a user who returns after a year has kept their interests.
Letters: E events, V visits, N objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadre.data.moment import History

DECAY_PER_VISIT = 0.985  # an interest halves in 46 visits; the best of a few values on the validation weeks


@dataclass(frozen=True)
class LongTerm:
    """Interests of one domain, the strongest first; arrays of N distinct objects.

    ``weight_N`` counts events with the object, each decayed by its age in visits; ``count_N`` counts them plainly.
    """

    objects_N: NDArray[np.int32]
    weight_N: NDArray[np.float64]
    count_N: NDArray[np.int64]
    last_us_N: NDArray[np.int64]
    money_nanos_N: NDArray[np.int64]


def long_term(history: History, end_visit: int, domain: int, limit: int) -> LongTerm:
    """The ``limit`` strongest interests in ``domain`` (CONTENT or AD), from the visits before ``end_visit``."""
    visit_offsets = history.visits.event_offsets[: end_visit + 1]
    end = int(visit_offsets[-1])
    age_E = np.repeat(np.arange(end_visit)[::-1], np.diff(visit_offsets))
    in_domain_E = history.domain_E[:end] == domain
    objects, row_E = np.unique(history.object_E[:end][in_domain_E], return_inverse=True)
    count = len(objects)
    weight = np.asarray(np.bincount(row_E, DECAY_PER_VISIT ** age_E[in_domain_E], minlength=count), np.float64)
    money = np.bincount(row_E, history.value_nanos_E[:end][in_domain_E], minlength=count)
    last_us = np.zeros(count, np.int64)
    np.maximum.at(last_us, row_E, history.at_us_E[:end][in_domain_E])
    events = np.bincount(row_E, minlength=count)
    order = np.lexsort((objects, -weight))[:limit]
    return LongTerm(objects[order], weight[order], events[order], last_us[order], money[order].astype(np.int64))
