"""Live inventories as windows: which ads may be shown in a request.

A row of the table ``inventories`` is a window: an ad is live in the requests with its ``inventory_id`` from
``starts_at`` until before ``ends_at``; a missing bound is open. Memory grows with the windows and the requests, not
with their product: 20,000 ads with begins of their own are 20,000 windows, though each request has another live set.

Shape letters: R requests, G inventory IDs, W windows, A ads, S distinct live sets, N pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.data.tables import micros, positions

_OPEN_START = np.iinfo(np.int64).min
_OPEN_END = np.iinfo(np.int64).max

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class Inventories:
    """The live ads of the requests of a log.

    ``position_R`` numbers the requests by inventory ID and time, so a window is a range of positions. The windows of an
    inventory ID are adjacent, sorted by ad; those of one ad are disjoint. Every window holds a request.
    """

    position_R: I32
    group_R: I32  # number of the inventory ID
    window_offsets: I64  # [G + 1]
    is_fixed_G: Mask  # all requests of the inventory ID have the same live ads: each window holds all of them
    ad_W: I32
    first_W: I32
    last_W: I32  # exclusive
    set_R: I32  # requests with equal live sets have the same number
    request_S: I32  # a request of each set

    @classmethod
    def of(cls, requests: pl.DataFrame, windows: pl.DataFrame, ad_ids: pl.Series) -> Inventories:
        """The inventories of ``requests`` (``inventory_id``, ``at``; row r is request r).

        ``windows``: the table ``inventories``; rows of inventory IDs without a request are left out. ``ad_ids``: row a
        is ad a, ascending.
        """
        ids = requests["inventory_id"].unique().sort()
        group_R = positions(requests["inventory_id"], ids).astype(np.int64)  # products with times exceed 32 bits
        group_W = positions(windows["inventory_id"], ids, missing=True).astype(np.int64)
        if (group_W < 0).any():
            windows = windows.filter(group_W >= 0)
            group_W = group_W[group_W >= 0]
        times, time_R = np.unique(micros(requests["at"]), return_inverse=True)
        stride = len(times) + 1
        key_R = group_R * stride + time_R
        order = np.argsort(key_R, kind="stable")
        key_P = key_R[order]
        position_R = np.empty(len(requests), np.int32)
        position_R[order] = np.arange(len(requests), dtype=np.int32)

        def at_or_after(bound_us: I64) -> I64:
            return np.searchsorted(key_P, group_W * stride + np.searchsorted(times, bound_us))

        first_W = at_or_after(_bounds(windows, "starts_at", _OPEN_START))
        last_W = at_or_after(_bounds(windows, "ends_at", _OPEN_END))
        ad_W = positions(windows["ad_id"], ad_ids)
        rows, first_W, last_W = _disjoint(group_W * len(ad_ids) + ad_W, first_W, last_W)
        ad_W = ad_W[rows]
        group_W = group_W[rows]
        starts_G = np.searchsorted(key_P // stride, np.arange(len(ids) + 1))
        is_part_W = (first_W > starts_G[group_W]) | (last_W < starts_G[group_W + 1])
        set_P, position_S = _equal_sets(ad_W, first_W, last_W, len(requests), len(ad_ids))
        return cls(
            position_R=position_R,
            group_R=group_R.astype(np.int32),
            window_offsets=np.searchsorted(group_W, np.arange(len(ids) + 1)),
            is_fixed_G=np.bincount(group_W[is_part_W], minlength=len(ids)) == 0,
            ad_W=ad_W,
            first_W=first_W.astype(np.int32),
            last_W=last_W.astype(np.int32),
            set_R=set_P[position_R],
            request_S=order[position_S].astype(np.int32),
        )

    def ads(self, r: int) -> I32:
        """The ads live in request ``r``, ascending; the time grows with the windows of its inventory ID."""
        group = self.group_R[r]
        rows = slice(self.window_offsets[group], self.window_offsets[group + 1])
        if self.is_fixed_G[group]:
            return self.ad_W[rows]
        position = self.position_R[r]
        live: I32 = self.ad_W[rows][(self.first_W[rows] <= position) & (position < self.last_W[rows])]
        return live

    @cached_property
    def sizes_R(self) -> I64:
        """The number of live ads of each request."""
        count = len(self.position_R)
        begins = np.bincount(self.first_W, minlength=count + 1)
        ends = np.bincount(self.last_W, minlength=count + 1)
        return np.cumsum(begins - ends)[self.position_R]

    def is_live(self, requests_N: NDArray[np.integer[Any]], ads_N: NDArray[np.integer[Any]]) -> Mask:
        """Whether each ad is live in its request, bool [N]."""
        if not len(self.ad_W):
            return np.zeros(len(ads_N), np.bool_)
        stride = len(self.position_R) + 1
        key_W = self.ad_W.astype(np.int64) * stride + self.first_W
        order = np.argsort(key_W)
        position_N = self.position_R[requests_N]
        window_N = np.searchsorted(key_W[order], ads_N.astype(np.int64) * stride + position_N, side="right") - 1
        row_N = order[window_N.clip(0)]
        is_of_ad = self.ad_W[row_N] == ads_N
        live: Mask = is_of_ad & (self.first_W[row_N] <= position_N) & (position_N < self.last_W[row_N])
        return live

    def exposures(self, counted_R: Mask, item_A: I32, items: int) -> I64:
        """Requests among ``counted_R`` in which each item was live: int64 [items]. ``item_A``: the item of each ad."""
        item_W = item_A[self.ad_W]
        first_W: NDArray[np.integer[Any]] = self.first_W
        last_W: NDArray[np.integer[Any]] = self.last_W
        if len(np.unique(item_A)) < len(item_A):  # an item with several live ads counts once
            rows, first_W, last_W = _disjoint(item_W, first_W, last_W)
            item_W = item_W[rows]
        counted_P = np.zeros(len(self.position_R) + 1, np.int64)
        counted_P[self.position_R + 1] = counted_R
        before_P = np.cumsum(counted_P)
        return np.bincount(item_W, weights=before_P[last_W] - before_P[first_W], minlength=items).astype(np.int64)

    def ever_live(self, counted_R: Mask) -> I64:
        """The ads that were live in a request among ``counted_R``, ascending."""
        count = int(self.ad_W.max(initial=-1)) + 1
        return np.flatnonzero(self.exposures(counted_R, np.arange(count, dtype=np.int32), count))


def _disjoint(
    item_W: NDArray[np.integer[Any]], first_W: NDArray[np.integer[Any]], last_W: NDArray[np.integer[Any]]
) -> tuple[I64, I64, I64]:
    """(rows, first, last): ranges that cover what these cover, sorted by item and begin, none empty, none twice."""
    order = np.lexsort((first_W, item_W))
    item = item_W[order]
    is_next = np.zeros(len(item), np.bool_)
    is_next[1:] = item[1:] != item[:-1]
    base = np.cumsum(is_next) * (int(last_W.max(initial=0)) + 1)  # ranges of different items do not meet
    first = base + first_W[order]
    last = base + last_W[order]
    first[1:] = np.maximum(first[1:], np.maximum.accumulate(last)[:-1])
    kept = np.flatnonzero(first < last)
    return order[kept], (first - base)[kept], (last - base)[kept]


def _equal_sets(ad_W: I32, first_W: I64, last_W: I64, count: int, ads: int) -> tuple[I32, I64]:
    """(number of the live set at each of ``count`` positions, a position of each set).

    The fingerprint of a set is the exclusive or of 128 random bits for each ad, so a window changes it at its two ends
    alone. Two among a million different sets are equal in it with a chance of 1e-27.
    """
    number = np.zeros(count, np.int64)
    for stream in (0, 1):
        bits_A = np.random.default_rng(stream).integers(2**64, size=ads, dtype=np.uint64)
        changes = np.zeros(count + 1, np.uint64)
        np.bitwise_xor.at(changes, first_W, bits_A[ad_W])
        np.bitwise_xor.at(changes, last_W, bits_A[ad_W])
        half = np.unique(np.bitwise_xor.accumulate(changes)[:count], return_inverse=True)[1]
        _, position_S, number = np.unique(number * count + half, return_index=True, return_inverse=True)
    return number.astype(np.int32), position_S


def _bounds(windows: pl.DataFrame, name: str, missing: int) -> I64:
    if name not in windows.columns:  # tables of version 2 have none
        return np.full(len(windows), missing)
    result: I64 = windows[name].dt.epoch("us").fill_null(missing).to_numpy()
    return result
