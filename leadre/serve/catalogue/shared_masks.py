"""The ads that each imp of one request may show, from masks that requests of one catalogue version share.

Countries, block lists and sizes repeat from request to request. So the rules run once for each of their combinations;
a request then reads the masks at its candidates alone.

Letters: A ads, C campaigns, I imps of the request, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import reduce

import numpy as np

from leadre.serve.catalogue.columns import Bools, Ints

MAX_MASKS = 128  # of one kind
MAX_MASK_BYTES = 16 << 20  # of all masks of one kind


class SharedMasks:
    """Masks of one kind over all ads or all campaigns of a catalogue version, by the values that decide them.

    When they are too many, all are dropped: those that repeat are soon back.
    """

    def __init__(self) -> None:
        self._masks: dict[Hashable, Bools] = {}

    def get(self, key: Hashable, rules: Callable[[], Iterable[tuple[str, Bools]]], rows: int) -> Bools:
        """[``rows``] whether a row passes all rules. ``key``: everything that the rules read besides the catalogue.

        The mask of the key None is not kept.
        """
        mask = self._masks.get(key)
        if mask is None:
            mask = np.ones(rows, np.bool_)
            for _, passes in rules():
                mask &= passes
            if len(self._masks) >= min(MAX_MASKS, max(1, MAX_MASK_BYTES // max(rows, 1))):
                self._masks.clear()
            if key is not None:
                self._masks[key] = mask
        return mask


class Eligibility:
    """Which ads each imp of a request may show: campaign, ad and imp have to permit it."""

    def __init__(self, campaign_A: Ints, ok_C: Bools, ok_A: Bools, ok_IA: Sequence[Bools]) -> None:
        self._campaign_A = campaign_A
        self._ok_C = ok_C
        self._ok_A = ok_A
        self._ok_IA = ok_IA

    def at(self, rows_K: Ints) -> list[Bools]:
        """For each imp [K] whether it may show the ads of these rows."""
        ok_K = self._ok_C[self._campaign_A[rows_K]] & self._ok_A[rows_K]
        return [ok_K & imp_A[rows_K] for imp_A in self._ok_IA]

    def in_any_imp(self) -> Bools:
        """[A] whether an imp may show the ad."""
        none_A: Bools = np.zeros(len(self._ok_A), np.bool_)
        return reduce(np.logical_or, self._ok_IA, none_A) & self._ok_C[self._campaign_A] & self._ok_A
