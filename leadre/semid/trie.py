"""A trie over the code paths that are live now, as flat arrays; a beam's state is one integer.

Training and serving ask the same two questions of it: which codes may follow, and how likely each is before anything
is known of the request (`log_prior`); and where a code leads (`step`). Nodes are numbered level by level and,
inside a level, by their path in lexicographic order. So the children of a node stand next to each other, and edge `e`
always leads to node `e + 1`: no pointer array is needed.

Letters: N rows (live objects), L levels, B beams, T targets, V nodes, E = V - 1 edges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

ROOT = 0
DEAD = -1  # the state of a beam that left the trie: it has no children and stays dead

Ints = NDArray[np.int64]
S = TypeVar("S", bound=np.generic)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trie:
    """Flat arrays of a trie whose leaves all lie at depth L; made by `build`.

    sizes          codes per level, [L]
    level_starts   first node of each depth 0..L, and V at the end, int64 [L + 2]
    child_offsets  edges of node v are child_offsets[v]:child_offsets[v + 1], int64 [V + 1]
    child_codes    code of each edge, ascending inside a node, int32 [E]
    edge_keys      parent * max(sizes) + code, ascending: what `step` searches, int64 [E]
    leaf_row       row of `codes_NL` that a leaf stands for, int64 [N], in the order of the leaves
    rows_beneath   rows below each node, itself if it is a leaf, int64 [V]
    log_mass       logarithm of the summed weights of the rows below each node, float32 [V]; zeros without weights
    """

    sizes: tuple[int, ...]
    level_starts: Ints
    child_offsets: Ints
    child_codes: NDArray[np.int32]
    edge_keys: Ints
    leaf_row: Ints
    rows_beneath: Ints
    log_mass: NDArray[np.float32]

    @property
    def depth(self) -> int:
        """Number of levels L."""
        return len(self.sizes)

    @property
    def child_nodes(self) -> Ints:
        """The node each edge leads to, int64 [E]."""
        return np.arange(1, len(self.child_codes) + 1, dtype=np.int64)

    def roots(self, count: int) -> Ints:
        """States of `count` beams that have generated nothing yet, int64 [count]."""
        return np.full(count, ROOT, dtype=np.int64)

    def log_prior(self, states_B: Ints, level: int) -> NDArray[np.float32]:
        """What to add to the scores of the codes of `level` after each state (a node of that depth, or DEAD).

        float32 [B, sizes[level]]: the `log_mass` of the child, -inf where there is none. Scores of zero then give
        every row its share of the live weight; in a trie without weights this is a mask.
        """
        prior = np.full((len(states_B), self.sizes[level]), -np.inf, dtype=np.float32)
        alive_B = np.asarray(states_B) >= 0
        nodes_B = np.where(alive_B, states_B, 0)
        first_B = self.child_offsets[nodes_B]
        count_B = np.where(alive_B, self.child_offsets[nodes_B + 1] - first_B, 0)
        beams = np.repeat(np.arange(len(nodes_B)), count_B)
        # position of every edge: the node's first edge plus 0, 1, 2, ... inside the node
        ramp = np.arange(len(beams)) - np.repeat(np.cumsum(count_B) - count_B, count_B)
        edges = np.repeat(first_B, count_B) + ramp
        prior[beams, self.child_codes[edges]] = self.log_mass[edges + 1]
        return prior

    def step(self, states_B: Ints, codes_B: Ints, level: int) -> Ints:
        """Where `codes_B` of `level` leads from each state: int64 [B], DEAD where there is no such child."""
        states = np.asarray(states_B, dtype=np.int64)
        codes = np.asarray(codes_B, dtype=np.int64)
        valid = (states >= 0) & (codes >= 0) & (codes < self.sizes[level])
        if not len(self.edge_keys):
            return np.full(len(states), DEAD, dtype=np.int64)
        keys = states * max(self.sizes) + codes
        edge = np.minimum(np.searchsorted(self.edge_keys, keys), len(self.edge_keys) - 1)
        return np.where(valid & (self.edge_keys[edge] == keys), edge + 1, DEAD)

    def rows_below(self, states_B: Ints) -> Ints:
        """How many rows each state can still become: int64 [B], 0 where DEAD."""
        return np.where(states_B >= 0, self.rows_beneath[np.maximum(states_B, 0)], 0)

    def rows(self, states_B: Ints) -> Ints:
        """The row of `codes_NL` each leaf state stands for: int64 [B]; DEAD gives -1."""
        states = np.asarray(states_B, dtype=np.int64)
        first_leaf = int(self.level_starts[self.depth])
        assert np.all((states == DEAD) | (states >= first_leaf)), f"state before the first leaf {first_leaf}: {states}"
        if not len(self.leaf_row):
            return np.full(len(states), DEAD, dtype=np.int64)
        return np.where(states >= 0, self.leaf_row[np.maximum(states - first_leaf, 0)], DEAD)


def build(codes_NL: NDArray[np.integer], sizes: Sequence[int], weights_N: NDArray[np.floating] | None = None) -> Trie:
    """Trie of the code paths `codes_NL` (integers [N, L], every row its own path) over `sizes` codes per level.

    `weights_N` > 0 says how likely each row is a priori, in any unit. The order of the rows changes nothing but
    `leaf_row`. AssertionError on a code outside its level or a path twice.
    """
    codes = np.asarray(codes_NL, dtype=np.int64).reshape(-1, len(sizes))
    rows, depth = codes.shape
    assert rows == 0 or (codes.min() >= 0 and bool(np.all(codes.max(axis=0) < np.asarray(sizes)))), (
        f"codes outside their level: from {codes.min()} to {codes.max(axis=0).tolist()} with sizes {tuple(sizes)}"
    )
    order = _lexicographic(codes, sizes)
    codes = codes[order]
    width = max(sizes)
    starts = np.zeros(depth + 2, dtype=np.int64)
    starts[1] = 1
    degrees, child_codes, edge_keys = [], [], []
    parent_of_row = np.zeros(rows, dtype=np.int64)  # node, at the depth reached so far, that each row passes through
    differs = np.zeros(rows, dtype=np.bool_)  # does a row's path so far differ from the row before it
    differs[:1] = True
    for level in range(depth):
        differs[1:] |= codes[1:, level] != codes[:-1, level]
        parents, edge_codes = parent_of_row[differs], codes[differs, level]
        degrees.append(np.bincount(parents - starts[level], minlength=int(starts[level + 1] - starts[level])))
        child_codes.append(edge_codes)
        edge_keys.append(parents * width + edge_codes)
        parent_of_row = starts[level + 1] + np.cumsum(differs) - 1
        starts[level + 2] = starts[level + 1] + len(edge_codes)
    leaves = int(starts[depth + 1] - starts[depth])
    assert leaves == rows, f"{rows} rows share {leaves} paths: every row needs a path of its own"
    offsets = np.zeros(int(starts[-1]) + 1, dtype=np.int64)
    np.cumsum(np.concatenate(degrees), out=offsets[1 : int(starts[depth]) + 1])
    offsets[int(starts[depth]) + 1 :] = offsets[int(starts[depth])]  # leaves have no children
    log_mass = np.zeros(int(starts[-1]), dtype=np.float32)
    if weights_N is not None and rows:
        assert np.all(weights_N > 0), "a row without weight could never be reached; leave it out of the trie"
        log_mass = np.log(_sums(starts, offsets, weights_N[order].astype(np.float64))).astype(np.float32)
    return Trie(
        sizes=tuple(int(size) for size in sizes),
        level_starts=starts,
        child_offsets=offsets,
        child_codes=np.concatenate(child_codes).astype(np.int32),
        edge_keys=np.concatenate(edge_keys),
        leaf_row=order.astype(np.int64),
        rows_beneath=_sums(starts, offsets, np.ones(rows, np.int64)),
        log_mass=log_mass,
    )


def _sums(starts: Ints, offsets: Ints, leaf_values: NDArray[S]) -> NDArray[S]:
    """Values of the leaves, in their order, summed into every node above them: [V], in the type of the values."""
    sums = np.zeros(int(starts[-1]), dtype=leaf_values.dtype)
    if not len(leaf_values):
        return sums
    sums[starts[-2] :] = leaf_values
    for depth in range(len(starts) - 3, -1, -1):
        below = sums[starts[depth + 1] : starts[depth + 2]]  # children stand in the order of their parents
        first_child = offsets[starts[depth] : starts[depth + 1]] + 1 - starts[depth + 1]
        sums[starts[depth] : starts[depth + 1]] = np.add.reduceat(below, first_child)
    return sums


def path_priors(trie: Trie, codes_TL: NDArray[np.integer]) -> list[NDArray[np.float32]]:
    """`log_prior` at each level given each target's own prefix: L arrays float32 [T, sizes[level]].

    The training loss is normalised over the codes that are finite there, which are the ones decoding may choose from.
    Every target must be in the trie (AssertionError), because a target outside it would have an infinite loss.
    """
    codes = np.asarray(codes_TL, dtype=np.int64)
    states = trie.roots(len(codes))
    priors = []
    for level in range(trie.depth):
        priors.append(trie.log_prior(states, level))
        states = trie.step(states, codes[:, level], level)
    dead = np.flatnonzero(states == DEAD)
    assert len(dead) == 0, f"{len(dead)} of {len(codes)} targets are not in the trie; first: {codes[dead[:1]].tolist()}"
    return priors


def _lexicographic(codes_NL: Ints, sizes: Sequence[int]) -> Ints:
    """Order of the rows by their paths; one sort of a mixed-radix number where that fits into 63 bits."""
    if math.prod(sizes) >= 2**63:
        return np.lexsort(codes_NL.T[::-1]).astype(np.int64)
    place_L = np.ones(len(sizes), dtype=np.int64)
    place_L[:-1] = np.cumprod(np.asarray(sizes[:0:-1], dtype=np.int64))[::-1]
    return np.argsort(codes_NL @ place_L, kind="stable").astype(np.int64)
