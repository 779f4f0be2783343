"""Threads into tensors: every answer of a request is a branch that sees the thread up to the request and itself.

A visit often has several conversions. As branches they cost a few positions each, see the same prompt and not each
other, which is what serving looks like. Batches gather threads of about equal length, so little padding is trained.

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

from leadre.data.histories import first_seen
from leadre.lm.beam import repeatable
from leadre.lm.layout import Layout
from leadre.lm.prior import InventoryPrior
from leadre.semid.trie import path_priors
from leadre.tune.threads import Thread, ThreadBuilder, Window

GRID = 64  # lengths are padded to its multiples: every new shape costs a new kernel and its memory
BUCKET = 256  # windows sorted by length together; more saves padding, less keeps batches random


@dataclass(frozen=True)
class Batch:
    """Model inputs and, for each target, where its codes are predicted, its codes, priors and weight."""

    ids_BT: Tensor
    positions_BT: Tensor
    mask_BNT: Tensor  # what the branches' positions, T - thread of them, may see
    thread: int  # the threads' positions come first, padded to this many
    predicts_NL: Tensor  # flat position (b * T + t) whose hidden state predicts the code of each level
    targets_NL: Tensor
    priors: list[Tensor]  # L of float32 [N, sizes[l]], -inf where nothing live follows
    weights_N: Tensor
    thread_N: Tensor  # row of each target in ids_BT
    log_worth_NT: Tensor  # float32 [N, thread]: what each position counts for with the pointer (`Pointer.mix`)

    @property
    def tokens(self) -> int:
        """Positions that are not padding."""
        return int((self.positions_BT >= 0).sum())

    def to(self, device: torch.device) -> Batch:
        """The same on ``device``."""
        moved: dict[str, Any] = {n: value.to(device) for n, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved, priors=[prior.to(device) for prior in self.priors])


@dataclass(frozen=True)
class Targets:
    """What one request teaches: N targets with one prior a level, and whether they are ranked among new ones only."""

    codes_NL: NDArray[np.int32]
    priors: list[NDArray[np.float32]]
    weights_N: NDArray[np.float64]
    branch_N: NDArray[np.int64]  # targets of both views share the branch of their object
    live: list[NDArray[np.int64]]  # the objects live in each view asked for
    view_N: NDArray[np.int64]  # index into ``live``


class Examples:
    """Makes batches from windows. ``new_weight``: what an object new to the user counts when ranked among new ones."""

    def __init__(self, threads: ThreadBuilder, live: InventoryPrior, layout: Layout, new_weight: float) -> None:
        self.threads, self.live, self.layout, self.new_weight = threads, live, layout, new_weight
        self.logs = threads.logs

    def epoch(self, seed: int, tokens: int) -> list[list[Window]]:
        """All training windows in batches of about ``tokens`` positions, in an order that ``seed`` draws."""
        rng = np.random.default_rng(seed)
        windows = self.windows(seed)
        windows = [windows[i] for i in rng.permutation(len(windows))]
        batches = []
        for start in range(0, len(windows), BUCKET):
            bucket = sorted((self.length(window), i) for i, window in enumerate(windows[start : start + BUCKET]))
            batches += list(_fill([windows[start + i] for _, i in bucket], [length for length, _ in bucket], tokens))
        return [batches[i] for i in rng.permutation(len(batches))]

    def windows(self, seed: int) -> list[Window]:
        """Where an epoch's threads are cut."""
        return self.threads.training(seed)

    def answers(self, requests_R: NDArray[np.int64]) -> int:
        """About how many branches these requests have."""
        offsets = self.logs.relevant_offsets
        return int((offsets[requests_R + 1] - offsets[requests_R]).sum())

    def length(self, window: Window) -> int:
        """About how many positions a window takes, its prefix and branches included."""
        tokens_V = self.threads.tokens_V
        prefix = len(self.threads.prompter.prefix(window.user, window.start))
        answers = self.answers(window.requests)
        return prefix + int(tokens_V[window.stop] - tokens_V[window.start]) + answers * (len(self.layout.sizes) - 1)

    def targets(self, r: int) -> Targets:
        """The objects acted on in request ``r``, among all that was live and, where new, among what was new."""
        ads, _ = self.logs.relevant(r)
        objects, first_ad = np.unique(self.logs.ad_object_A[ads], return_index=True)
        codes = self.live.codes_OL[objects]
        trie, every = self.live.all(r)
        priors, live, views = path_priors(trie, codes), [every], np.zeros(len(codes), np.int64)
        weights = np.full(len(objects), len(objects) ** -0.5)  # a large basket says more, but not in proportion
        branches = np.arange(len(objects))
        is_new = first_seen(self.logs, r)[first_ad]
        if self.new_weight and is_new.any():
            trie, new = self.live.new(r)
            among_new = path_priors(trie, codes[is_new])
            live, views = [every, new], np.append(views, np.ones(is_new.sum(), np.int64))
            priors = [np.concatenate(pair) for pair in zip(priors, among_new, strict=True)]
            weights = np.append(weights, np.full(is_new.sum(), self.new_weight * is_new.sum() ** -0.5))
            branches = np.append(branches, branches[is_new])
            codes = np.concatenate([codes, codes[is_new]])
        return Targets(codes, priors, weights, branches, live, views)

    def batch(self, windows: Sequence[Window]) -> Batch:
        """Tensors of these windows."""
        rows = [
            _Row(thread, [self.targets(int(r)) for r in thread.requests], self.layout)
            for thread in map(self.threads.write, windows)
        ]
        thread = _round_up(max(row.thread for row in rows))
        branches = _round_up(max(len(row.ids) - row.thread for row in rows))
        ids_BT = np.zeros((len(rows), thread + branches), np.int64)
        positions_BT = np.full(ids_BT.shape, -1, np.int64)
        until_BN = np.full((len(rows), branches), -1, np.int64)
        branch_BN = np.full((len(rows), branches), -1, np.int64)
        predicts = []
        for b, row in enumerate(rows):
            place = np.arange(len(row.ids)) + (thread - row.thread) * (np.arange(len(row.ids)) >= row.thread)
            ids_BT[b, place], positions_BT[b, place] = row.ids, row.positions
            until_BN[b, : len(row.until)], branch_BN[b, : len(row.until)] = row.until, row.branch
            predicts.append(place[np.asarray(row.predicts)] + b * (thread + branches))
        targets = [target for row in rows for target in row.targets]
        priors = [
            torch.from_numpy(np.concatenate([t.priors[level] for t in targets]))
            for level in range(len(self.layout.sizes))
        ]
        return Batch(
            ids_BT=torch.from_numpy(ids_BT),
            positions_BT=torch.from_numpy(positions_BT),
            mask_BNT=torch.from_numpy(_visible(until_BN, branch_BN, thread)),
            thread=thread,
            predicts_NL=torch.from_numpy(np.concatenate(predicts)),
            targets_NL=torch.from_numpy(np.concatenate([t.codes_NL for t in targets]).astype(np.int64)),
            priors=priors,
            weights_N=torch.from_numpy(np.concatenate([t.weights_N for t in targets]).astype(np.float32)),
            thread_N=torch.from_numpy(np.repeat(np.arange(len(rows)), [len(row.predicts) for row in rows])),
            log_worth_NT=torch.from_numpy(np.concatenate([self._log_worth(row, thread) for row in rows])),
        )

    def _log_worth(self, row: _Row, thread: int) -> NDArray[np.float32]:
        """float32 [N, thread] of one thread's targets."""
        ids_T = np.zeros(thread, np.int64)
        ids_T[: row.thread] = row.ids[: row.thread]
        objects_T, parts = self.layout.objects(ids_T), []
        for r, end, target in zip(row.requests, row.ends, row.targets, strict=True):
            views = len(target.live)
            by_view = repeatable(self.layout, np.tile(ids_T, (views, 1)), np.full(views, end), target.live)
            log_worth_T = self.live.log_worth(r, objects_T)
            counted = np.zeros_like(by_view, np.float32) if log_worth_T is None else log_worth_T
            parts.append(np.where(by_view, counted, np.float32(-np.inf))[target.view_N])
        return np.concatenate(parts)


class _Row:
    """One thread and its branches as flat lists."""

    def __init__(self, thread: Thread, targets: list[Targets], layout: Layout) -> None:
        n = len(thread.ids)
        self.thread = n
        ids, positions = [thread.ids], [np.arange(n)]
        until, branch = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
        self.requests, self.ends = thread.requests.tolist(), thread.ends.tolist()
        self.targets, self.predicts = targets, list[list[int]]()
        length, branches, depth = n, 0, len(layout.sizes) - 1
        for end, target in zip(self.ends, targets, strict=True):
            count = int(target.branch_N.max()) + 1
            rows = layout.code(layout.rows(target.codes_NL[:count])[:, :depth])
            ids.append(rows.ravel())
            positions.append(np.tile(end + 1 + np.arange(depth), count))
            until.append(np.full(count * depth, end))
            branch.append(np.repeat(branches + np.arange(count), depth))
            starts = length + np.arange(count) * depth
            paths = np.column_stack([np.full(count, end), starts[:, None] + np.arange(depth)])
            self.predicts += paths[target.branch_N].tolist()
            length, branches = length + count * depth, branches + count
        self.ids, self.positions = np.concatenate(ids), np.concatenate(positions)
        self.until, self.branch = np.concatenate(until), np.concatenate(branch)


def _round_up(length: int) -> int:
    return -(-length // GRID) * GRID


def _visible(until_BN: NDArray[np.int64], branch_BN: NDArray[np.int64], thread: int) -> NDArray[np.bool_]:
    """bool [B, N, thread + N]: what each branch position sees: the thread up to ``until``, and its branch so far."""
    index = np.arange(until_BN.shape[1])
    read = np.arange(thread)[None, None, :] <= until_BN[:, :, None]
    own = (branch_BN[:, :, None] == branch_BN[:, None, :]) & (index[None, None, :] <= index[None, :, None])
    return np.concatenate([read, own], axis=2)  # padding is a branch of its own: a softmax over nothing is nan


def _fill(windows: Sequence[Window], lengths: Sequence[int], tokens: int) -> Iterator[list[Window]]:
    """Consecutive windows, ascending by length, into batches of at most ``tokens`` padded positions."""
    batch: list[Window] = []
    for window, length in zip(windows, lengths, strict=True):
        if batch and length * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch
