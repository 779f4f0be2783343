"""Trie-masked beam search: every step scores only codes that lead to a live object, so no output can be invalid.

Prompts are threads: one user's text over several requests, each answered at its own position. A thread is read once;
every beam of every request then attends to the part of the thread before its own position, and to its own codes. Beams
are extra positions with a mask of their own (tree attention), so keys and values are never copied.

Letters: B threads, T positions, Q requests over all threads, W beams a request, L levels, K keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from leadre.lm.backbone import Backbone
from leadre.lm.layout import Ids, Layout
from leadre.semid.trie import Trie


@dataclass(frozen=True)
class Ask:
    """One request: answered at position ``end`` of its thread, from what is live in ``trie``.

    ``objects`` are the indices of the objects that the trie's rows stand for, ascending.
    """

    end: int
    trie: Trie
    objects: NDArray[np.int64]


@dataclass(frozen=True)
class Answer:
    """Rows of the trie, best first, and their log-probabilities within the live set; empty where nothing is live."""

    rows: NDArray[np.int64]
    log_p: NDArray[np.float32]


@torch.inference_mode()
def beam_search(
    backbone: Backbone, threads: Sequence[tuple[Ids, Sequence[Ask]]], width: int | Sequence[int]
) -> list[list[Answer]]:
    """The ``width`` best live rows of each request of each thread, one list of answers a thread.

    ``width`` may differ by level. Exact where it is at least the number of live prefixes at every level; narrower
    beams may miss a row but never return a dead one.
    """
    asks = [(b, ask) for b, (_, thread) in enumerate(threads) for ask in thread]
    if not asks:
        return [[] for _ in threads]
    levels = len(backbone.layout.sizes)
    widths = [width] * levels if isinstance(width, int) else list(width)
    thread_Q = np.array([b for b, _ in asks])
    end_Q = np.array([ask.end for _, ask in asks])
    cache = DynamicCache(config=backbone.body.config)
    ids_BT = _pad([ids for ids, _ in threads])
    hidden_BTD = _read(backbone, ids_BT, cache)
    sources = backbone.sources(hidden_BTD, torch.from_numpy(ids_BT).to(backbone.device))
    may_QT = torch.from_numpy(repeatable(backbone.layout, ids_BT[thread_Q], end_Q, [ask.objects for _, ask in asks]))
    may_QWT = may_QT.to(backbone.device)[:, None]
    hidden_QWD = hidden_BTD[torch.from_numpy(thread_Q), torch.from_numpy(end_Q)][:, None]
    states_QW = np.zeros((len(asks), 1), np.int64)
    score_QW = torch.zeros(len(asks), 1, device=backbone.device)
    tree = _Tree(thread_Q, end_Q, hidden_BTD.shape[1], len(threads))
    for level in range(levels):
        priors = [ask.trie.log_prior(states_QW[q], level) for q, (_, ask) in enumerate(asks)]
        prior = torch.from_numpy(np.stack(priors)).to(backbone.device).flatten(0, 1)
        width_now = states_QW.shape[1]
        thread_N = torch.from_numpy(np.repeat(thread_Q, width_now)).to(backbone.device)
        log_p = backbone.log_p(hidden_QWD.flatten(0, 1), level, prior, sources, thread_N, may_QWT.flatten(0, 1))
        log_p = log_p.view(len(asks), width_now, -1) + score_QW[..., None]
        codes = log_p.shape[-1]
        score_QW, best = log_p.flatten(1).topk(min(widths[level], log_p[0].numel()), dim=-1)
        parents_QW, codes_QW = (best // codes).cpu().numpy(), (best % codes).cpu().numpy()
        came_from = np.take_along_axis(states_QW, parents_QW, axis=1)
        dead = ~torch.isfinite(score_QW).cpu().numpy()
        states_QW = np.stack([ask.trie.step(came_from[q], codes_QW[q], level) for q, (_, ask) in enumerate(asks)])
        states_QW[dead] = -1
        if level < levels - 1:
            if sources is not None:
                parents = torch.from_numpy(parents_QW).to(backbone.device)
                carried = sources.codes_BTL[torch.from_numpy(thread_Q), :, level][:, None]
                may_QWT = may_QWT.gather(1, parents[..., None].expand(-1, -1, may_QT.shape[1]))
                may_QWT = may_QWT & (carried == torch.from_numpy(codes_QW).to(backbone.device)[..., None])
            rows = backbone.layout.offsets[level] + codes_QW
            hidden_QWD = tree.grow(backbone, cache, backbone.layout.code(rows), parents_QW)
    answers: list[list[Answer]] = [[] for _ in threads]
    log_p_QW = score_QW.float().cpu().numpy()
    for q, (b, ask) in enumerate(asks):
        live = states_QW[q] >= 0
        answers[b].append(Answer(ask.trie.rows(states_QW[q][live]), log_p_QW[q][live]))
    return answers


def repeatable(
    layout: Layout, ids_QT: NDArray[np.int64], end_Q: NDArray[np.int64], objects: Sequence[NDArray[np.int64]]
) -> NDArray[np.bool_]:
    """bool [Q, T]: positions up to ``end_Q`` that hold an object which is among the live ``objects[q]``."""
    at_QT = ids_QT - layout.words - layout.codes
    live = np.stack([np.isin(at_T, some) for at_T, some in zip(at_QT, objects, strict=True)])
    result: NDArray[np.bool_] = live & (np.arange(ids_QT.shape[1]) <= end_Q[:, None])
    return result


def _pad(threads: Sequence[Ids]) -> NDArray[np.int64]:
    """Threads as one array [B, T], padded at the end."""
    ids_BT = np.zeros((len(threads), max(len(ids) for ids in threads)), np.int64)
    for b, ids in enumerate(threads):
        ids_BT[b, : len(ids)] = ids
    return ids_BT


def _read(backbone: Backbone, ids_BT: NDArray[np.int64], cache: DynamicCache) -> Tensor:
    """Hidden states [B, T, D] of the threads; their keys and values go into ``cache``."""
    threads, longest = ids_BT.shape
    positions_BT = torch.arange(longest, device=backbone.device).expand(threads, longest)
    nothing = torch.zeros(threads, 0, longest, dtype=torch.bool, device=backbone.device)
    hidden: Tensor = backbone(torch.from_numpy(ids_BT).to(backbone.device), positions_BT, nothing, longest, cache)
    return hidden


class _Tree:
    """The beams of all requests as extra positions of their threads, and which keys each of them may see."""

    def __init__(self, thread_Q: NDArray[np.int64], end_Q: NDArray[np.int64], read: int, threads: int) -> None:
        self.thread_Q, self.end_Q, self.keys, self.threads, self.depth = thread_Q, end_Q, read, threads, 0
        self.path_QWL = np.zeros((len(end_Q), 1, 0), np.int64)  # key index of each code a beam has written
        # the how-manieth request of its thread: requests of one thread stand side by side in the batch row
        first_Q = np.searchsorted(thread_Q, thread_Q, side="left")
        self.slot_Q = np.arange(len(thread_Q)) - first_Q

    def grow(self, backbone: Backbone, cache: DynamicCache, ids_QW: Ids, parents_QW: NDArray[np.int64]) -> Tensor:
        """Append one code to every beam; hidden states [Q, W, D] of these codes."""
        width = ids_QW.shape[1]
        columns_QW = self.slot_Q[:, None] * width + np.arange(width)
        added = int(self.slot_Q.max() + 1) * width
        inherited = np.take_along_axis(self.path_QWL, parents_QW[..., None], axis=1)
        self.path_QWL = np.concatenate([inherited, (self.keys + columns_QW)[..., None]], axis=-1)
        ids_BN = np.zeros((self.threads, added), np.int64)
        positions_BN = np.zeros((self.threads, added), np.int64)
        mask_BNK = np.zeros((self.threads, added, self.keys + added), np.bool_)
        mask_BNK[..., 0] = True  # padding positions must see something, or their softmax is undefined
        thread_QW = np.repeat(self.thread_Q[:, None], width, axis=1)
        ids_BN[thread_QW, columns_QW] = ids_QW
        positions_BN[thread_QW, columns_QW] = self.end_Q[:, None] + 1 + self.depth
        before_QK = np.arange(self.keys + added) <= self.end_Q[:, None]
        mask_BNK[thread_QW, columns_QW] = before_QK[:, None, :]
        mask_BNK[thread_QW[..., None], columns_QW[..., None], self.path_QWL] = True
        tensors = [torch.from_numpy(array).to(backbone.device) for array in (ids_BN, positions_BN, mask_BNK)]
        hidden_BND: Tensor = backbone(*tensors, 0, cache)
        self.keys, self.depth = self.keys + added, self.depth + 1
        return hidden_BND[torch.from_numpy(thread_QW), torch.from_numpy(columns_QW)]
