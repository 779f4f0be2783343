"""Trie over the code paths of the live rows, as flat arrays; a beam's state is one integer.

Training and serving use the same two operations: the prior of each code that may follow a state (`log_prior`), and the
state after a code (`step`). Nodes are numbered level by level and, within a level, by path in lexicographic order. So
the children of a node are adjacent, and edge `e` always leads to node `e + 1`: the trie needs no pointer array, and
bisection among the siblings finds a code.

Letters: N rows (live objects), L levels, B beams, T targets, V nodes, I inner nodes (not leaves), E = V - 1 edges.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

ROOT = 0
DEAD = -1  # state of a beam that left the trie: it has no children

Ints = NDArray[np.int64]


class Mask(ABC):
    """Interface of a live set to beam search: a `Trie`, or a mask of `leadre.semid.inventory`.

    sizes     codes per level, [L]
    weighted  whether rows have prior weights
    """

    sizes: tuple[int, ...]

    @property
    @abstractmethod
    def weighted(self) -> bool: ...

    @property
    def depth(self) -> int:
        """Number of levels L."""
        return len(self.sizes)

    def roots(self, count: int) -> Ints:
        """States of `count` beams before their first code, int64 [count]."""
        return np.full(count, ROOT, dtype=np.int64)

    def log_prior(self, states_B: Ints, level: int) -> NDArray[np.float32]:
        """Log-prior of the codes of `level` after each state (of that depth, or DEAD), to be added to their scores.

        float32 [B, sizes[level]]: the logarithm of `masses`, or zero without weights; -inf for codes without a live
        row. With scores of zero, every row gets its share of the live weight; without weights this is a mask.
        """
        return _logs(self.masses(states_B, level), self.weighted)

    @abstractmethod
    def masses(self, states_B: Ints, level: int) -> NDArray[np.float64]:
        """Summed weights (without weights: number) of the live rows after each state and code: [B, sizes[level]]."""

    @abstractmethod
    def step(self, states_B: Ints, codes_B: Ints, level: int) -> Ints:
        """State after `codes_B` of `level`: int64 [B], DEAD for codes without a live row."""

    @abstractmethod
    def rows_below(self, states_B: Ints) -> Ints:
        """Number of live rows below each state: int64 [B], 0 for DEAD."""

    @abstractmethod
    def rows(self, states_B: Ints) -> Ints:
        """The row of each leaf state: int64 [B]; -1 for DEAD."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trie(Mask):
    """Flat arrays of a trie with all leaves at depth L; see `build`. Only `set_live` writes, to the last two arrays.

    sizes          codes per level, [L]
    level_starts   first node of each depth 0..L, and V at the end, int64 [L + 2]
    child_offsets  edges of node v are child_offsets[v]:child_offsets[v + 1], int32 [I + 1]
    child_codes    code of each edge, ascending inside a node, `code_type` [E]
    leaf_row       row of each leaf, int32 [N], in the order of the leaves
    rows_beneath   live rows below each node, itself if it is a leaf, int32 [V]
    mass           summed weights of the live rows below each node, float64 [V]; None without weights
    """

    sizes: tuple[int, ...]
    level_starts: Ints
    child_offsets: NDArray[np.int32]
    child_codes: NDArray[np.integer]
    leaf_row: NDArray[np.int32]
    rows_beneath: NDArray[np.int32]
    mass: NDArray[np.float64] | None

    @property
    def weighted(self) -> bool:
        return self.mass is not None

    @property
    def bytes(self) -> int:
        """Size of all arrays."""
        arrays = (self.child_offsets, self.child_codes, self.leaf_row, self.rows_beneath, self.mass)
        return sum(array.nbytes for array in arrays if array is not None)

    def log_prior(self, states_B: Ints, level: int) -> NDArray[np.float32]:
        prior = np.full((len(states_B), self.sizes[level]), -np.inf, np.float32)
        beams, edges = self._edges(states_B)  # logarithms of the children alone: logarithms of zero are slow
        prior[beams, self.child_codes[edges]] = _logs(self._weights[edges + 1], self.weighted)
        return prior

    def masses(self, states_B: Ints, level: int) -> NDArray[np.float64]:
        masses = np.zeros((len(states_B), self.sizes[level]))
        beams, edges = self._edges(states_B)
        masses[beams, self.child_codes[edges]] = self._weights[edges + 1]
        return masses

    def step(self, states_B: Ints, codes_B: Ints, level: int) -> Ints:
        nodes = self._child(np.asarray(states_B, np.int64), np.asarray(codes_B, np.int64))
        return np.where(self.rows_below(nodes) > 0, nodes, DEAD)

    def rows_below(self, states_B: Ints) -> Ints:
        return np.where(states_B >= 0, self.rows_beneath[np.maximum(states_B, 0)], 0).astype(np.int64)

    def rows(self, states_B: Ints) -> Ints:
        states = np.asarray(states_B, dtype=np.int64)
        first_leaf = int(self.level_starts[self.depth])
        assert np.all((states == DEAD) | (states >= first_leaf)), f"state before the first leaf {first_leaf}: {states}"
        if not len(self.leaf_row):
            return np.full(len(states), DEAD, dtype=np.int64)
        return np.where(states >= 0, self.leaf_row[np.maximum(states - first_leaf, 0)], DEAD).astype(np.int64)

    def nodes(self, codes_NL: NDArray[np.integer]) -> Ints:
        """The nodes of each path from the root to its leaf, live or not: int64 [L + 1, N], DEAD for none."""
        nodes = np.zeros((self.depth + 1, len(codes_NL)), np.int64)
        for level in range(self.depth):
            nodes[level + 1] = self._child(nodes[level], codes_NL[:, level].astype(np.int64))
        return nodes

    def set_live(
        self, codes_NL: NDArray[np.integer], live: bool, weights_N: NDArray[np.floating] | None = None
    ) -> None:
        """Set whether paths of the trie are live, with their weights; writes in place, from the leaves upwards.

        Each ancestor is recomputed as the sum over its children, so rounding errors do not accumulate.
        """
        nodes = self.nodes(codes_NL)
        assert nodes.size == 0 or nodes.min() >= 0, "a path that is not in the trie"
        self.rows_beneath[nodes[-1]] = live
        if self.mass is not None:
            assert weights_N is not None or not live, "a row of a weighted trie needs a weight"
            self.mass[nodes[-1]] = weights_N if live else 0.0
        for nodes_N in nodes[-2::-1]:
            self.add_up(np.unique(nodes_N))

    def add_up(self, nodes: Ints) -> None:
        """Recompute counts and masses of inner nodes, each once, from their children."""
        beams, edges = self._edges(nodes)
        first = np.flatnonzero(np.diff(beams, prepend=-1))
        self.rows_beneath[nodes] = np.add.reduceat(self.rows_beneath[edges + 1], first)
        if self.mass is not None:
            self.mass[nodes] = np.add.reduceat(self.mass[edges + 1], first)

    @property
    def _weights(self) -> NDArray[np.int32] | NDArray[np.float64]:
        return self.rows_beneath if self.mass is None else self.mass

    def _edges(self, states_B: Ints) -> tuple[Ints, Ints]:
        """(beam, edge) of all children of the states, beam after beam."""
        alive_B = np.asarray(states_B) >= 0
        nodes_B = np.where(alive_B, states_B, 0)
        first_B = self.child_offsets[nodes_B].astype(np.int64)
        count_B = np.where(alive_B, self.child_offsets[nodes_B + 1] - first_B, 0)
        beams = np.repeat(np.arange(len(nodes_B)), count_B)
        # the node's first edge plus 0, 1, 2, ... inside the node
        return beams, np.arange(len(beams)) + np.repeat(first_B - (np.cumsum(count_B) - count_B), count_B)

    def _child(self, states_B: Ints, codes_B: Ints) -> Ints:
        """The node of each code, live or not, by bisection among the siblings, for all beams at once."""
        if not len(self.child_codes):
            return np.full(len(states_B), DEAD)
        nodes = np.maximum(states_B, 0)
        edge = self.child_offsets[nodes]
        last = self.child_offsets[nodes + 1] - 1
        for bit in reversed(range(int((last - edge).max(initial=0) + 1).bit_length())):
            at = np.minimum(
                edge + ((1 << bit) - 1), last
            )  # codes are sorted: if this one is smaller, so are those before
            edge = np.where(self.child_codes[at] < codes_B, at + 1, edge)
        is_there = (states_B >= 0) & (edge <= last) & (self.child_codes[np.minimum(edge, last)] == codes_B)
        return np.where(is_there, edge + 1, DEAD).astype(np.int64)


def build(
    codes_NL: NDArray[np.integer],
    sizes: Sequence[int],
    weights_N: NDArray[np.floating] | None = None,
    rows_N: NDArray[np.integer] | None = None,
) -> Trie:
    """Trie of the code paths `codes_NL` (integers [N, L], all distinct) over `sizes` codes per level.

    `weights_N` > 0 are prior weights of the rows, in any unit. `rows_N` are the row numbers that `Trie.rows` returns,
    by default 0, 1, ... AssertionError for a code outside its level or a duplicate path.
    """
    columns = np.ascontiguousarray(np.asarray(codes_NL).reshape(-1, len(sizes)).T)
    rows = columns.shape[1]
    _assert_in_range(columns, sizes)
    order = _lexicographic(columns, sizes)
    differs = np.zeros(rows, dtype=np.bool_)  # whether a row's path so far differs from that of the row before
    differs[:1] = True
    starts = [0, 1]
    child_codes = list[NDArray[np.integer]]()
    first_leaf = [np.zeros(1, np.int64)]
    first_child = [np.zeros(1, np.int64)]  # by node, depth after depth
    for level, codes in enumerate(columns):
        column = codes[order]
        above, differs = differs, differs.copy()
        differs[1:] |= column[1:] != column[:-1]
        first_leaf.append(np.flatnonzero(differs))
        if level:
            first_child.append(np.flatnonzero(above[first_leaf[-1]]))
        child_codes.append(column[first_leaf[-1]].astype(code_type(sizes)))
        starts.append(starts[-1] + len(first_leaf[-1]))
    leaves = len(first_leaf[-1])
    assert leaves == rows, f"{rows} rows share {leaves} paths: every row needs its own path"
    assert starts[-1] < 2**30, f"{starts[-1]} nodes are more than int32 has room for in a bisection"
    offsets = np.empty(starts[-2] + 1, np.int32)
    beneath = np.ones(starts[-1], np.int32)
    mass = None
    if weights_N is not None:
        assert np.all(weights_N > 0), "weights must be above zero; leave rows without weight out of the trie"
        mass = np.zeros(starts[-1])
        mass[starts[-2] :] = weights_N[order]
    for depth in reversed(range(len(sizes))):
        here = slice(*starts[depth : depth + 2])
        below = slice(*starts[depth + 1 : depth + 3])
        first = first_leaf[depth]
        np.add(first_child[depth], starts[depth + 1] - 1, out=offsets[here], casting="same_kind")
        np.subtract(np.append(first[1:], rows), first, out=beneath[here], casting="same_kind")
        if mass is not None and rows:
            np.add.reduceat(mass[below], first_child[depth], out=mass[here])
    offsets[-1] = starts[-1] - 1
    return Trie(
        sizes=tuple(int(size) for size in sizes),
        level_starts=np.array(starts),
        child_offsets=offsets,
        child_codes=np.concatenate(child_codes),
        leaf_row=(order if rows_N is None else rows_N[order]).astype(np.int32),
        rows_beneath=beneath,
        mass=mass,
    )


def weighed(trie: Trie, weights_N: NDArray[np.floating]) -> Trie:
    """The same rows, all of them live, with the prior weights ``weights_N`` > 0 by row number; shares all other arrays.

    ``weights_N`` may have entries for other rows. Cheaper than `build`, because nothing is sorted.
    """
    mass = np.empty(len(trie.rows_beneath))
    mass[trie.level_starts[trie.depth] :] = weights_N[trie.leaf_row]
    for depth in reversed(range(trie.depth if len(trie.leaf_row) else 0)):
        here, below = (slice(*trie.level_starts[d : d + 2]) for d in (depth, depth + 1))
        first_child = trie.child_offsets[here] + 1 - below.start
        np.add.reduceat(mass[below], first_child, out=mass[here])
    return replace(trie, mass=mass)


def without(trie: Trie, rows_K: NDArray[np.integer]) -> Trie:
    """The same trie where these rows are not live and have no number; those of later rows close up (`np.delete`).

    For the rows 0 to N - 1. The paths remain, so the cost of a step does not change.
    """
    if not len(rows_K):
        return trie
    is_kept_N = np.ones(len(trie.leaf_row), np.bool_)
    is_kept_N[rows_K] = False
    numbers_N = np.where(is_kept_N, np.cumsum(is_kept_N) - 1, DEAD).astype(np.int32)
    fewer = replace(
        trie,
        leaf_row=numbers_N[trie.leaf_row],
        rows_beneath=trie.rows_beneath.copy(),
        mass=None if trie.mass is None else trie.mass.copy(),
    )
    nodes = trie.level_starts[trie.depth] + np.flatnonzero(fewer.leaf_row == DEAD)
    fewer.rows_beneath[nodes] = 0
    if fewer.mass is not None:
        fewer.mass[nodes] = 0.0
    for _ in range(trie.depth):
        nodes = np.unique(np.searchsorted(trie.child_offsets, nodes - 1, side="right") - 1)  # parents
        fewer.add_up(nodes)
    return fewer


def code_type(sizes: Sequence[int]) -> type[np.integer]:
    """The smallest integer type for codes; torch does not fully support the larger unsigned ones."""
    return next(kind for kind in (np.uint8, np.int16, np.int32) if max(sizes) - 1 <= np.iinfo(kind).max)


def _logs(masses: NDArray[np.integer] | NDArray[np.float64], weighted: bool) -> NDArray[np.float32]:
    """Logarithms of masses; without weights, zero for any mass. -inf for no mass."""
    if not weighted:
        return np.where(masses > 0, np.float32(0), np.float32(-np.inf))
    with np.errstate(divide="ignore"):
        return np.log(masses).astype(np.float32)


def path_priors(trie: Mask, codes_TL: NDArray[np.integer]) -> list[NDArray[np.float32]]:
    """`log_prior` at each level given each target's own prefix: L arrays float32 [T, sizes[level]].

    The training loss is normalised over the codes with a finite prior, the same that decoding may choose from. Raises
    AssertionError for a target outside the trie, because its loss would be infinite.
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


def _assert_in_range(columns_LN: NDArray[np.integer], sizes: Sequence[int]) -> None:
    low = columns_LN.min(axis=1, initial=0)
    high = columns_LN.max(axis=1, initial=0)
    assert low.min() >= 0 and np.all(high < sizes), (
        f"codes outside their level: from {low.tolist()} to {high.tolist()} with sizes {tuple(sizes)}"
    )


def _lexicographic(columns_LN: NDArray[np.integer], sizes: Sequence[int]) -> Ints:
    """Order of the rows by path: sorts mixed-radix numbers whose last digits are the row, if both fit into 63 bits."""
    rows = columns_LN.shape[1]
    row_bits = max(rows - 1, 0).bit_length()
    if (math.prod(sizes) - 1).bit_length() + row_bits > 63:
        return np.lexsort(columns_LN[::-1]).astype(np.int64)
    key = np.zeros(rows, np.int64)
    for column, size in zip(columns_LN, sizes, strict=True):
        key *= size
        key += column
    key <<= row_bits
    key |= np.arange(rows)
    key.sort()  # twice as fast as argsort
    key &= (1 << row_bits) - 1
    return key
