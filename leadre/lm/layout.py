"""ID layout of prompts: words, then semantic-ID codes, then whole objects, in one range of integers.

    0 .. words                      the tokenizer's own IDs
    words .. words + sum(sizes)     one row per code of each level (the output of the model)
    words + sum(sizes) ..           objects: one position, embedded as the sum of the object's codes (input only)

The tokenizer produces IDs of the first range only, so no text can encode to a code or an object: prompts are joined as
arrays, not as text. An object takes one position instead of one per code. Attention can then match a generated code
with the objects of the prompt in one step; a backbone of few layers cannot do so over codes in several positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Layout:
    """Sizes of the ranges: ``words`` token IDs, ``sizes[l]`` codes at level ``l``, any number of objects."""

    words: int
    sizes: tuple[int, ...]

    @property
    def codes(self) -> int:
        """Number of code rows S, over all levels."""
        return sum(self.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First row of each level among the S code rows: L + 1 numbers, of which the last is S."""
        return tuple(int(start) for start in np.cumsum([0, *self.sizes]))

    def rows(self, codes_NL: NDArray[np.integer]) -> NDArray[np.int64]:
        """Rows in [0, S) of codes that are counted within their level: int64 of the same shape, [..., L]."""
        starts_L = np.asarray(self.offsets[: codes_NL.shape[-1]], dtype=np.int64)
        return np.asarray(codes_NL + starts_L, dtype=np.int64)

    def code(self, rows: NDArray[np.integer]) -> Ids:
        """IDs of code rows."""
        return (self.words + np.asarray(rows)).astype(np.int32)

    def object(self, objects: NDArray[np.integer]) -> Ids:
        """IDs of whole objects, from object indices; `objects` is the inverse."""
        return (self.words + self.codes + np.asarray(objects)).astype(np.int32)

    def objects(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """Object index of each ID; negative for IDs of words and codes. The inverse of `object`."""
        return np.asarray(ids, np.int64) - self.words - self.codes
