"""Ad ID -> its row in a catalogue snapshot, for one ad or for the list of a user."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import numpy as np

from leadre.serve.catalogue.columns import Ints
from leadre.types import Ad

MAX_LISTS = 1024  # whose rows are kept, of users who were seen lately: a user often sends several requests


class AdRows(dict[str, int]):
    """Ad ID -> row. A look-up in a large catalogue mostly misses the processor's cache, so the rows of lists are kept.

    When there are too many lists, all are dropped: those of users who are here are soon back.
    """

    def __init__(self, ads: Sequence[Ad]) -> None:
        super().__init__((ad.ad_id, row) for row, ad in enumerate(ads))
        self._lists: dict[tuple[str, ...], tuple[Ints, bool]] = {}

    def of(self, ad_ids: tuple[str, ...]) -> tuple[Ints, bool]:
        """([K] the rows of ads, -1 for an unknown one; whether all are known). The array must not be changed."""
        entry = self._lists.get(ad_ids)
        if entry is None:
            rows_K = np.fromiter(map(self.get, ad_ids, repeat(-1)), np.int64, len(ad_ids))
            rows_K.flags.writeable = False
            entry = rows_K, bool((rows_K >= 0).all())
            if len(self._lists) >= MAX_LISTS:
                self._lists.clear()
            self._lists[ad_ids] = entry
        return entry
