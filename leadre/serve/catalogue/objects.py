"""The objects that the language model knows, beside the ads of the book that show them.

The model answers with marketing objects; several ads may show one, and an ad may show one that the model has not met,
which then comes from lists and context alone. Letters: A ads of the book, O objects of the model, K results.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leadre.types import Ad


class ObjectIndex:
    """Objects by the model's numbers, for the ads of one book."""

    def __init__(self, object_ids: Sequence[str], ads: Sequence[Ad], version: str) -> None:
        self.ids, self.ads, self.version = object_ids, ads, version
        number = {object_id: o for o, object_id in enumerate(object_ids)}
        self.object_A = np.array([number.get(ad.object_id, -1) for ad in ads], np.int64)
        self._by_object = np.argsort(self.object_A, kind="stable")
        self._starts = np.searchsorted(self.object_A[self._by_object], np.arange(len(object_ids) + 1))

    def bits(self, eligible_A: NDArray[np.bool_]) -> bytes:
        """A bit for each object: whether an eligible ad shows it (`numpy.packbits`)."""
        shown = self.object_A[eligible_A]
        eligible_O = np.zeros(len(self.ids), np.bool_)
        eligible_O[shown[shown >= 0]] = True
        return np.packbits(eligible_O).tobytes()

    def ads_of(
        self, objects: Sequence[int], log_p: Sequence[float], eligible_A: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(rows of eligible ads [K], log-probabilities [K]) of objects, in their order."""
        rows = [self._by_object[self._starts[o] : self._starts[o + 1]] for o in objects]
        rows_K = np.concatenate([np.zeros(0, np.int64), *rows])
        log_p_K = np.repeat(np.array(log_p, np.float64), [len(each) for each in rows])
        kept_K = eligible_A[rows_K]
        return rows_K[kept_K], log_p_K[kept_K]
