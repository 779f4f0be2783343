"""Trie-constrained beam search: each step scores only codes that lead to a live object, so every result is live.

A thread is a prompt that several requests share. A search prefills its threads once; each step then decodes one code of
every open beam. A beam whose prefix leads to exactly one live object is finished: the rest of its path has probability
one. It keeps its score and costs no further computation, so most searches end before the last level.

Letters: Q requests over all threads, W beams per request, L levels, C codes of a level, K results.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre.lm.backbone import Backbone, has_bfloat16
from leadre.lm.beam import BeamPolicy, BeamResult, Ints, ranked
from leadre.lm.graphs import CapturedStep, GraphPool
from leadre.lm.paths import OpenPaths, PrefilledThreads, Threads, prefill
from leadre.lm.prefix import BlockHash, PrefixCache
from leadre.lm.runner import BodyRunner, make_runner


class BeamSearcher:
    """A backbone prepared for generation. It holds a copy of the weights: make a new one after training steps.

    ``prefix_cache`` keeps the KV blocks of common prompt beginnings between calls; it must belong to this searcher
    alone. ``graphs`` switches steps of fixed shapes on (`leadre.lm.graphs`); None = only on a GPU.
    """

    def __init__(
        self,
        backbone: Backbone,
        runner: BodyRunner | None = None,
        prefix_cache: PrefixCache | None = None,
        graphs: bool | None = None,
    ) -> None:
        self.backbone = backbone
        self.prefix_cache = prefix_cache
        self.codes_OL = backbone.objects_OL.cpu().numpy() - np.array(backbone.layout.offsets[:-1])
        self.runner = runner or make_runner(backbone.body, _runner_dtype(backbone))
        use_graphs = backbone.device.type == "cuda" if graphs is None else graphs
        self.graphs = GraphPool(backbone, self.runner) if use_graphs else None

    def __call__(self, threads: Threads, policy: BeamPolicy) -> list[list[BeamResult]]:
        """The best live rows of each request; one list of results per thread.

        Exact if the policy has at least as many beams as there are live prefixes at every level. Narrower beams may
        miss a live row; they never return a dead one.
        """
        nonempty = [(ids, requests) for ids, requests in threads if requests]
        if not nonempty:
            return [[] for _ in threads]
        search = BeamSearch(self, nonempty, policy)
        search.prefill()
        while search.open_QW.any():
            search.step()
        results = search.results(range(len(search.requests)))
        starts = np.cumsum([0, *(len(requests) for _, requests in threads)]).tolist()
        return [results[start:end] for start, end in pairwise(starts)]


def _runner_dtype(backbone: Backbone) -> torch.dtype:
    """bfloat16 for float32 weights if the device is fast at it, else the type of the weights."""
    if backbone.codes_SD.dtype != torch.float32:
        return backbone.codes_SD.dtype
    return torch.bfloat16 if has_bfloat16(backbone.device) else torch.float32


class BeamSearch:
    """One search over Q requests with W beams each. Call `prefill` first, then `step` while any beam is open.

    Requests are in the order of their threads. ``open_QW`` marks the beams that continue; the search ends when none is
    left. `results` may be called after any step.
    """

    prefilled: PrefilledThreads  # set by `prefill`
    paths: OpenPaths

    def __init__(
        self,
        searcher: BeamSearcher,
        threads: Threads,
        policy: BeamPolicy,
        hashes: list[list[BlockHash]] | None = None,
    ) -> None:
        """Every thread has at least one request. ``hashes`` as in `prefill`."""
        self.searcher = searcher
        self.hashes = hashes
        self.threads = threads
        self.policy = policy
        self.requests = [request for _, requests in threads for request in requests]
        self.widths = policy.widths(len(searcher.backbone.layout.sizes))
        count = len(self.requests)
        self.level = 0  # codes generated so far
        self.states_QW = np.stack([request.mask.roots(1) for request in self.requests])
        self.score_QW = torch.zeros(count, 1, dtype=searcher.backbone.codes_SD.dtype, device=searcher.backbone.device)
        self.open_QW = np.ones((count, 1), np.bool_)
        # per beam: the beam of the previous step that it continues, and the code that it added
        self.beam_QW, self.code_QW = np.zeros((2, count, 1), np.int64)
        self.captured: CapturedStep | None = None

    @torch.inference_mode()
    def prefill(self) -> None:
        """Run the model over the prompts and generate the first code of every beam."""
        searcher = self.searcher
        self.prefilled = prefill(
            searcher.backbone, searcher.runner, self.threads, searcher.prefix_cache, searcher.codes_OL, self.hashes
        )
        every_request = np.arange(len(self.requests))
        self.paths = self.prefilled.open_paths(every_request, [request.mask for request in self.requests])
        if searcher.graphs:
            cache = self.prefilled.cache
            self.captured = searcher.graphs.acquire(len(self.requests), max(self.widths), cache.keys.shape[3])
            beams = self.paths.beams
            self.captured.load(cache, beams.thread_N, beams.end_N, self.paths.sources, self.paths.pointer_bias_NT)
        self.step()

    @torch.inference_mode()
    def step(self) -> None:
        """Generate one code: extend all beams, keep each request's best, close those that cannot enter its top."""
        prior_QWC = np.stack(
            [request.mask.log_prior(self.states_QW[q], self.level) for q, request in enumerate(self.requests)]
        )
        score_QW, best_QW = self._advance(prior_QWC)
        self._prune(score_QW, best_QW, prior_QWC.shape[2])
        self._close_decided()
        self._release()

    def _advance(self, prior_QWC: NDArray[np.float32]) -> tuple[Tensor, Ints]:
        """(scores, indices among beams x codes) of the best continuations of each request, best first."""
        level = self.level
        open_QW = self.open_QW
        _, W, C = prior_QWC.shape
        width = min(self.widths[level], W * C)
        if level and self.captured:
            score_QW, best_QW = self.captured.step(level, self.code_QW, self.beam_QW, open_QW, prior_QWC, self.score_QW)
            return score_QW[:, :width], best_QW[:, :width].cpu().numpy()
        if level:
            self.paths.append(level - 1, self.code_QW[open_QW], self.parent_QW[open_QW])
        # a finished beam has one continuation, of log-probability zero
        finished_QWC = torch.from_numpy(np.where(np.isfinite(prior_QWC), np.float32(0), prior_QWC))
        total_QWC = finished_QWC.to(self.score_QW)
        total_QWC[torch.from_numpy(open_QW)] = self.paths.log_p(level, prior_QWC[open_QW]).to(total_QWC)
        total_QWC += self.score_QW[..., None]
        score_QW, best_QW = total_QWC.flatten(1).topk(width, dim=-1)
        return score_QW, best_QW.cpu().numpy()

    def _prune(self, score_QW: Tensor, best_QW: Ints, codes: int) -> None:
        """Replace the beams by the best continuations; those with more than one live row below stay open."""
        self.score_QW = score_QW
        self.beam_QW = np.minimum(best_QW // codes, self.states_QW.shape[1] - 1)
        self.code_QW = best_QW % codes
        parents_QW = np.take_along_axis(self.states_QW, self.beam_QW, axis=1)
        states = [
            request.mask.step(parents_QW[q], self.code_QW[q], self.level) for q, request in enumerate(self.requests)
        ]
        self.states_QW = np.where(np.isfinite(self.score_QW.cpu().numpy()), np.stack(states), -1)
        row_QW = np.cumsum(self.open_QW).reshape(self.open_QW.shape) - 1
        self.parent_QW = np.take_along_axis(row_QW, self.beam_QW, axis=1)  # the parent's row among the open beams
        rows_below = [request.mask.rows_below(self.states_QW[q]) for q, request in enumerate(self.requests)]
        self.open_QW = np.stack(rows_below) > 1
        self.level += 1

    def _close_decided(self) -> None:
        """Close the open beams of requests whose ``top`` results are certain."""
        top = self.policy.top
        finished_QW = (self.states_QW >= 0) & ~self.open_QW
        has_enough_Q = self.open_QW.any(1) & (finished_QW.sum(1) >= top) & (top > 0)
        score_QW = self.score_QW.float().cpu().numpy()
        for q in np.flatnonzero(has_enough_Q).tolist():
            _, log_p_K = self._ranked(q, finished_QW[q], score_QW[q])
            if len(log_p_K) == top and log_p_K[-1] > score_QW[q, self.open_QW[q]].max():
                self.states_QW[q, self.open_QW[q]] = -1
                self.open_QW[q] = False

    def _release(self) -> None:
        """Return the captured step to its pool once no beam is open."""
        if self.searcher.graphs and self.captured and not self.open_QW.any():
            self.searcher.graphs.release(self.captured)
            self.captured = None

    def close(self, q: int) -> None:
        """Drop all beams of a request."""
        self.states_QW[q] = -1
        self.open_QW[q] = False
        self._release()

    @torch.inference_mode()
    def results(self, requests: Sequence[int]) -> list[BeamResult]:
        """Results of the requests with these indices so far; the prior alone completes open beams."""
        catalogue = self.policy.catalogue
        score_QW = self.score_QW.float().cpu().numpy()
        rankings = [self._ranked(q, self.states_QW[q] >= 0, score_QW[q]) for q in requests]
        unmasked: list[NDArray[np.float32] | None] = [None] * len(rankings)
        if catalogue is not None and rankings:
            counts = [len(rows_K) for rows_K, _ in rankings]
            objects = [self.requests[q].objects[rows_K] for q, (rows_K, _) in zip(requests, rankings, strict=True)]
            log_p_N = self.prefilled.log_p_of(np.concatenate(objects), np.repeat(requests, counts), catalogue)
            unmasked = list(np.split(log_p_N, np.cumsum(counts)[:-1]))
        return [
            BeamResult(rows_K, log_p_K, unmasked_K, complete=not self.open_QW[q].any())
            for q, (rows_K, log_p_K), unmasked_K in zip(requests, rankings, unmasked, strict=True)
        ]

    def _ranked(
        self, q: int, is_in_W: NDArray[np.bool_], score_W: NDArray[np.float32]
    ) -> tuple[Ints, NDArray[np.float32]]:
        """(rows, log-probabilities) of the beams ``is_in_W`` of a request, best first, within the policy's limits."""
        width = min(self.widths[self.level :], default=None)
        states_W = self.states_QW[q, is_in_W]
        codes_OL = self.searcher.codes_OL
        return ranked(self.requests[q], self.policy, codes_OL, states_W, score_W[is_in_W], self.level, width)
