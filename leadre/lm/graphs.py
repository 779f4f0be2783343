"""The same step of a beam search in fixed shapes, so that a GPU replays it as one captured graph.

With few rows a GPU waits for the host to launch kernels. A captured graph is launched as a whole, but its shapes and
addresses are those of the capture. So a bucket of requests, beams and positions (each a power of two) owns buffers for
all that a step reads and writes; a search fills them, and rows that are finished or padding are computed and not used.
On CPUs the step runs as it is, which costs more than the search over open rows alone; there it serves as a test.

Letters: Q requests, W beams a request, N = Q * W rows, T positions, L levels, C codes of a level, S codes that a beam
has written, H heads, G key-value heads, E width of a head, P pointer width.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre.lm.backbone import Backbone
from leadre.lm.cache import PromptCache, attend
from leadre.lm.pointer import PointerSources
from leadre.lm.runner import Runner


class GraphPool:
    """Buckets that are free. A search takes one and gives it back, so two searches never share buffers.

    For one thread at a time: a capture tolerates no other work on the device.
    """

    def __init__(self, backbone: Backbone, runner: Runner) -> None:
        self.backbone, self.runner = backbone, runner
        self._free: dict[tuple[int, int, int], list[CapturedStep]] = {}

    def take(self, requests: int, width: int, positions: int) -> CapturedStep:
        """A bucket with room for these."""
        Q, W, T = (1 << (count - 1).bit_length() for count in (requests, width, max(positions, 64)))
        free = self._free.setdefault((Q, W, T), [])
        return free.pop() if free else CapturedStep(self.backbone, self.runner, Q, W, T)

    def give(self, bucket: CapturedStep) -> None:
        """Take a bucket back."""
        self._free[bucket.shape].append(bucket)


class CapturedStep:
    """Buffers of ``Q`` requests of ``W`` beams over ``T`` positions, and on CUDA a graph of the step at each level."""

    def __init__(self, backbone: Backbone, runner: Runner, Q: int, W: int, T: int) -> None:
        self.backbone, self.runner, self.shape = backbone, runner, (Q, W, T)
        device, dtype, layout = backbone.device, backbone.codes_SD.dtype, backbone.layout
        levels, (_, G, E) = len(layout.sizes), runner.heads

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        # of the prompts, one copy a request
        self.keys, self.values = (zeros(runner.layers, Q, G, T, E, dtype=runner.dtype) for _ in range(2))
        self.end_Q = zeros(Q)
        self.bias_Q1T = zeros(Q, 1, T, dtype=runner.dtype)
        self.sources = backbone.sources(zeros(Q, T, backbone.codes_SD.shape[1], dtype=dtype), zeros(Q, T))
        if self.sources is not None:
            self.sources = replace(self.sources, rows_each=W)
        # of the beams
        self.own = [zeros(runner.layers, Q, W, levels - 1, G, E, dtype=runner.dtype) for _ in range(2)]
        self.log_worth_QWT = zeros(Q, W, T, dtype=torch.float32)
        self.score_QW = zeros(Q, W, dtype=dtype)
        # from the host, at every step
        self.code_QW, self.beam_QW = zeros(Q, W), zeros(Q, W)
        self.open_QW = zeros(Q, W, dtype=torch.bool)
        self.prior_QWC = zeros(Q, W, max(layout.sizes), dtype=torch.float32)
        self.each_Q1 = torch.arange(Q, device=device)[:, None]
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor]]] = {}
        if device.type == "cuda":
            for level in range(1, levels):
                self._capture(level)

    def load(
        self,
        prompts: PromptCache,
        thread_Q: Tensor,
        end_Q: Tensor,
        sources: PointerSources | None,
        log_worth_QT: Tensor,
    ) -> None:
        """Begin a search of requests that are answered at ``end_Q`` of their threads (`Pointer.mix`)."""
        Q, T, device = len(end_Q), prompts.keys.shape[3], end_Q.device
        self.keys[:, :Q, :, :T], self.values[:, :Q, :, :T] = prompts.keys[:, thread_Q], prompts.values[:, thread_Q]
        self.end_Q[:Q] = end_Q
        ahead_QT = torch.arange(self.shape[2], device=device) > self.end_Q[:, None]
        self.bias_Q1T.zero_().masked_fill_(ahead_QT[:, None], -torch.inf)
        self.log_worth_QWT.fill_(-torch.inf)
        self.log_worth_QWT[:Q, 0, :T] = log_worth_QT
        if self.sources is not None and sources is not None:
            self.sources.keys_BTP[:Q, :T] = sources.keys_BTP[thread_Q]
            self.sources.codes_BTL[:Q, :T] = sources.codes_BTL[thread_Q]
            self.sources.counts_BT[:Q, :T] = sources.counts_BT[thread_Q]

    def step(
        self,
        level: int,
        code_QW: NDArray[np.int64],
        beam_QW: NDArray[np.int64],
        open_QW: NDArray[np.bool_],
        prior_QWC: NDArray[np.float32],
        score_QW: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(scores, places among beams x codes) of the best W continuations of each request, for ``level`` from 1 on.

        Beams have written ``code_QW`` behind the beams ``beam_QW`` of the step before.
        """
        Q, W = code_QW.shape
        self.prior_QWC.fill_(-torch.inf)
        self.open_QW.zero_()
        for buffer, given in (
            (self.code_QW, torch.from_numpy(code_QW)),
            (self.beam_QW, torch.from_numpy(beam_QW)),
            (self.open_QW, torch.from_numpy(open_QW)),
            (self.prior_QWC[..., : prior_QWC.shape[2]], torch.from_numpy(prior_QWC)),
            (self.score_QW, score_QW),
        ):
            buffer[:Q, :W] = given.to(buffer.device)
        if level in self.graphs:
            graph, found = self.graphs[level]
            graph.replay()
        else:
            found = self._step(level)
        return found[0][:Q].clone(), found[1][:Q].clone()  # the next replay writes there again

    def _step(self, level: int) -> tuple[Tensor, Tensor]:
        """The step itself: no shape and no address depends on the data, and nothing is read back."""
        backbone, (Q, W) = self.backbone, self.shape[:2]
        for own in self.own:
            own.copy_(own[:, self.each_Q1, self.beam_QW])
        self.log_worth_QWT.copy_(self.log_worth_QWT[self.each_Q1, self.beam_QW])
        if self.sources is not None:
            other_QWT = self.sources.codes_BTL[:, None, :, level - 1] != self.code_QW[..., None]
            self.log_worth_QWT.masked_fill_(other_QWT, -torch.inf)
        ids_QW = backbone.layout.words + backbone.layout.offsets[level - 1] + self.code_QW
        positions_QW = (self.end_Q[:, None] + level).expand(Q, W)

        def attend_here(layer: int, query_NHE: Tensor, key_NGE: Tensor, value_NGE: Tensor) -> Tensor:
            query, key, value = (part.view(Q, W, *part.shape[1:]) for part in (query_NHE, key_NGE, value_NGE))
            self.own[0][layer, :, :, level - 1], self.own[1][layer, :, :, level - 1] = key, value
            written = self.own[0][layer, :, :, :level], self.own[1][layer, :, :, :level]
            return attend(query, self.keys[layer], self.values[layer], self.bias_Q1T, written).flatten(0, 1)

        hidden_ND = self.runner(backbone.embed(ids_QW).flatten(0, 1), positions_QW.flatten(), attend_here)
        prior_QWC = self.prior_QWC[..., : backbone.layout.sizes[level]]
        thread_N = self.each_Q1.expand(Q, W).flatten()
        prior_NC, log_worth_NT = prior_QWC.flatten(0, 1), self.log_worth_QWT.flatten(0, 1)
        log_p_NC = backbone.log_p(hidden_ND, level, prior_NC, self.sources, thread_N, log_worth_NT)
        finished_QWC = torch.where(prior_QWC > -torch.inf, 0.0, -torch.inf)
        log_p_QWC = torch.where(self.open_QW[..., None], log_p_NC.view(prior_QWC.shape), finished_QWC)
        score, best = (log_p_QWC + self.score_QW[..., None]).flatten(1).topk(W, dim=-1)
        return score, best

    def _capture(self, level: int) -> None:
        """Record the step on buffers that hold nothing yet."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries allocate what they need before the capture
            self._step(level)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = self._step(level)
        self.graphs[level] = graph, found
