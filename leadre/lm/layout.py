"""ID layout of prompts: words, then semantic-ID codes, then whole objects, in one range of integers.

    0 .. words                      the tokenizer's own IDs
    words .. words + sum(sizes)     one row per code of each level (the output of the model)
    words + sum(sizes) ..           objects: one position, embedded as the sum of the object's codes (input only)

The tokenizer does not know the last two ranges, so no text can spell an ID: prompts are joined as arrays, not as text.
An object in one position costs a third of the tokens of three codes, and attention matches a generated code with the
objects of the prompt in one step, which a backbone of few layers cannot do over codes in several positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Layout:
    """``words`` token IDs, then ``sizes[l]`` codes of each level ``l``, then any number of objects."""

    words: int
    sizes: tuple[int, ...]

    @property
    def codes(self) -> int:
        """Number of code rows S, over all levels."""
        return sum(self.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First row of each level among the S code rows; L + 1 numbers, the last is S."""
        return tuple(int(start) for start in np.cumsum([0, *self.sizes]))

    def rows(self, codes_NL: NDArray[np.integer]) -> NDArray[np.int64]:
        """Code rows in [0, S) of codes given level by level: int64 of the same shape, [..., L]."""
        starts_L = np.asarray(self.offsets[: codes_NL.shape[-1]], dtype=np.int64)
        return np.asarray(codes_NL + starts_L, dtype=np.int64)

    def code(self, rows: NDArray[np.integer]) -> Ids:
        """IDs of code rows."""
        return (self.words + np.asarray(rows)).astype(np.int32)

    def object(self, objects: NDArray[np.integer]) -> Ids:
        """IDs of whole objects, given by their index."""
        return (self.words + self.codes + np.asarray(objects)).astype(np.int32)

    def objects(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """The object index of each ID; negative for IDs of words and codes."""
        return np.asarray(ids, np.int64) - self.words - self.codes
