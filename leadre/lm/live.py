"""The live inventory of a request as a trie. Training and serving ask here, so both mask with the same code."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from leadre.data.histories import Logs
from leadre.semid.codebook import Codebook
from leadre.semid.trie import Trie, build

CACHED_TRIES = 1024  # inventories; a trie of 450 objects takes about 30 kB


class Live:
    """Tries over the objects live in the requests of one log. Rows of a trie are indices into ``objects``."""

    def __init__(self, logs: Logs, codebook: Codebook) -> None:
        self.logs = logs
        self.codes_OL = codebook.codes_OL[codebook.rows(logs.objects["object_id"].to_list())]
        self.sizes = codebook.sizes
        self._inventory = lru_cache(maxsize=CACHED_TRIES)(self._of_inventory)

    def all(self, r: int) -> tuple[Trie, NDArray[np.int64]]:
        """(trie, objects): what is live in request ``r``; row ``n`` of the trie is object ``objects[n]``."""
        return self._inventory(int(self.logs.request_inventory_R[r]))

    def new(self, r: int) -> tuple[Trie, NDArray[np.int64]]:
        """The same without the objects that the user has in the log strictly before the request (prospecting)."""
        objects = np.setdiff1d(self.all(r)[1], self.logs.object_E[self.logs.history(r)])
        return build(self.codes_OL[objects], self.sizes), objects

    def _of_inventory(self, inventory: int) -> tuple[Trie, NDArray[np.int64]]:
        rows = slice(*self.logs.inventory_offsets[inventory : inventory + 2])
        objects = np.unique(self.logs.ad_object_A[self.logs.inventory_ads[rows]]).astype(np.int64)
        return build(self.codes_OL[objects], self.sizes), objects
