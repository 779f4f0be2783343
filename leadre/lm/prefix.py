"""Keys, values and hidden states of prompts' first positions, kept from call to call.

Prompts that begin alike (instruction, a user's long-term part) have the same keys and values there. They are kept in
blocks of a fixed number of positions; a block's name is a hash of all IDs up to its end, chained, so equal names mean
equal text from the very beginning. A cache belongs to one model: a new `Searcher` begins with an empty one.

Blocks are immutable. What a lookup returns stays alive as long as its reader holds it, evicted or not.

Letters: G key-value heads, P positions of a block, E width of a head, D width.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from leadre.lm.layout import Ids

Name = bytes


@dataclass(frozen=True)
class PrefixBlock:
    """What the model made of P positions: keys and values [layers, G, P, E], hidden states [P, D]."""

    keys: Tensor
    values: Tensor
    hidden_PD: Tensor

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in (self.keys, self.values, self.hidden_PD))


class PrefixCache:
    """Blocks of at most ``capacity_mb`` MiB, the least recently used going first; safe to share between threads.

    ``hits`` and ``misses`` count blocks that were looked for, ``evictions`` those that had to go.
    """

    def __init__(self, *, capacity_mb: float, positions: int = 16) -> None:
        self.positions, self.capacity_bytes = positions, int(capacity_mb * 2**20)
        self.hits = self.misses = self.evictions = self.bytes = 0
        self._blocks: OrderedDict[Name, PrefixBlock] = OrderedDict()
        self._lock = threading.Lock()

    def names(self, ids: Ids) -> list[Name]:
        """The names of all whole blocks of a prompt."""
        name, names = b"", []
        for start, stop in pairwise(range(0, len(ids) + 1, self.positions)):
            name = hashlib.blake2b(name + ids[start:stop].astype("<i8").tobytes(), digest_size=16).digest()
            names.append(name)
        return names

    def cached(self, ids: Ids) -> int:
        """How many first positions of a prompt are here now; counts as neither hit nor use."""
        with self._lock:
            known = [name in self._blocks for name in self.names(ids)]
        return self.positions * (known.index(False) if False in known else len(known))

    def get(self, names: list[Name]) -> list[PrefixBlock]:
        """The blocks that are here, from the first name on, without a gap."""
        found = []
        with self._lock:
            for name in names:
                if name not in self._blocks:
                    break
                found.append(self._blocks[name])
            self.hits += len(found)
            self.misses += len(names) - len(found)
        return found

    def put(self, names: list[Name], blocks: list[PrefixBlock]) -> None:
        """Keep the blocks of a prompt, or mark them as used, and drop the oldest of all where they do not fit.

        The first block of a prompt becomes the youngest: without it those behind it could not be used.
        """
        with self._lock:
            for name, block in zip(reversed(names), reversed(blocks), strict=True):
                if name not in self._blocks:
                    self._blocks[name] = block
                    self.bytes += block.bytes
                self._blocks.move_to_end(name)
            while self.bytes > self.capacity_bytes:
                self.bytes -= self._blocks.popitem(last=False)[1].bytes
                self.evictions += 1
