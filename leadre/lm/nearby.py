"""The live objects near a history: those that the user's own counts can lift above popularity.

In an inventory of 10^4 objects and more, a user has acted on few, and on few of their categories and neighbours. The
counts network scores these; all other objects keep the score that it gives them for a user without a history, shifted
so that a few probes keep their summed probability. Of the inventory a request costs passes over arrays alone.

Letters: O objects, I live objects of one Moment, N live objects near its history.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from leadre.data.collaborative import CollaborativeUser, Spread, spread_of
from leadre.data.counts import POPULARITY, CountTables
from leadre.data.moment import LiveInventory, Moment

LARGE = 8_192  # live objects; smaller inventories are scored whole
NEIGHBOURS = 1_500  # live neighbours of the history, the nearest ones
HEADS = 8  # live objects of each category of the history, the most popular ones
PROBES = 256  # objects that show how a user's scores differ from those without a history


@dataclass(frozen=True, kw_only=True)
class Nearby:
    """The objects near a history in the catalogue of ``tables``."""

    tables: CountTables

    @cached_property
    def spread(self) -> Spread:
        """Of the ALS factors of the catalogue: it takes the place of that of each inventory."""
        factors_OD = self.tables.collaborative.factors_OD
        return spread_of(factors_OD, np.arange(len(factors_OD)))

    @cached_property
    def heads(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(objects by category and descending rate, the first of them of each category and their number at the end)."""
        category_O = self.tables.group_GO[0]
        rate_O = self.tables.popularity_OP[:, POPULARITY.index("rate")]
        order = np.lexsort((-rate_O, category_O)).astype(np.int64)
        return order, np.searchsorted(category_O[order], np.arange(int(category_O.max(initial=0)) + 2))

    def catalogue(self) -> LiveInventory:
        """An inventory of all objects."""
        none = np.zeros(0, np.int32)
        return LiveInventory(objects=np.arange(len(self.tables.popularity_OP)), ads=none, ad_object=none)

    def objects(
        self, moment: Moment, user: CollaborativeUser, others: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(objects near the history, probes and ``others``, distinct and ascending [N]; those that are probes alone).

        All are live. Probes are spread evenly over the live objects.
        """
        live = moment.inventory.objects
        is_live_O = np.zeros(len(self.tables.popularity_OP), np.bool_)
        is_live_O[live] = True
        acted = moment.history.object_E.astype(np.int64)
        kind_O = np.zeros(len(is_live_O), np.int8)
        kind_O[live[np.linspace(0, len(live) - 1, PROBES).astype(np.int64)]] = 1
        kind_O[np.concatenate([acted, self._neighbours(user, is_live_O), self._popular(acted, is_live_O), others])] = 2
        near = live[kind_O[live] > 0]
        return near, kind_O[near] == 1

    def _neighbours(self, user: CollaborativeUser, is_live_O: NDArray[np.bool_]) -> NDArray[np.int64]:
        near_O = np.bincount(user.near_N, weights=user.weight_N, minlength=len(is_live_O))
        near = np.flatnonzero((near_O > 0) & is_live_O)
        if len(near) > NEIGHBOURS:
            near = near[np.argpartition(-near_O[near], NEIGHBOURS)[:NEIGHBOURS]]
        return near

    def _popular(self, acted: NDArray[np.int64], is_live_O: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The most popular live objects of the categories of ``acted``."""
        order, start_C = self.heads
        categories = np.unique(self.tables.group_GO[0][acted])
        categories = categories[categories > 0]
        first = start_C[categories]
        size = start_C[categories + 1] - first
        before = np.cumsum(size) - size
        members: NDArray[np.int64] = order[np.arange(int(size.sum())) + np.repeat(first - before, size)]
        is_live = is_live_O[members]
        live_before = np.concatenate([[0], np.cumsum(is_live)])
        place = live_before[:-1] - np.repeat(live_before[before], size)  # among the live ones of its category
        popular: NDArray[np.int64] = members[is_live & (place < HEADS)]
        return popular
