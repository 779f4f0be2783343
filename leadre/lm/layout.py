"""One number line for all that can stand in a prompt: words, then semantic-ID codes, then whole objects.

    0 .. words                      the tokenizer's own IDs
    words .. words + sum(sizes)     one row per code of each level (what the model writes)
    words + sum(sizes) ..           objects: one position, embedded as the sum of the object's codes (what it reads)

The tokenizer never learns of the last two ranges, so no text can spell an ID: prompts are joined as arrays, not text.
An object read as one position costs a third of the tokens of three codes, and it lets attention match a code that has
been written against the objects read before in one step, which a cut-down backbone cannot do over spread-out codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Layout:
    """``words`` token IDs, then ``sizes[l]`` codes of each level ``l``, then objects without end."""

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
        """The index of the object that each ID is; below zero where it is none."""
        return np.asarray(ids, np.int64) - self.words - self.codes
