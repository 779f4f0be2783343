"""Trie-constrained beam search: every step scores only codes that lead to a live object, so no output can be invalid.

Prompts are threads: one user's text over several requests, each answered at its own position. A thread is read once;
the beams of all its requests then look at its keys and values where they lie, and at the few codes of their own.

A beam whose prefix leads to one live object only is finished: whatever else the model would say of it, the rest has
probability one. Its score stays as it is and it costs nothing more, so most searches end before the last level.

Letters: B threads, T positions, Q requests over all threads, W beams a request, L levels, C codes of a level, N rows
(beams that are still open), H heads, G key-value heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre.lm.backbone import Backbone, has_bfloat16
from leadre.lm.cache import Beams, Prompts
from leadre.lm.layout import Ids, Layout
from leadre.lm.runner import Runner, runner_of
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


class Searcher:
    """A backbone made ready to generate: its weights are copied, so a searcher is made anew after training steps."""

    def __init__(self, backbone: Backbone, runner: Runner | None = None) -> None:
        self.backbone = backbone
        self.runner = runner or runner_of(backbone.body, _dtype(backbone))

    @torch.inference_mode()
    def __call__(self, threads: Sequence[tuple[Ids, Sequence[Ask]]], width: int | Sequence[int]) -> list[list[Answer]]:
        """The ``width`` best live rows of each request of each thread, one list of answers a thread.

        ``width`` may differ by level. Exact where it is at least the number of live prefixes at every level; narrower
        beams may miss a row but never return a dead one.
        """
        asked = [b for b, (_, asks) in enumerate(threads) if asks]
        answers: list[list[Answer]] = [[] for _ in threads]
        if not asked:
            return answers
        levels = len(self.backbone.layout.sizes)
        widths = [width] * levels if isinstance(width, int) else list(width)
        search = _Search(self.backbone, self.runner, [threads[b] for b in asked])
        for level, beams in enumerate(widths):
            search.step(level, beams)
        for b, found in zip(asked, search.answers(), strict=True):
            answers[b] = found
        return answers


def _dtype(backbone: Backbone) -> torch.dtype:
    if backbone.codes_SD.dtype != torch.float32:
        return backbone.codes_SD.dtype
    return torch.bfloat16 if has_bfloat16(backbone.device) else torch.float32


class _Search:
    """The state of one call: Q requests with W beams each, level by level."""

    def __init__(self, backbone: Backbone, runner: Runner, threads: Sequence[tuple[Ids, Sequence[Ask]]]) -> None:
        self.backbone, device = backbone, backbone.device
        self.asks = [ask for _, asks in threads for ask in asks]
        self.counts = [len(asks) for _, asks in threads]
        thread_Q = np.repeat(np.arange(len(threads)), self.counts)
        end_Q = np.array([ask.end for ask in self.asks])
        ids = [torch.from_numpy(ids.astype(np.int64)).to(device) for ids, _ in threads]
        prompts = Prompts(runner, [len(each) for each in ids], device)
        hidden_BTD = prompts.read(self._embed(torch.cat(ids)))
        ids_BT = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        self.sources = backbone.sources(hidden_BTD, ids_BT)
        places = torch.from_numpy(thread_Q).to(device), torch.from_numpy(end_Q).to(device)
        may_QT = repeatable(backbone.layout, ids_BT.cpu().numpy()[thread_Q], end_Q, [ask.objects for ask in self.asks])
        # rows are the open beams: at first one a request, standing at its last position of the prompt
        self.may_NT = torch.from_numpy(may_QT).to(device)
        self.hidden_ND = hidden_BTD[places]
        self.beams = Beams(prompts, *places)
        self.states_QW = np.zeros((len(self.asks), 1), np.int64)
        self.score_QW = torch.zeros(len(self.asks), 1, dtype=backbone.codes_SD.dtype, device=device)
        self.row_QW = np.arange(len(self.asks))[:, None]  # the row of each open beam, -1 for the others

    def step(self, level: int, width: int) -> None:
        """Extend every beam by the codes that may follow and keep the best ``width`` of each request."""
        prior = np.stack([ask.trie.log_prior(self.states_QW[q], level) for q, ask in enumerate(self.asks)])
        finished = torch.from_numpy(np.where(np.isfinite(prior), np.float32(0), prior))
        log_p_QWC = finished.to(self.score_QW)
        open_QW = self.row_QW >= 0
        if open_QW.any():  # a finished beam has one way to go, and log-probability zero on it
            log_p_QWC[torch.from_numpy(open_QW)] = self._log_p(level, prior[open_QW])
        total_QWC = log_p_QWC + self.score_QW[..., None]
        codes = total_QWC.shape[-1]
        self.score_QW, best = total_QWC.flatten(1).topk(min(width, total_QWC[0].numel()), dim=-1)
        parents_QW, codes_QW = (best // codes).cpu().numpy(), (best % codes).cpu().numpy()
        came_from = np.take_along_axis(self.states_QW, parents_QW, axis=1)
        states = [ask.trie.step(came_from[q], codes_QW[q], level) for q, ask in enumerate(self.asks)]
        self.states_QW = np.where(np.isfinite(self.score_QW.cpu().numpy()), np.stack(states), -1)
        if level + 1 < len(self.backbone.layout.sizes):
            self._grow(level, np.take_along_axis(self.row_QW, parents_QW, axis=1), codes_QW)

    def answers(self) -> list[list[Answer]]:
        """What the beams have found, one list a thread."""
        found, log_p_QW = [], self.score_QW.float().cpu().numpy()
        for ask, states_W, log_p_W in zip(self.asks, self.states_QW, log_p_QW, strict=True):
            live = states_W >= 0
            found.append(Answer(ask.trie.rows(states_W[live]), log_p_W[live]))
        starts = np.cumsum([0, *self.counts])
        return [found[start:end] for start, end in pairwise(starts.tolist())]

    def _log_p(self, level: int, prior_NC: NDArray[np.float32]) -> Tensor:
        prior = torch.from_numpy(prior_NC).to(self.backbone.device)
        return self.backbone.log_p(self.hidden_ND, level, prior, self.sources, self.beams.thread_N, self.may_NT)

    def _grow(self, level: int, parents_QW: NDArray[np.int64], codes_QW: NDArray[np.int64]) -> None:
        """Run the model over the codes just written by the beams that are still open."""
        backbone, device = self.backbone, self.backbone.device
        choices = np.stack([ask.trie.rows_below(self.states_QW[q]) for q, ask in enumerate(self.asks)])
        open_QW = choices > 1
        self.row_QW = np.where(open_QW, np.cumsum(open_QW).reshape(open_QW.shape) - 1, -1)
        if not open_QW.any():
            return
        parent_N = torch.from_numpy(parents_QW[open_QW]).to(device)
        code_N = torch.from_numpy(codes_QW[open_QW]).to(device)
        self.may_NT = self.may_NT[parent_N]
        if self.sources is not None:  # from here on only objects that agree with this code can be repeated
            carried_NT = self.sources.codes_BTL[self.beams.thread_N[parent_N], :, level]
            self.may_NT = self.may_NT & (carried_NT == code_N[:, None])
        ids_N = backbone.layout.words + backbone.layout.offsets[level] + code_N
        self.hidden_ND = self.beams.grow(self._embed(ids_N), parent_N)

    def _embed(self, ids_N: Tensor) -> Tensor:
        return self.backbone.embed(ids_N[None])[0]


def beam_search(
    backbone: Backbone, threads: Sequence[tuple[Ids, Sequence[Ask]]], width: int | Sequence[int]
) -> list[list[Answer]]:
    """One call of a new `Searcher`."""
    return Searcher(backbone)(threads, width)


def repeatable(
    layout: Layout, ids_QT: NDArray[np.int64], end_Q: NDArray[np.int64], objects: Sequence[NDArray[np.int64]]
) -> NDArray[np.bool_]:
    """bool [Q, T]: positions up to ``end_Q`` that hold an object which is among the live ``objects[q]``."""
    at_QT = ids_QT - layout.words - layout.codes
    live = np.stack([np.isin(at_T, some) for at_T, some in zip(at_QT, objects, strict=True)])
    result: NDArray[np.bool_] = live & (np.arange(ids_QT.shape[1]) <= end_Q[:, None])
    return result
