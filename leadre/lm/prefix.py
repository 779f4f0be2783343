"""Prefix cache: keys, values and hidden states of the first positions of prompts, kept between calls.

Prompts with a common beginning (instruction, a user's long-term part) have the same keys and values there. The cache
keeps them in blocks of a fixed number of positions. The key of a block is a chained hash of all IDs up to its end, so
equal hashes mean equal prompts up to there. A cache belongs to one model: a new `BeamSearcher` needs an empty one.

Blocks are immutable. Eviction does not free a block that a caller still holds.

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

BlockHash = bytes


@dataclass(frozen=True)
class PrefixBlock:
    """KV and hidden states of P positions: keys and values [layers, G, P, E], hidden states [P, D]."""

    keys: Tensor
    values: Tensor
    hidden_PD: Tensor

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in (self.keys, self.values, self.hidden_PD))


class PrefixCache:
    """LRU cache of blocks of ``block_size`` positions, at most ``capacity_mb`` MiB; safe to share between threads.

    ``hits`` and ``misses`` count the blocks looked up, ``evictions`` the blocks dropped.
    """

    def __init__(self, *, capacity_mb: float, block_size: int = 16) -> None:
        self.block_size = block_size
        self.capacity_bytes = int(capacity_mb * 2**20)
        self.hits = self.misses = self.evictions = self.bytes = 0
        self._blocks: OrderedDict[BlockHash, PrefixBlock] = OrderedDict()
        self._lock = threading.Lock()

    def hashes(self, ids: Ids) -> list[BlockHash]:
        """The hash of each full block of a prompt; a shorter rest at the end has none."""
        block_hash = b""
        hashes = []
        for start, stop in pairwise(range(0, len(ids) + 1, self.block_size)):
            content = block_hash + ids[start:stop].astype("<i8").tobytes()
            block_hash = hashlib.blake2b(content, digest_size=16).digest()
            hashes.append(block_hash)
        return hashes

    def num_cached(self, hashes: list[BlockHash]) -> int:
        """Length of the cached prefix of a prompt, in positions; changes neither counts nor the order of eviction."""
        with self._lock:
            known = [block_hash in self._blocks for block_hash in hashes]
        return self.block_size * (known.index(False) if False in known else len(known))

    def get(self, hashes: list[BlockHash]) -> list[PrefixBlock]:
        """The cached blocks of a prompt, up to the first miss."""
        blocks = []
        with self._lock:
            for block_hash in hashes:
                if block_hash not in self._blocks:
                    break
                blocks.append(self._blocks[block_hash])
            self.hits += len(blocks)
            self.misses += len(hashes) - len(blocks)
        return blocks

    def put(self, hashes: list[BlockHash], blocks: list[PrefixBlock]) -> None:
        """Store the blocks of a prompt, or mark them as used; evict the least recently used ones beyond the capacity.

        The first block of a prompt counts as the most recently used: the blocks after it are useless without it.
        """
        with self._lock:
            for block_hash, block in zip(reversed(hashes), reversed(blocks), strict=True):
                if block_hash not in self._blocks:
                    self._blocks[block_hash] = block
                    self.bytes += block.bytes
                self._blocks.move_to_end(block_hash)
            while self.bytes > self.capacity_bytes:
                self.bytes -= self._blocks.popitem(last=False)[1].bytes
                self.evictions += 1
