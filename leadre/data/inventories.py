"""Live inventories as windows: which ads may be shown in a request.

A row of the table ``inventories`` is a window: an ad is live in the requests with its ``inventory_id``, or in all
requests if it has none, from ``starts_at`` until before ``ends_at``; a missing bound is open. Memory grows with the
windows and the requests, not with their product: 20,000 ads with begins of their own are 20,000 windows, though each
request has another live set, and a window of all placements is one window, however many they are.

Shape letters: R requests, P positions of requests, G groups of requests, W windows, A ads, S distinct live sets,
N pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.data.tables import micros, positions

_OPEN_START = np.iinfo(np.int64).min
_OPEN_END = np.iinfo(np.int64).max

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]
Numbers = NDArray[np.integer[Any]]


class _Spans(NamedTuple):
    """Windows in ranks of the requests' distinct times: the item is live from rank ``start`` until before ``end``."""

    group_W: I64  # number of the inventory ID
    item_W: Numbers
    start_W: I64
    end_W: I64

    def at(self, rows: I64 | Mask) -> _Spans:
        return _Spans(self.group_W[rows], self.item_W[rows], self.start_W[rows], self.end_W[rows])


@dataclass(frozen=True, eq=False, kw_only=True)
class _Layer:
    """Windows of groups of requests.

    ``position_R`` numbers the requests by group and time, so a window is a range of positions. The windows of a group
    are adjacent, sorted by item; those of one item are disjoint. Every window holds a request.
    """

    position_R: I32
    group_R: I32
    window_offsets: I64  # [G + 1]
    is_fixed_G: Mask  # all requests of the group have the same live items: each window holds all of them
    item_W: I32
    first_W: I32
    last_W: I32  # exclusive

    @classmethod
    def of(cls, group_R: I64, time_R: I64, spans: _Spans) -> _Layer:
        """``time_R``: rank of the time of each request."""
        stride = int(time_R.max(initial=0)) + 2
        key_R = group_R * stride + time_R
        order = np.argsort(key_R, kind="stable")
        key_P = key_R[order]
        position_R = np.empty(len(group_R), np.int32)
        position_R[order] = np.arange(len(group_R), dtype=np.int32)
        first_W = np.searchsorted(key_P, spans.group_W * stride + spans.start_W)
        last_W = np.searchsorted(key_P, spans.group_W * stride + spans.end_W)
        items = int(spans.item_W.max(initial=0)) + 1
        rows, first_W, last_W = _disjoint(spans.group_W * items + spans.item_W, first_W, last_W)
        group_W = spans.group_W[rows]
        groups = int(group_R.max(initial=-1)) + 1
        starts_G = np.searchsorted(key_P // stride, np.arange(groups + 1))
        is_part_W = (first_W > starts_G[group_W]) | (last_W < starts_G[group_W + 1])
        return cls(
            position_R=position_R,
            group_R=group_R.astype(np.int32),
            window_offsets=np.searchsorted(group_W, np.arange(groups + 1)),
            is_fixed_G=np.bincount(group_W[is_part_W], minlength=groups) == 0,
            item_W=spans.item_W[rows].astype(np.int32),
            first_W=first_W.astype(np.int32),
            last_W=last_W.astype(np.int32),
        )

    def items(self, r: int) -> I32:
        """The items live in request ``r``, ascending; the time grows with the windows of its group."""
        group = self.group_R[r]
        rows = slice(self.window_offsets[group], self.window_offsets[group + 1])
        if self.is_fixed_G[group]:
            return self.item_W[rows]
        position = self.position_R[r]
        live: I32 = self.item_W[rows][(self.first_W[rows] <= position) & (position < self.last_W[rows])]
        return live

    def sizes_R(self) -> I64:
        """The number of live items of each request."""
        count = len(self.position_R)
        begins = np.bincount(self.first_W, minlength=count + 1)
        ends = np.bincount(self.last_W, minlength=count + 1)
        return np.cumsum(begins - ends)[self.position_R]

    def is_live(self, requests_N: Numbers, items_N: Numbers) -> Mask:
        """Whether each item is live in its request, bool [N]."""
        if not len(self.item_W):
            return np.zeros(len(items_N), np.bool_)
        stride = len(self.position_R) + 1
        key_W = self.item_W.astype(np.int64) * stride + self.first_W
        order = np.argsort(key_W)
        position_N = self.position_R[requests_N]
        window_N = np.searchsorted(key_W[order], items_N.astype(np.int64) * stride + position_N, side="right") - 1
        row_N = order[window_N.clip(0)]
        is_of_item = self.item_W[row_N] == items_N
        live: Mask = is_of_item & (self.first_W[row_N] <= position_N) & (position_N < self.last_W[row_N])
        return live

    def exposures(self, counted_R: Mask, item_W: Numbers, items: int) -> I64:
        """Requests among ``counted_R`` in the windows of each item, ``item_W``: int64 [items]."""
        counted_P = np.zeros(len(self.position_R) + 1, np.int64)
        counted_P[self.position_R + 1] = counted_R
        before_P = np.cumsum(counted_P)
        counts_W = before_P[self.last_W] - before_P[self.first_W]
        return np.bincount(item_W, weights=counts_W, minlength=items).astype(np.int64)

    def fingerprints(self, bits_A: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The exclusive or of the live items' bits in each request; a window changes it at its two ends alone."""
        changes = np.zeros(len(self.position_R) + 1, np.uint64)
        np.bitwise_xor.at(changes, self.first_W, bits_A[self.item_W])
        np.bitwise_xor.at(changes, self.last_W, bits_A[self.item_W])
        return np.bitwise_xor.accumulate(changes)[self.position_R]


@dataclass(frozen=True, eq=False, kw_only=True)
class Inventories:
    """The live ads of the requests of a log, in two disjoint layers.

    The first has the windows that hold in all requests. The second has those of one inventory ID, without the times at
    which the first has the ad.
    """

    group_R: I64  # number of the inventory ID
    time_R: I64  # rank of the request's time
    spans: _Spans  # of the ads, in any order; group -1 for all requests
    layers: tuple[_Layer, _Layer]
    set_R: I32  # requests with equal live sets have the same number
    request_S: I32  # a request of each set

    @classmethod
    def of(cls, requests: pl.DataFrame, windows: pl.DataFrame, ad_ids: pl.Series) -> Inventories:
        """The inventories of ``requests`` (``inventory_id``, ``at``; row r is request r).

        ``windows``: the table ``inventories``; rows of inventory IDs without a request are left out. ``ad_ids``: row a
        is ad a, ascending.
        """
        ids = requests["inventory_id"].unique().sort()
        has_requests = windows["inventory_id"].is_null() | windows["inventory_id"].is_in(ids.implode())
        if not has_requests.all():
            windows = windows.filter(has_requests)
        times, time_R = np.unique(micros(requests["at"]), return_inverse=True)
        spans = _Spans(
            group_W=positions(windows["inventory_id"], ids, missing=True).astype(np.int64),
            item_W=positions(windows["ad_id"], ad_ids),
            start_W=np.searchsorted(times, _bounds(windows, "starts_at", _OPEN_START)),
            end_W=np.searchsorted(times, _bounds(windows, "ends_at", _OPEN_END)),
        )
        group_R = positions(requests["inventory_id"], ids).astype(np.int64)  # products with times exceed 32 bits
        layers = _layers(group_R, time_R, spans)
        set_R, request_S = _equal_sets(layers, len(requests), len(ad_ids))
        return cls(group_R=group_R, time_R=time_R, spans=spans, layers=layers, set_R=set_R, request_S=request_S)

    @property
    def windows(self) -> int:
        """The number of windows that hold a request; windows of an ad that overlap count once."""
        return sum(len(layer.item_W) for layer in self.layers)

    def ads(self, r: int) -> I32:
        """The ads live in request ``r``, ascending; the time grows with the windows that can hold it."""
        shared, own = (layer.items(r) for layer in self.layers)
        if not len(shared) or not len(own):
            return shared if len(shared) else own
        return np.sort(np.concatenate([shared, own]))

    @cached_property
    def sizes_R(self) -> I64:
        """The number of live ads of each request."""
        shared, own = self.layers
        return shared.sizes_R() + own.sizes_R()

    def is_live(self, requests_N: Numbers, ads_N: Numbers) -> Mask:
        """Whether each ad is live in its request, bool [N]."""
        shared, own = self.layers
        return shared.is_live(requests_N, ads_N) | own.is_live(requests_N, ads_N)

    def exposures(self, counted_R: Mask, item_A: I32, items: int) -> I64:
        """Requests among ``counted_R`` in which each item was live: int64 [items]. ``item_A``: the item of each ad."""
        layers = self.layers
        if len(np.unique(item_A)) < len(item_A):  # an item with several live ads counts once
            layers = _layers(self.group_R, self.time_R, self.spans._replace(item_W=item_A[self.spans.item_W]))
            item_A = np.arange(items, dtype=np.int32)
        shared, own = (layer.exposures(counted_R, item_A[layer.item_W], items) for layer in layers)
        return shared + own

    def ever_live(self, counted_R: Mask) -> I64:
        """The ads that were live in a request among ``counted_R``, ascending."""
        count = int(self.spans.item_W.max(initial=-1)) + 1
        return np.flatnonzero(self.exposures(counted_R, np.arange(count, dtype=np.int32), count))


def _layers(group_R: I64, time_R: I64, spans: _Spans) -> tuple[_Layer, _Layer]:
    """The layers of `Inventories`; ``spans`` has the group -1 for all requests."""
    is_own = spans.group_W >= 0
    shared = spans.at(~is_own)
    rows, start_W, end_W = _disjoint(shared.item_W, shared.start_W, shared.end_W)
    shared = _Spans(np.zeros(len(rows), np.int64), shared.item_W[rows], start_W, end_W)
    own = _without(spans.at(is_own), shared)
    return _Layer.of(np.zeros_like(group_R), time_R, shared), _Layer.of(group_R, time_R, own)


def _without(own: _Spans, shared: _Spans) -> _Spans:
    """``own`` less the times at which ``shared``, sorted by item and disjoint, has the item."""
    stride = int(max(own.end_W.max(initial=0), shared.end_W.max(initial=0))) + 1
    begins = shared.item_W.astype(np.int64) * stride + shared.start_W
    ends = shared.item_W.astype(np.int64) * stride + shared.end_W
    base_W = own.item_W.astype(np.int64) * stride
    first_W = np.searchsorted(ends, base_W + own.start_W, side="right")
    last_W = np.maximum(np.searchsorted(begins, base_W + own.end_W), first_W)
    pieces_W = last_W - first_W + 1  # between the spans that overlap, and at both ends
    row = np.repeat(np.arange(len(pieces_W)), pieces_W)
    number = np.arange(len(row)) - np.repeat(np.cumsum(pieces_W) - pieces_W, pieces_W)
    pieces = own.at(row)
    after = np.concatenate([[0], shared.end_W])[first_W[row] + number]
    before = np.concatenate([shared.start_W, [0]])[first_W[row] + number]
    start_W = np.where(number > 0, after, pieces.start_W)
    end_W = np.where(number < pieces_W[row] - 1, before, pieces.end_W)
    pieces = pieces._replace(start_W=start_W, end_W=end_W)
    return pieces.at(start_W < end_W)


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


def _equal_sets(layers: tuple[_Layer, _Layer], count: int, ads: int) -> tuple[I32, I32]:
    """(number of the live set of each of ``count`` requests, a request of each set).

    Sets with equal fingerprints of 128 random bits for each ad are equal. Two among a million different sets have equal
    ones with a chance of 1e-27.
    """
    number = np.zeros(count, np.int64)
    for stream in (0, 1):
        bits_A = np.random.default_rng(stream).integers(2**64, size=ads, dtype=np.uint64)
        shared, own = (layer.fingerprints(bits_A) for layer in layers)
        half = np.unique(shared ^ own, return_inverse=True)[1]
        _, request_S, number = np.unique(number * count + half, return_index=True, return_inverse=True)
    return number.astype(np.int32), request_S.astype(np.int32)


def _bounds(windows: pl.DataFrame, name: str, missing: int) -> I64:
    if name not in windows.columns:  # tables of version 2 have none
        return np.full(len(windows), missing)
    result: I64 = windows[name].dt.epoch("us").fill_null(missing).to_numpy()
    return result
