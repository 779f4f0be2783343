"""The live catalogue that serving holds: ads come, pause and go while requests are answered from it.

`Inventory.live` answers the questions of `leadre.semid.trie.Mask`. It is one large trie, the base, and a small one of
the ads added since the last `merge`. To pause an ad is to sum its ancestors anew; to add one is to build the small trie
anew; both leave the large arrays where they are. What a single request may show is a `restrict`ion.

Letters: N rows (ads), L levels, B beams, K denied prefixes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leadre.errors import InputError
from leadre.semid.trie import DEAD, ROOT, Ints, Mask, Trie, build, code_type

PAUSED, LIVE, REMOVED = 0, 1, 2
NODE_BITS = 32  # bits of a state that hold the node of the base; the node of the added trie stands above

Rows = NDArray[np.integer] | NDArray[np.bool_]


class Inventory:
    """Live ads by their code paths. A row is a number that an ad keeps from `add` to `remove`, also across `merge`.

    One thread writes (`add`, `remove`, `pause`, `resume`, `merge`); any thread may read `live` and call `restrict`. A
    request takes `live` once and keeps it: its states stay valid whatever is written meanwhile. It sees a pause or a
    removal at its next question and additions never; after the next `add` or `merge` it may miss pauses too. A
    restriction to allowed rows is a copy of what was live when it was asked for.
    """

    def __init__(
        self, codes_NL: NDArray[np.integer], sizes: Sequence[int], weights_N: NDArray[np.floating] | None = None
    ) -> None:
        self.sizes = tuple(sizes)
        self.weighted = weights_N is not None
        self.rows = 0  # numbers given out so far
        # one record an ad, as a request that names 100,000 of them waits for as many reads from memory
        fields = [("weight", np.float64), ("codes", code_type(sizes), (len(sizes),)), ("status", np.int8)]
        self._ads_N: NDArray[np.void] = np.empty(0, np.dtype(fields, align=True))
        self._append(codes_NL, weights_N)
        self.merge()

    @property
    def added(self) -> int:
        """Rows added since the last `merge`, which is due when they are no longer few beside the others, say 1 %."""
        return self.rows - self._merged

    @property
    def bytes(self) -> int:
        """Size of all arrays, room for more ads included."""
        return self._ads_N.nbytes + self._base.bytes + self._added.bytes

    def add(self, codes_NL: NDArray[np.integer], weights_N: NDArray[np.floating] | None = None) -> Ints:
        """Let new ads live; returns their rows. InputError if the path of one is that of an ad which is not removed."""
        self._check(codes_NL, weights_N)
        rows = self.rows + np.arange(len(codes_NL))
        self._append(codes_NL, weights_N)
        self._added = self._trie(self._merged)
        self._publish()
        return rows

    def remove(self, rows_N: NDArray[np.integer]) -> None:
        """End ads for good: their numbers are not given out again, their paths are free."""
        self.pause(rows_N)
        self._ads_N["status"][rows_N] = REMOVED

    def pause(self, rows_N: NDArray[np.integer]) -> None:
        """Take ads out of every answer until they resume; their paths stay taken."""
        self._switch(rows_N, LIVE, PAUSED)

    def resume(self, rows_N: NDArray[np.integer]) -> None:
        """Let paused ads live again."""
        self._switch(rows_N, PAUSED, LIVE)

    def merge(self) -> None:
        """Build a new base of all ads that are not removed. Takes seconds for millions; readers are not held up."""
        self._base = self._trie(0)
        self._merged = self.rows
        self._added = self._trie(self.rows)
        self._publish()

    def restrict(self, allowed: Rows | None = None, denied: Rows | None = None) -> Mask:
        """What a request may be answered from: of the live rows those allowed (default: all) and not denied.

        Both are row numbers (those allowed distinct) or a mask over all rows. The cost grows with the rows named alone.
        """
        mask = self.live
        if allowed is not None:
            rows, ads = self._live_among(allowed)
            mask = self._built(rows, ads)
        if denied is not None:
            rows, ads = self._live_among(denied)
            mask = DifferenceMask(mask, np.unique(ads["codes"], axis=0))
        return mask

    def _switch(self, rows_N: NDArray[np.integer], before: int, after: int) -> None:
        rows = self._known(rows_N)
        status_N = self._ads_N["status"]
        removed = rows[status_N[rows] == REMOVED]
        if len(removed):
            raise InputError(f"row {removed[0]} was removed; add its codes again to get a new row")
        rows = rows[status_N[rows] == before]
        status_N[rows] = after
        for trie, own in ((self._base, rows[rows < self._merged]), (self._added, rows[rows >= self._merged])):
            if len(own):
                ads = self._ads_N[own]
                trie.switch(ads["codes"], after == LIVE, ads["weight"])

    def _trie(self, first_row: int) -> Trie:
        """A trie of the rows from ``first_row`` on that are not removed, the paused ones switched off."""
        ads = self._ads_N[first_row : self.rows]
        kept = np.flatnonzero(ads["status"] != REMOVED)
        trie = self._built(first_row + kept, ads[kept])
        trie.switch(ads["codes"][ads["status"] == PAUSED], live=False)
        return trie

    def _built(self, rows_N: Ints, ads_N: NDArray[np.void]) -> Trie:
        return build(ads_N["codes"], self.sizes, ads_N["weight"] if self.weighted else None, rows_N)

    def _publish(self) -> None:
        self.live: Mask = UnionMask(self._base, self._added) if self.added else self._base

    def _append(self, codes_NL: NDArray[np.integer], weights_N: NDArray[np.floating] | None) -> None:
        end = self.rows + len(codes_NL)
        ads = self._ads_N
        if end > len(ads):  # room grows by an eighth, so that few calls copy
            ads = np.empty(end + end // 8, ads.dtype)
            ads[: self.rows] = self._ads_N[: self.rows]
        new = ads[self.rows : end]
        new["codes"] = codes_NL
        new["weight"] = 1.0 if weights_N is None else weights_N
        new["status"] = LIVE
        self._ads_N = ads
        self.rows = end

    def _known(self, rows: Rows) -> Ints:
        numbers = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64, copy=False)
        if rows.dtype == np.bool_ and len(rows) != self.rows:
            raise InputError(f"a mask over {len(rows)} rows; this inventory has {self.rows}")
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < self.rows:
            raise InputError(f"rows from {numbers.min()} to {numbers.max()}; this inventory has 0 to {self.rows - 1}")
        return numbers

    def _live_among(self, rows: Rows) -> tuple[Ints, NDArray[np.void]]:
        numbers = self._known(rows)
        ads = np.take(self._ads_N, numbers)
        is_live = ads["status"] == LIVE
        return (numbers, ads) if is_live.all() else (numbers[is_live], ads[is_live])

    def _check(self, codes_NL: NDArray[np.integer], weights_N: NDArray[np.floating] | None) -> None:
        """InputError on what cannot be added."""
        if (weights_N is not None) != self.weighted or (weights_N is not None and not np.all(weights_N > 0)):
            raise InputError("weights: each ad of an inventory with weights needs one above zero; otherwise give none")
        if np.any((codes_NL < 0) | (codes_NL >= np.array(self.sizes))):
            raise InputError(f"codes from {codes_NL.min()} to {codes_NL.max()}; the levels have {self.sizes} codes")
        taken = np.ones(len(codes_NL), np.bool_)
        taken[np.unique(codes_NL, axis=0, return_index=True)[1]] = False  # the same path twice among the new ones
        for trie in (self._base, self._added):
            rows = trie.rows(trie.nodes(codes_NL)[-1])
            found = np.flatnonzero(rows >= 0)
            taken[found] |= self._ads_N["status"][rows[found]] != REMOVED
        if taken.any():
            raise InputError(f"path {codes_NL[taken][0].tolist()} is taken; remove the ad that has it, or give another")


class UnionMask(Mask):
    """Two tries as one. A state is a pair of nodes; zero stands for none, as no path leads back to a root."""

    def __init__(self, base: Trie, added: Trie) -> None:
        self.base = base
        self.added = added
        self.sizes = base.sizes

    @property
    def weighted(self) -> bool:
        return self.base.weighted

    def masses(self, states_B: Ints, level: int) -> NDArray[np.float64]:
        base_B, added_B = _nodes(states_B)
        return self.base.masses(base_B, level) + self.added.masses(added_B, level)

    def step(self, states_B: Ints, codes_B: Ints, level: int) -> Ints:
        base_B, added_B = _nodes(states_B)
        base_B = self.base.step(base_B, codes_B, level)
        added_B = self.added.step(added_B, codes_B, level)
        states = np.maximum(base_B, 0) | (np.maximum(added_B, 0) << NODE_BITS)
        return np.where(states > 0, states, DEAD)

    def rows_below(self, states_B: Ints) -> Ints:
        base_B, added_B = _nodes(states_B)
        return self.base.rows_below(base_B) + self.added.rows_below(added_B)

    def rows(self, states_B: Ints) -> Ints:
        base_B, added_B = _nodes(states_B)
        return np.maximum(self.base.rows(base_B), self.added.rows(added_B))


def _nodes(states_B: Ints) -> tuple[Ints, Ints]:
    """The nodes of a pair, DEAD for none; of the root, both roots."""
    states = np.asarray(states_B, np.int64)
    pair = states & ((1 << NODE_BITS) - 1), states >> NODE_BITS
    base_B, added_B = (np.where(states > ROOT, np.where(nodes > 0, nodes, DEAD), states) for nodes in pair)
    return base_B, added_B


class DifferenceMask(Mask):
    """A mask with a few rows denied: their prefixes get counts and masses of their own, all else is passed on."""

    def __init__(self, mask: Mask, codes_NL: NDArray[np.integer]) -> None:
        self.mask = mask
        self.sizes = mask.sizes
        path = [mask.roots(len(codes_NL))]
        for level in range(self.depth):
            path.append(mask.step(path[-1], codes_NL[:, level].astype(np.int64), level))
        is_there = path[-1] >= 0
        codes = codes_NL[is_there]
        path = [states[is_there] for states in path]
        states = [np.array([ROOT])]
        counts = [mask.rows_below(mask.roots(1)) - len(codes)]
        self.denied: list[tuple[Ints, Ints, NDArray[np.float64]]] = []  # a level's (parent, code, mass) of each prefix
        mass_K: NDArray[np.float64] = np.zeros(len(codes))
        for level in reversed(range(self.depth)):
            states_K, first_K, group_N = np.unique(path[level + 1], return_index=True, return_inverse=True)
            states.append(states_K)
            counts.append(mask.rows_below(states_K) - np.bincount(group_N, minlength=len(states_K)))
            codes_K = codes[first_K, level].astype(np.int64)
            self.denied.insert(0, (path[level][first_K], codes_K, mass_K))
            parents, group_K = np.unique(path[level][first_K], return_inverse=True)
            masses = mask.masses(parents, level)
            masses[group_K, codes_K] = mass_K
            mass_K = masses.sum(axis=1)
        order = np.argsort(np.concatenate(states))
        self.states = np.concatenate(states)[order]
        self.counts = np.concatenate(counts)[order]

    @property
    def weighted(self) -> bool:
        return self.mask.weighted

    def masses(self, states_B: Ints, level: int) -> NDArray[np.float64]:
        masses = self.mask.masses(states_B, level)
        parents_K, codes_K, mass_K = self.denied[level]
        beams, prefixes = np.nonzero(np.asarray(states_B)[:, None] == parents_K)
        masses[beams, codes_K[prefixes]] = mass_K[prefixes]
        return masses

    def step(self, states_B: Ints, codes_B: Ints, level: int) -> Ints:
        states = self.mask.step(states_B, codes_B, level)
        return np.where(self.rows_below(states) > 0, states, DEAD)

    def rows_below(self, states_B: Ints) -> Ints:
        at = np.minimum(np.searchsorted(self.states, states_B), len(self.states) - 1)
        return np.where(self.states[at] == states_B, self.counts[at], self.mask.rows_below(states_B))

    def rows(self, states_B: Ints) -> Ints:
        return self.mask.rows(states_B)
