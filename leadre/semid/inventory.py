"""Live inventory of serving: ads are added, paused and removed while requests are served from it.

`Inventory.live` is a `leadre.semid.trie.Mask`. It consists of a large trie, the base, and a small trie of the ads added
since the last `merge`. A pause recomputes the sums of the ad's ancestors; an addition rebuilds the small trie; neither
copies the large arrays. `restrict` gives the mask of a single request.

Letters: N rows (ads), L levels, B beams, K denied prefixes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leadre.errors import InputError
from leadre.semid.trie import DEAD, ROOT, Ints, Mask, Trie, build, code_type

PAUSED, LIVE, REMOVED = 0, 1, 2
NODE_BITS = 32  # low bits of a state: the node of the base; high bits: the node of the added trie

Rows = NDArray[np.integer] | NDArray[np.bool_]


class Inventory:
    """Live ads by their code paths. A row is a number that an ad keeps from `add` to `remove`, also across `merge`.

    One thread writes (`add`, `remove`, `pause`, `resume`, `merge`); any thread may read `live` and call `restrict`. A
    request takes `live` once and keeps it: its states remain valid during writes. It observes a pause or a removal at
    its next call and additions never; after the next `add` or `merge` it may miss pauses too. A restriction to allowed
    rows is a copy of the rows live at the time of the call.
    """

    def __init__(
        self, codes_NL: NDArray[np.integer], sizes: Sequence[int], weights_N: NDArray[np.floating] | None = None
    ) -> None:
        self.sizes = tuple(sizes)
        self.weighted = weights_N is not None
        self.rows = 0  # row numbers issued so far
        # one record an ad: a request with 100,000 allowed rows costs one memory access a row
        fields = [("weight", np.float64), ("codes", code_type(sizes), (len(sizes),)), ("status", np.int8)]
        self._ads_N: NDArray[np.void] = np.empty(0, np.dtype(fields, align=True))
        self._append(codes_NL, weights_N)
        self.merge()

    @property
    def added(self) -> int:
        """Rows added since the last `merge`, which is due when they exceed about 1 % of all rows."""
        return self.rows - self._merged

    @property
    def bytes(self) -> int:
        """Size of all arrays, room for more ads included."""
        return self._ads_N.nbytes + self._base.bytes + self._added.bytes

    def add(self, codes_NL: NDArray[np.integer], weights_N: NDArray[np.floating] | None = None) -> Ints:
        """Add live ads; returns their rows. InputError if a path belongs to an ad that is not removed."""
        self._check_new(codes_NL, weights_N)
        rows = self.rows + np.arange(len(codes_NL))
        self._append(codes_NL, weights_N)
        self._added = self._trie(self._merged)
        self._publish()
        return rows

    def remove(self, rows_N: NDArray[np.integer]) -> None:
        """Remove ads for good: their row numbers are not reused, their paths are free."""
        self.pause(rows_N)
        self._ads_N["status"][rows_N] = REMOVED

    def pause(self, rows_N: NDArray[np.integer]) -> None:
        """Exclude ads from all results until they resume; their paths remain taken."""
        self._set_status(rows_N, LIVE, PAUSED)

    def resume(self, rows_N: NDArray[np.integer]) -> None:
        """Make paused ads live."""
        self._set_status(rows_N, PAUSED, LIVE)

    def merge(self) -> None:
        """Build a new base of all ads that are not removed. Takes seconds for millions; readers do not wait."""
        self._base = self._trie(0)
        self._merged = self.rows
        self._added = self._trie(self.rows)
        self._publish()

    def restrict(self, allowed: Rows | None = None, denied: Rows | None = None) -> Mask:
        """Mask of one request: the live rows that are allowed (default: all) and not denied.

        Both arguments are row numbers (`allowed` distinct) or a boolean mask over all rows. The cost depends only on
        the number of these rows.
        """
        mask = self.live
        if allowed is not None:
            rows, ads = self._live_among(allowed)
            mask = self._build(rows, ads)
        if denied is not None:
            rows, ads = self._live_among(denied)
            mask = DifferenceMask(mask, np.unique(ads["codes"], axis=0))
        return mask

    def _set_status(self, rows_N: NDArray[np.integer], before: int, after: int) -> None:
        rows = self._row_numbers(rows_N)
        status_N = self._ads_N["status"]
        removed = rows[status_N[rows] == REMOVED]
        if len(removed):
            raise InputError(f"row {removed[0]} was removed; add its codes again to get a new row")
        rows = rows[status_N[rows] == before]
        status_N[rows] = after
        for trie, own in ((self._base, rows[rows < self._merged]), (self._added, rows[rows >= self._merged])):
            if len(own):
                ads = self._ads_N[own]
                trie.set_live(ads["codes"], after == LIVE, ads["weight"])

    def _trie(self, first_row: int) -> Trie:
        """A trie of the rows from ``first_row`` on that are not removed, the paused ones not live."""
        ads = self._ads_N[first_row : self.rows]
        kept = np.flatnonzero(ads["status"] != REMOVED)
        trie = self._build(first_row + kept, ads[kept])
        trie.set_live(ads["codes"][ads["status"] == PAUSED], live=False)
        return trie

    def _build(self, rows_N: Ints, ads_N: NDArray[np.void]) -> Trie:
        return build(ads_N["codes"], self.sizes, ads_N["weight"] if self.weighted else None, rows_N)

    def _publish(self) -> None:
        self.live: Mask = UnionMask(self._base, self._added) if self.added else self._base

    def _append(self, codes_NL: NDArray[np.integer], weights_N: NDArray[np.floating] | None) -> None:
        end = self.rows + len(codes_NL)
        ads = self._ads_N
        if end > len(ads):  # capacity grows by an eighth, so that few calls copy
            ads = np.empty(end + end // 8, ads.dtype)
            ads[: self.rows] = self._ads_N[: self.rows]
        new = ads[self.rows : end]
        new["codes"] = codes_NL
        new["weight"] = 1.0 if weights_N is None else weights_N
        new["status"] = LIVE
        self._ads_N = ads
        self.rows = end

    def _row_numbers(self, rows: Rows) -> Ints:
        numbers = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64, copy=False)
        if rows.dtype == np.bool_ and len(rows) != self.rows:
            raise InputError(f"a mask over {len(rows)} rows; this inventory has {self.rows}")
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < self.rows:
            raise InputError(f"rows from {numbers.min()} to {numbers.max()}; this inventory has 0 to {self.rows - 1}")
        return numbers

    def _live_among(self, rows: Rows) -> tuple[Ints, NDArray[np.void]]:
        numbers = self._row_numbers(rows)
        ads = np.take(self._ads_N, numbers)
        is_live = ads["status"] == LIVE
        return (numbers, ads) if is_live.all() else (numbers[is_live], ads[is_live])

    def _check_new(self, codes_NL: NDArray[np.integer], weights_N: NDArray[np.floating] | None) -> None:
        """InputError for ads that cannot be added."""
        if (weights_N is not None) != self.weighted or (weights_N is not None and not np.all(weights_N > 0)):
            raise InputError("weights: each ad of an inventory with weights needs one above zero; otherwise give none")
        if np.any((codes_NL < 0) | (codes_NL >= np.array(self.sizes))):
            raise InputError(f"codes from {codes_NL.min()} to {codes_NL.max()}; the levels have {self.sizes} codes")
        taken = np.ones(len(codes_NL), np.bool_)
        taken[np.unique(codes_NL, axis=0, return_index=True)[1]] = False  # duplicate paths among the new ads
        for trie in (self._base, self._added):
            rows = trie.rows(trie.nodes(codes_NL)[-1])
            in_trie = np.flatnonzero(rows >= 0)
            taken[in_trie] |= self._ads_N["status"][rows[in_trie]] != REMOVED
        if taken.any():
            raise InputError(f"path {codes_NL[taken][0].tolist()} is taken; remove the ad that has it, or give another")


class UnionMask(Mask):
    """Union of two tries. A state is a pair of nodes; zero means none, as no path leads back to a root."""

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
    """The two nodes of each state, DEAD for none; the root has both roots."""
    states = np.asarray(states_B, np.int64)
    pair = states & ((1 << NODE_BITS) - 1), states >> NODE_BITS
    base_B, added_B = (np.where(states > ROOT, np.where(nodes > 0, nodes, DEAD), states) for nodes in pair)
    return base_B, added_B


class DifferenceMask(Mask):
    """A mask minus a few denied rows: their prefixes have their own counts and masses, other states are delegated."""

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
        self.denied: list[tuple[Ints, Ints, NDArray[np.float64]]] = []  # by level: (parent, code, mass) of the prefixes
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
