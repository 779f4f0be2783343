"""Objects of the language model, and the ads of a catalogue snapshot that show them.

The model generates marketing objects. Several ads may show the same object; an ad of an object that is unknown to the
model, until the model server has an ID for it, is found by lists and context only. Letters: A ads of the snapshot, O
objects of the model, K results.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leadre.types import Ad


class ObjectIndex:
    """Object numbers of the model, for the ads of one snapshot."""

    def __init__(self, object_ids: Sequence[str], ads: Sequence[Ad], version: str) -> None:
        self.ids = object_ids
        self.ads = ads
        self.version = version
        object_numbers = {object_id: o for o, object_id in enumerate(object_ids)}
        self.object_A = np.array([object_numbers.get(ad.object_id, -1) for ad in ads], np.int64)
        self._by_object = np.argsort(self.object_A, kind="stable")
        self._starts = np.searchsorted(self.object_A[self._by_object], np.arange(len(object_ids) + 1))

    def bits(self, eligible_A: NDArray[np.bool_]) -> bytes:
        """A bit for each object, set if an eligible ad shows it (`numpy.packbits`)."""
        shown = self.object_A[eligible_A]
        eligible_O = np.zeros(len(self.ids), np.bool_)
        eligible_O[shown[shown >= 0]] = True
        return np.packbits(eligible_O).tobytes()

    def ads_of(
        self, objects: Sequence[int], log_p: Sequence[float], eligible_A: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(rows [K] of eligible ads, log-probabilities [K]) of objects, in the order of the objects."""
        rows_of_objects = [self._by_object[self._starts[o] : self._starts[o + 1]] for o in objects]
        rows_K = np.concatenate([np.zeros(0, np.int64), *rows_of_objects])
        log_p_K = np.repeat(np.array(log_p, np.float64), [len(rows) for rows in rows_of_objects])
        kept_K = eligible_A[rows_K]
        return rows_K[kept_K], log_p_K[kept_K]
