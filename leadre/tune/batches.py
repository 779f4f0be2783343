"""Threads -> tensors: each answer of a request is a branch that attends to itself and to the thread up to the request.

A visit often has several conversions. As branches they share the prompt, do not see each other (as in serving), and
cost a few positions each. A batch holds threads of about the same length, which keeps padding small.

Letters: B threads, T positions (thread, then branches), N targets, L levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre.data.moment import Moment
from leadre.lm.beam import repeatable
from leadre.lm.layout import Layout
from leadre.lm.prior import InventoryPrior
from leadre.semid.trie import path_priors
from leadre.tune.threads import Thread, ThreadBuilder, Window

LENGTH_MULTIPLE = 64  # lengths are padded to its multiples: each new shape costs a kernel and its memory
BUCKET = 256  # windows sorted by length together; more saves padding, fewer keep batches random


@dataclass(frozen=True)
class Batch:
    """Model inputs and, for each target, the positions that predict its codes, its codes, priors and weight."""

    ids_BT: Tensor
    positions_BT: Tensor  # -1: padding
    mask_BNT: Tensor  # the positions that each branch position (the last T - thread_length) attends to
    thread_length: int  # the first positions of each row are the thread, padded to this length
    predicts_NL: Tensor  # flat position (b * T + t) whose hidden state predicts the code of each level
    targets_NL: Tensor
    priors: list[Tensor]  # L of float32 [N, sizes[l]], -inf for codes without a live object
    weights_N: Tensor
    thread_N: Tensor  # row of each target in ids_BT
    pointer_bias_NT: Tensor  # float32 [N, thread_length]: added to the pointer's score of each position (`Pointer.mix`)

    @property
    def tokens(self) -> int:
        """Positions that are not padding."""
        return int((self.positions_BT >= 0).sum())

    def to(self, device: torch.device) -> Batch:
        """A copy on ``device``."""
        moved: dict[str, Any] = {n: value.to(device) for n, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved, priors=[prior.to(device) for prior in self.priors])


@dataclass(frozen=True)
class Targets:
    """The N targets of one request. A target is an object among the live objects of one view: all, or new to the user.

    Targets of the same object in both views share a branch.
    """

    codes_NL: NDArray[np.int32]
    priors: list[NDArray[np.float32]]  # L of [N, sizes[l]]
    weights_N: NDArray[np.float64]
    branch_N: NDArray[np.int64]
    live: list[NDArray[np.int64]]  # the live objects of each view
    view_N: NDArray[np.int64]  # index into ``live``


class Examples:
    """Makes batches from windows.

    ``new_weight`` is the weight of objects new to the user, ranked among new objects only; 0 leaves that view out.
    """

    def __init__(self, threads: ThreadBuilder, live: InventoryPrior, layout: Layout, new_weight: float) -> None:
        self.threads = threads
        self.logs = threads.logs
        self.live = live
        self.layout = layout
        self.new_weight = new_weight

    def epoch(self, seed: int, tokens: int) -> list[list[Window]]:
        """All training windows in batches of about ``tokens`` positions, shuffled by ``seed``."""
        rng = np.random.default_rng(seed)
        windows = self.windows(seed)
        batches = self.packed([windows[i] for i in rng.permutation(len(windows))], tokens)
        return [batches[i] for i in rng.permutation(len(batches))]

    def packed(self, windows: Sequence[Window], tokens: int) -> list[list[Window]]:
        """The windows in batches of about ``tokens`` positions; windows of similar length share a batch."""
        batches = []
        for start in range(0, len(windows), BUCKET):
            bucket = sorted((self.length(window), i) for i, window in enumerate(windows[start : start + BUCKET]))
            in_order = [windows[start + i] for _, i in bucket]
            batches += list(_fill(in_order, [length for length, _ in bucket], tokens))
        return batches

    def windows(self, seed: int) -> list[Window]:
        """The windows of an epoch."""
        return self.threads.training(seed)

    def branch_count(self, requests_R: NDArray[np.int64]) -> int:
        """About how many branches these requests have."""
        offsets = self.logs.relevant_offsets
        return int((offsets[requests_R + 1] - offsets[requests_R]).sum())

    def length(self, window: Window) -> int:
        """About how many positions a window takes, its prefix and branches included."""
        tokens_V = self.threads.tokens_V
        prefix = len(self.threads.prefix(window))
        visits = int(tokens_V[window.stop] - tokens_V[window.start])
        return prefix + visits + self.branch_count(window.requests) * (len(self.layout.sizes) - 1)

    def targets(self, r: int, moment: Moment) -> Targets:
        """The objects acted on in request ``r`` among all live objects and, if new to ``moment``, among new ones."""
        ads, _ = self.logs.relevant(r)
        objects = np.unique(self.logs.ad_object_A[ads])
        codes = self.live.codes_OL[objects]
        trie, live_objects = self.live.all(moment)
        live = [live_objects]
        priors = path_priors(trie, codes)
        views = np.zeros(len(codes), np.int64)
        weights = np.full(len(objects), len(objects) ** -0.5)  # the weight of a basket grows with the root of its size
        branches = np.arange(len(objects))
        is_new = ~np.isin(objects, moment.history.object_E)
        if self.new_weight and is_new.any():
            new_trie, new_objects = self.live.new(moment)
            live.append(new_objects)
            new_priors = path_priors(new_trie, codes[is_new])
            priors = [np.concatenate(pair) for pair in zip(priors, new_priors, strict=True)]
            views = np.append(views, np.ones(is_new.sum(), np.int64))
            weights = np.append(weights, np.full(is_new.sum(), self.new_weight * is_new.sum() ** -0.5))
            branches = np.append(branches, branches[is_new])
            codes = np.concatenate([codes, codes[is_new]])
        return Targets(codes, priors, weights, branches, live, views)

    def batch(self, windows: Sequence[Window]) -> Batch:
        """Tensors of these windows."""
        rows = [self._row(self.threads.write(window)) for window in windows]
        thread_length = _round_up(max(row.thread_length for row in rows))
        branch_length = _round_up(max(len(row.ids) - row.thread_length for row in rows))
        length = thread_length + branch_length
        ids_BT = np.zeros((len(rows), length), np.int64)
        positions_BT = np.full(ids_BT.shape, -1, np.int64)
        until_BN = np.full((len(rows), branch_length), -1, np.int64)
        branch_BN = np.full((len(rows), branch_length), -1, np.int64)
        predicts = []
        for b, row in enumerate(rows):
            index = np.arange(len(row.ids))
            columns = index + (thread_length - row.thread_length) * (index >= row.thread_length)
            ids_BT[b, columns] = row.ids
            positions_BT[b, columns] = row.positions
            until_BN[b, : len(row.until)] = row.until
            branch_BN[b, : len(row.until)] = row.branch
            predicts.append(columns[np.asarray(row.predicts)] + b * length)
        targets = [target for row in rows for target in row.targets]
        priors = [np.concatenate([t.priors[level] for t in targets]) for level in range(len(self.layout.sizes))]
        return Batch(
            ids_BT=torch.from_numpy(ids_BT),
            positions_BT=torch.from_numpy(positions_BT),
            mask_BNT=torch.from_numpy(_branch_mask(until_BN, branch_BN, thread_length)),
            thread_length=thread_length,
            predicts_NL=torch.from_numpy(np.concatenate(predicts)),
            targets_NL=torch.from_numpy(np.concatenate([t.codes_NL for t in targets]).astype(np.int64)),
            priors=[torch.from_numpy(prior) for prior in priors],
            weights_N=torch.from_numpy(np.concatenate([t.weights_N for t in targets]).astype(np.float32)),
            thread_N=torch.from_numpy(np.repeat(np.arange(len(rows)), [len(row.predicts) for row in rows])),
            pointer_bias_NT=torch.from_numpy(np.concatenate([self._pointer_bias(row, thread_length) for row in rows])),
        )

    def _row(self, thread: Thread) -> _Row:
        targets = [self.targets(int(r), moment) for r, moment in zip(thread.requests, thread.moments, strict=True)]
        return _Row(thread, targets, self.layout)

    def _pointer_bias(self, row: _Row, length: int) -> NDArray[np.float32]:
        """float32 [N, length] of a thread's targets: -inf at positions that the pointer may not copy."""
        ids_T = np.zeros(length, np.int64)
        ids_T[: row.thread_length] = row.ids[: row.thread_length]
        objects_T = self.layout.objects(ids_T)
        parts = []
        for moment, end, target in zip(row.moments, row.ends, row.targets, strict=True):
            views = len(target.live)
            may_copy = repeatable(self.layout, np.tile(ids_T, (views, 1)), np.full(views, end), target.live)
            bias_T = self.live.pointer_bias(moment, objects_T)
            if bias_T is None:
                bias_T = np.zeros_like(objects_T, np.float32)
            parts.append(np.where(may_copy, bias_T, np.float32(-np.inf))[target.view_N])
        return np.concatenate(parts)


class _Row:
    """One thread and its branches as flat arrays.

    ``until`` and ``branch`` have an entry for each branch position: the last thread position that it attends to, and
    the number of its branch. ``predicts`` [N][L]: the position whose hidden state predicts each code of each target.
    """

    def __init__(self, thread: Thread, targets: list[Targets], layout: Layout) -> None:
        self.thread_length = len(thread.ids)
        self.moments = thread.moments
        self.ends = thread.ends.tolist()
        self.targets = targets
        self.predicts = list[list[int]]()
        ids = [thread.ids]
        positions = [np.arange(len(thread.ids))]
        until = list[NDArray[np.int64]]()
        branch = list[NDArray[np.int64]]()
        length = len(thread.ids)
        branches = 0
        depth = len(layout.sizes) - 1  # the last code predicts nothing, so it is no input
        for end, target in zip(self.ends, targets, strict=True):
            count = int(target.branch_N.max()) + 1
            codes = layout.code(layout.rows(target.codes_NL[:count])[:, :depth])
            ids.append(codes.ravel())
            positions.append(np.tile(end + 1 + np.arange(depth), count))
            until.append(np.full(count * depth, end))
            branch.append(np.repeat(branches + np.arange(count), depth))
            starts = length + np.arange(count) * depth
            paths = np.column_stack([np.full(count, end), starts[:, None] + np.arange(depth)])
            self.predicts += paths[target.branch_N].tolist()
            length += count * depth
            branches += count
        self.ids = np.concatenate(ids)
        self.positions = np.concatenate(positions)
        self.until = np.concatenate(until)
        self.branch = np.concatenate(branch)


def _round_up(length: int) -> int:
    return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def _branch_mask(until_BN: NDArray[np.int64], branch_BN: NDArray[np.int64], thread_length: int) -> NDArray[np.bool_]:
    """bool [B, N, thread_length + N]: a branch position attends to the thread up to ``until`` and to its branch so far.

    Padding counts as a branch of its own: a softmax over an empty set is nan.
    """
    index = np.arange(until_BN.shape[1])
    in_thread = np.arange(thread_length)[None, None, :] <= until_BN[:, :, None]
    in_branch = (branch_BN[:, :, None] == branch_BN[:, None, :]) & (index[None, None, :] <= index[None, :, None])
    return np.concatenate([in_thread, in_branch], axis=2)


def _fill(windows: Sequence[Window], lengths: Sequence[int], tokens: int) -> Iterator[list[Window]]:
    """Consecutive windows, ascending by length, in batches of at most ``tokens`` padded positions."""
    batch: list[Window] = []
    for window, length in zip(windows, lengths, strict=True):
        if batch and length * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch
