"""Trie-constrained beam search: every step scores only codes that lead to a live object, so no output can be invalid.

Prompts are threads: one user's text over several requests, each answered at its own position. A thread is read once;
the beams of all its requests then look at its keys and values where they lie, and at the few codes of their own.

A beam whose prefix leads to one live object only is finished: whatever else the model would say of it, the rest has
probability one. Its score stays as it is and it costs nothing more, so most searches end before the last level.

Letters: B threads, T positions, Q requests over all threads, W beams a request, L levels, C codes of a level, N rows
(beams that are still open, or paths that get a score), D width, K results.
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
from leadre.lm.beam import BeamPolicy, BeamRequest, BeamResult, Ints, are_live, descend, diverse, repeatable
from leadre.lm.cache import BeamCache, PromptCache
from leadre.lm.graphs import GraphPool
from leadre.lm.layout import Ids
from leadre.lm.pointer import PointerSources
from leadre.lm.prefix import PrefixCache
from leadre.lm.runner import Runner, runner_of
from leadre.semid.trie import Mask

Threads = Sequence[tuple[Ids, Sequence[BeamRequest]]]


class BeamSearcher:
    """A backbone made ready to generate: its weights are copied, so a searcher is made anew after training steps.

    ``prefixes`` keeps what prompts have in common from call to call, and belongs to this searcher alone. ``graphs``:
    whether steps have the fixed shapes of `graphs`; None = on a GPU.
    """

    def __init__(
        self,
        backbone: Backbone,
        runner: Runner | None = None,
        prefixes: PrefixCache | None = None,
        graphs: bool | None = None,
    ) -> None:
        self.backbone, self.prefixes = backbone, prefixes
        self.codes_OL = backbone.objects_OL.cpu().numpy() - np.array(backbone.layout.offsets[:-1])
        self.runner = runner or runner_of(backbone.body, _dtype(backbone))
        wanted = backbone.device.type == "cuda" if graphs is None else graphs
        self.graphs = GraphPool(backbone, self.runner) if wanted else None

    def __call__(self, threads: Threads, policy: BeamPolicy) -> list[list[BeamResult]]:
        """The best live rows of each request of each thread, one list of answers a thread.

        Exact where the policy has at least as many beams as there are live prefixes at every level; narrower beams may
        miss a row but never return a dead one.
        """
        asked = [(ids, asks) for ids, asks in threads if asks]
        if not asked:
            return [[] for _ in threads]
        search = BeamSearch(self, asked, policy)
        while search.open_QW.any():
            search.step()
        answers = search.answers(range(len(search.asks)))
        starts = np.cumsum([0, *(len(asks) for _, asks in threads)]).tolist()
        return [answers[start:end] for start, end in pairwise(starts)]


def _dtype(backbone: Backbone) -> torch.dtype:
    if backbone.codes_SD.dtype != torch.float32:
        return backbone.codes_SD.dtype
    return torch.bfloat16 if has_bfloat16(backbone.device) else torch.float32


@dataclass
class _Rows:
    """Paths in the making: where each row's hidden state stands, and what its pointer may still repeat."""

    backbone: Backbone
    beams: BeamCache
    sources: PointerSources | None
    hidden_ND: Tensor
    log_worth_NT: Tensor

    def log_p(self, level: int, prior_NC: NDArray[np.float32]) -> Tensor:
        """Log-probabilities of the codes that may come next (`Backbone.log_p`)."""
        prior = torch.from_numpy(prior_NC).to(self.hidden_ND.device)
        return self.backbone.log_p(self.hidden_ND, level, prior, self.sources, self.beams.thread_N, self.log_worth_NT)

    def write(self, level: int, codes_N: Ints, parents_N: Ints) -> None:
        """Run the model over the codes that continue the rows ``parents_N``, ascending; the others end here."""
        backbone, device = self.backbone, self.hidden_ND.device
        code_N, parent_N = torch.from_numpy(codes_N).to(device), torch.from_numpy(parents_N).to(device)
        self.log_worth_NT = self.log_worth_NT[parent_N]
        if self.sources is not None:  # from here on only objects that agree with this code can be repeated
            carried_NT = self.sources.codes_BTL[self.beams.thread_N[parent_N], :, level]
            self.log_worth_NT = self.log_worth_NT.where(carried_NT == code_N[:, None], -torch.inf)
        ids_N = backbone.layout.words + backbone.layout.offsets[level] + code_N
        self.hidden_ND = self.beams.grow(_embed(backbone, ids_N), parent_N)


class BeamSearch:
    """Q requests with W beams each, in the order in which they were asked; `step` writes the next code of all beams.

    ``open_QW`` says which beams go on; the search is over when there are none. `answers` can be asked for at any time.
    """

    @torch.inference_mode()
    def __init__(self, searcher: BeamSearcher, threads: Threads, policy: BeamPolicy) -> None:
        """Reads the prompts and chooses the first codes. Every thread has a request."""
        self.backbone, self.codes_OL, self.policy = searcher.backbone, searcher.codes_OL, policy
        self.asks = [ask for _, asks in threads for ask in asks]
        self.widths = policy.widths(len(self.backbone.layout.sizes))
        self.thread_Q = np.repeat(np.arange(len(threads)), [len(asks) for _, asks in threads])
        self.end_Q = np.array([ask.end for ask in self.asks])
        self.ids = [ids for ids, _ in threads]
        device = self.backbone.device
        self.prompts = PromptCache(searcher.runner, self.ids, device, searcher.prefixes)
        hidden_BTD = self.prompts.read(lambda ids_N: _embed(self.backbone, ids_N))
        self.ids_BT = np.zeros(hidden_BTD.shape[:2], np.int64)
        for b, ids in enumerate(self.ids):
            self.ids_BT[b, : len(ids)] = ids
        self.sources = self.backbone.sources(hidden_BTD, torch.from_numpy(self.ids_BT).to(device))
        places = torch.from_numpy(self.thread_Q).to(device), torch.from_numpy(self.end_Q).to(device)
        self.hidden_QD = hidden_BTD[places]
        self.rows = self._rows(np.arange(len(self.asks)), [ask.trie for ask in self.asks])
        self.level = 0  # codes that are written
        self.states_QW = np.stack([ask.trie.roots(1) for ask in self.asks])
        self.score_QW = torch.zeros(len(self.asks), 1, dtype=self.backbone.codes_SD.dtype, device=device)
        self.open_QW = np.ones((len(self.asks), 1), np.bool_)
        # which beam each of them continued last, and by which code
        self.beam_QW, self.code_QW = np.zeros((2, len(self.asks), 1), np.int64)
        self.graphs, self.bucket = searcher.graphs, None
        if self.graphs:
            self.bucket = self.graphs.take(len(self.asks), max(self.widths), hidden_BTD.shape[1])
            self.bucket.load(self.prompts, *places, self.sources, self.rows.log_worth_NT)
        self.step()

    @torch.inference_mode()
    def step(self) -> None:
        """Extend every beam by the codes that may follow and keep the best of each request."""
        level, open_QW = self.level, self.open_QW
        prior_QWC = np.stack([ask.trie.log_prior(self.states_QW[q], level) for q, ask in enumerate(self.asks)])
        _, W, C = prior_QWC.shape
        width = min(self.widths[level], W * C)
        if level and self.bucket:
            found = self.bucket.step(level, self.code_QW, self.beam_QW, open_QW, prior_QWC, self.score_QW)
        else:
            found = self._extend(prior_QWC, width)
        self.score_QW, best_QW = found[0][:, :width], found[1][:, :width].cpu().numpy()
        self.beam_QW, self.code_QW = np.minimum(best_QW // C, W - 1), best_QW % C
        before_QW = np.take_along_axis(self.states_QW, self.beam_QW, axis=1)
        after = [ask.trie.step(before_QW[q], self.code_QW[q], level) for q, ask in enumerate(self.asks)]
        self.states_QW = np.where(np.isfinite(self.score_QW.cpu().numpy()), np.stack(after), -1)
        row_QW = np.cumsum(open_QW).reshape(open_QW.shape) - 1
        self.parent_QW = np.take_along_axis(row_QW, self.beam_QW, axis=1)  # and its row, where it was open
        choices = [ask.trie.rows_below(self.states_QW[q]) for q, ask in enumerate(self.asks)]
        self.open_QW = np.stack(choices) > 1
        self.level += 1
        self._settle()
        self._release()

    def _extend(self, prior_QWC: NDArray[np.float32], width: int) -> tuple[Tensor, Tensor]:
        """(scores, places among beams x codes) of the best ``width`` continuations of each request, from open rows."""
        level, open_QW = self.level, self.open_QW
        if level:
            self.rows.write(level - 1, self.code_QW[open_QW], self.parent_QW[open_QW])
        finished = torch.from_numpy(np.where(np.isfinite(prior_QWC), np.float32(0), prior_QWC))
        total_QWC = finished.to(self.score_QW)  # a finished beam has one way to go, and log-probability zero on it
        total_QWC[torch.from_numpy(open_QW)] = self.rows.log_p(level, prior_QWC[open_QW]).to(total_QWC)
        total_QWC += self.score_QW[..., None]
        score_QW, best_QW = total_QWC.flatten(1).topk(width, dim=-1)
        return score_QW, best_QW

    def _release(self) -> None:
        """Give the bucket back when it is not needed any more."""
        if self.graphs and self.bucket and not self.open_QW.any():
            self.graphs.give(self.bucket)
            self.bucket = None

    def close(self, q: int) -> None:
        """Drop all beams of a request."""
        self.states_QW[q], self.open_QW[q] = -1, False
        self._release()

    @torch.inference_mode()
    def answers(self, requests: Sequence[int]) -> list[BeamResult]:
        """What is known of these requests: where beams are open still, they are finished by the prior alone."""
        score_QW = self.score_QW.float().cpu().numpy()
        found = [self._results(q, self.states_QW[q] >= 0, score_QW[q]) for q in requests]
        unmasked: list[NDArray[np.float32] | None] = [None] * len(found)
        if self.policy.catalogue is not None and found:
            counts = [len(rows) for rows, _ in found]
            objects_N = np.concatenate(
                [self.asks[q].objects[rows] for q, (rows, _) in zip(requests, found, strict=True)]
            )
            log_p_N = self._unmasked(self.policy.catalogue, np.repeat(requests, counts), objects_N)
            unmasked = list(np.split(log_p_N, np.cumsum(counts)[:-1]))
        return [
            BeamResult(rows, log_p, within, complete=not self.open_QW[q].any())
            for q, (rows, log_p), within in zip(requests, found, unmasked, strict=True)
        ]

    def _settle(self) -> None:
        """Close open beams of requests whose ``top`` results are certain."""
        top = self.policy.top
        finished_QW = (self.states_QW >= 0) & ~self.open_QW
        maybe_Q = self.open_QW.any(1) & (finished_QW.sum(1) >= top) & (top > 0)
        score_QW = self.score_QW.float().cpu().numpy()
        for q in np.flatnonzero(maybe_Q).tolist():
            _, log_p_K = self._results(q, finished_QW[q], score_QW[q])
            if len(log_p_K) == top and log_p_K[-1] > score_QW[q, self.open_QW[q]].max():
                self.states_QW[q, self.open_QW[q]], self.open_QW[q] = -1, False

    def _results(
        self, q: int, some_W: NDArray[np.bool_], score_W: NDArray[np.float32]
    ) -> tuple[Ints, NDArray[np.float32]]:
        """(rows, log-probabilities) of some beams of a request, best first, under the policy's limits."""
        ask, policy = self.asks[q], self.policy
        leaves_K, rest_K = descend(ask.trie, self.states_QW[q, some_W], self.level)
        is_live_K = ask.trie.rows_below(leaves_K) > 0  # something may have been paused since the last step
        rows_K, log_p_K = ask.trie.rows(leaves_K)[is_live_K], (score_W[some_W] + rest_K)[is_live_K]
        order = np.argsort(-log_p_K, kind="stable")[: min(self.widths[self.level :], default=None)]
        limits = []
        if policy.per_code:
            limits.append((self.codes_OL[ask.objects[rows_K[order]], 0], policy.per_code))
        if policy.per_group:
            assert ask.groups is not None, "a limit for each group wants Ask.groups"
            limits.append((ask.groups[rows_K[order]], policy.per_group))
        kept = order[diverse(limits, policy.top or len(order))] if limits else order[: policy.top or None]
        return rows_K[kept], log_p_K[kept]

    def _rows(self, requests_N: Ints, tries: Sequence[Mask] | None) -> _Rows:
        """Rows at the ends of requests, ascending; each may repeat what is live in its trie, without tries anything."""
        thread_N, end_N = self.thread_Q[requests_N], self.end_Q[requests_N]
        ids_NT, layout = self.ids_BT[thread_N], self.backbone.layout
        may_NT = repeatable(layout, ids_NT, end_N)
        for may_T, ids_T, trie in zip(may_NT, ids_NT, tries or (), strict=tries is not None):
            may_T[may_T] = are_live(trie, self.codes_OL[layout.objects(ids_T[may_T])])
        log_worth_NT = np.where(may_NT, np.float32(0), np.float32(-np.inf))
        for log_worth_T, q in zip(log_worth_NT, requests_N, strict=True):
            given_T = self.asks[q].log_worth_T
            if given_T is not None:
                log_worth_T[: len(given_T)] += given_T
        request_N, thread, end, log_worth = (
            torch.from_numpy(each).to(self.backbone.device) for each in (requests_N, thread_N, end_N, log_worth_NT)
        )
        beams = BeamCache(self.prompts, thread, end)
        return _Rows(self.backbone, beams, self.sources, self.hidden_QD[request_N], log_worth)

    def _unmasked(self, catalogue: Mask, requests_N: Ints, objects_N: Ints) -> NDArray[np.float32]:
        """Log-probabilities within the catalogue of objects asked about by requests, ascending: float32 [N]."""
        codes_NL = self.codes_OL[objects_N]
        rows, places = self._rows(requests_N, None), np.arange(len(objects_N))
        log_p_N, states_N = np.zeros(len(objects_N), np.float32), catalogue.roots(len(objects_N))
        for level in range(catalogue.depth if len(objects_N) else 0):
            if level:
                rows.write(level - 1, codes_NL[:, level - 1], places)
            log_p_NC = rows.log_p(level, catalogue.log_prior(states_N, level))
            log_p_N += log_p_NC.float().cpu().numpy()[places, codes_NL[:, level]]
            states_N = catalogue.step(states_N, codes_NL[:, level], level)
        return log_p_N


def _embed(backbone: Backbone, ids_N: Tensor) -> Tensor:
    return backbone.embed(ids_N[None])[0]
