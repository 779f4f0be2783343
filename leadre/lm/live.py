"""The live inventory of a request as a trie. Training and serving ask here, so both mask with the same code.

Each live object weighs in with how often it was acted on when it was live, so a model whose scores say nothing answers
with popularity, and a model has only to learn where a user departs from it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from leadre.data.histories import TRAIN, Logs
from leadre.semid.codebook import Codebook
from leadre.semid.trie import Trie, build

CACHED_TRIES = 1024  # inventories; a trie of 450 objects takes about 30 kB
PSEUDO_ACTIONS = 2.0  # an object seldom live is drawn to the mean rate as if it had been acted on twice more


class Live:
    """Tries over the objects live in the requests of one log. Rows of a trie are indices into ``objects``.

    ``prior`` weighs the objects by their `response_rates`; without it every live code starts alike.
    """

    def __init__(self, logs: Logs, codebook: Codebook, *, prior: bool = True) -> None:
        self.logs = logs
        self.rates_O = response_rates(logs) if prior else None
        self.codes_OL = codebook.codes_OL[codebook.rows(logs.objects["object_id"].to_list())]
        self.sizes = codebook.sizes
        self._inventory = lru_cache(maxsize=CACHED_TRIES)(self._of_inventory)

    def all(self, r: int) -> tuple[Trie, NDArray[np.int64]]:
        """(trie, objects): what is live in request ``r``; row ``n`` of the trie is object ``objects[n]``."""
        return self._inventory(int(self.logs.request_inventory_R[r]))

    def new(self, r: int) -> tuple[Trie, NDArray[np.int64]]:
        """The same without the objects that the user has in the log strictly before the request (prospecting)."""
        objects = np.setdiff1d(self.all(r)[1], self.logs.object_E[self.logs.history(r)])
        return self._trie(objects), objects

    def _of_inventory(self, inventory: int) -> tuple[Trie, NDArray[np.int64]]:
        objects = _objects(self.logs, inventory)
        return self._trie(objects), objects

    def _trie(self, objects: NDArray[np.int64]) -> Trie:
        weights = None if self.rates_O is None else self.rates_O[objects]
        return build(self.codes_OL[objects], self.sizes, weights)


def _objects(logs: Logs, inventory: int) -> NDArray[np.int64]:
    """The objects of the ads in an inventory, ascending."""
    rows = slice(*logs.inventory_offsets[inventory : inventory + 2])
    return np.unique(logs.ad_object_A[logs.inventory_ads[rows]]).astype(np.int64)


def response_rates(logs: Logs) -> NDArray[np.float64]:
    """Share of the training requests with an object live in which it was acted on, smoothed: float64 [O], all > 0.

    An object that was never live, such as a new ad, gets the mean rate.
    """
    count = len(logs.objects)
    train_R = logs.requests_of(TRAIN)
    live_O, acted_O = np.zeros(count), np.zeros(count)
    inventories, times = np.unique(logs.request_inventory_R[train_R], return_counts=True)
    for inventory, requests in zip(inventories, times, strict=True):
        live_O[_objects(logs, inventory)] += requests
    for r in train_R:
        acted_O[np.unique(logs.ad_object_A[logs.relevant(r)[0]])] += 1
    mean = max(acted_O.sum(), 1.0) / max(live_O.sum(), 1.0)
    rates: NDArray[np.float64] = (acted_O + PSEUDO_ACTIONS) / (live_O + PSEUDO_ACTIONS / mean)
    return rates
