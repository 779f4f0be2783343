"""Decode steps of fixed shapes, which a GPU replays as one captured graph.

With few rows a GPU waits for the host to launch kernels. A captured graph is launched as a whole, but it keeps the
shapes and addresses of its capture. So each bucket of requests, beams and positions (powers of two) has buffers for
everything that a step reads and writes. A search fills them; rows that are finished or padding are computed and not
used. On CPUs the same step runs without a graph, at a higher cost than the search over open rows; tests use it there.

Letters: Q requests, W beams a request, N = Q * W rows, T positions, L levels, C codes of a level, S codes that a beam
has generated, H heads, G key-value heads, E width of a head, P pointer width.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre.lm.attention import PLAIN, ScoreRule
from leadre.lm.backbone import Backbone
from leadre.lm.cache import PromptCache, attend, within_window
from leadre.lm.pointer import PointerSources, keep_agreeing
from leadre.lm.runner import BodyRunner


class GraphPool:
    """Captured steps that are free. A search acquires one and releases it, so two searches never share buffers.

    For one thread at a time: a capture tolerates no other work on the device.
    """

    def __init__(self, backbone: Backbone, runner: BodyRunner) -> None:
        self.backbone = backbone
        self.runner = runner
        self._free: dict[tuple[int, int, int], list[CapturedStep]] = {}

    def acquire(self, requests: int, width: int, positions: int) -> CapturedStep:
        """A captured step with room for these numbers."""
        Q, W, T = (1 << (count - 1).bit_length() for count in (requests, width, max(positions, 64)))
        free = self._free.setdefault((Q, W, T), [])
        return free.pop() if free else CapturedStep(self.backbone, self.runner, Q, W, T)

    def release(self, captured: CapturedStep) -> None:
        """Take a captured step back."""
        self._free[captured.shape].append(captured)


class CapturedStep:
    """Buffers of ``Q`` requests of ``W`` beams over ``T`` positions, and on CUDA a graph of the step at each level."""

    def __init__(self, backbone: Backbone, runner: BodyRunner, Q: int, W: int, T: int) -> None:
        self.backbone = backbone
        self.runner = runner
        self.shape = (Q, W, T)
        device = backbone.device
        dtype = backbone.codes_SD.dtype
        layout = backbone.layout
        levels = len(layout.sizes)
        (_, G, E) = runner.heads

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        # prompts, one copy a request
        self.keys, self.values = (zeros(runner.layers, Q, G, T, E, dtype=runner.dtype) for _ in range(2))
        self.end_Q = zeros(Q)
        self.bias_Q1T = zeros(Q, 1, T, dtype=runner.dtype)
        self.sources = backbone.sources(zeros(Q, T, backbone.codes_SD.shape[1], dtype=dtype), zeros(Q, T))
        if self.sources is not None:
            self.sources = replace(self.sources, rows_each=W)
        # beams
        self.beam_kv = [zeros(runner.layers, Q, W, levels - 1, G, E, dtype=runner.dtype) for _ in range(2)]
        self.pointer_bias_QWT = zeros(Q, W, T, dtype=torch.float32)
        self.score_QW = zeros(Q, W, dtype=dtype)
        # inputs from the host, at every step
        self.code_QW = zeros(Q, W)
        self.beam_QW = zeros(Q, W)
        self.open_QW = zeros(Q, W, dtype=torch.bool)
        self.prior_QWC = zeros(Q, W, max(layout.sizes), dtype=torch.float32)
        self.request_Q1 = torch.arange(Q, device=device)[:, None]
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
        pointer_bias_QT: Tensor,
    ) -> None:
        """Start a search: copy the prompts of requests at ``end_Q`` of their threads; the bias is `Pointer.mix`'s."""
        Q = len(end_Q)
        T = prompts.keys.shape[3]
        device = end_Q.device
        self.keys[:, :Q, :, :T] = prompts.keys[:, thread_Q]
        self.values[:, :Q, :, :T] = prompts.values[:, thread_Q]
        self.end_Q[:Q] = end_Q
        is_hidden_QT = torch.arange(self.shape[2], device=device) > self.end_Q[:, None]
        self.bias_Q1T.zero_().masked_fill_(is_hidden_QT[:, None], -torch.inf)
        self.pointer_bias_QWT.fill_(-torch.inf)
        self.pointer_bias_QWT[:Q, 0, :T] = pointer_bias_QT
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
        """(scores, indices among beams x codes) of the best W continuations of each request, for ``level`` from 1 on.

        ``code_QW`` are the codes generated last, ``beam_QW`` the beams of the step before that they continue.
        """
        Q, W = code_QW.shape
        self.prior_QWC.fill_(-torch.inf)
        self.open_QW.zero_()
        for buffer, values in (
            (self.code_QW, torch.from_numpy(code_QW)),
            (self.beam_QW, torch.from_numpy(beam_QW)),
            (self.open_QW, torch.from_numpy(open_QW)),
            (self.prior_QWC[..., : prior_QWC.shape[2]], torch.from_numpy(prior_QWC)),
            (self.score_QW, score_QW),
        ):
            buffer[:Q, :W] = values.to(buffer.device)
        if level in self.graphs:
            graph, outputs = self.graphs[level]
            graph.replay()
        else:
            outputs = self._step(level)
        return outputs[0][:Q].clone(), outputs[1][:Q].clone()  # the next replay overwrites the outputs

    def _step(self, level: int) -> tuple[Tensor, Tensor]:
        """The step itself: no shape and no address depends on the data, and the host reads nothing back."""
        backbone = self.backbone
        (Q, W) = self.shape[:2]
        for part in self.beam_kv:
            part.copy_(part[:, self.request_Q1, self.beam_QW])
        pointer_bias_QWT = self.pointer_bias_QWT[self.request_Q1, self.beam_QW]
        if self.sources is not None:
            source_codes_Q1T = self.sources.codes_BTL[:, None, :, level - 1]
            pointer_bias_QWT = keep_agreeing(pointer_bias_QWT, source_codes_Q1T, self.code_QW)
        self.pointer_bias_QWT.copy_(pointer_bias_QWT)
        ids_QW = backbone.layout.words + backbone.layout.offsets[level - 1] + self.code_QW
        positions_QW = (self.end_Q[:, None] + level).expand(Q, W)

        def attend_in_buffers(
            layer: int, query_NHE: Tensor, key_NGE: Tensor, value_NGE: Tensor, rule: ScoreRule = PLAIN
        ) -> Tensor:
            query, key, value = (part.view(Q, W, *part.shape[1:]) for part in (query_NHE, key_NGE, value_NGE))
            self.beam_kv[0][layer, :, :, level - 1] = key
            self.beam_kv[1][layer, :, :, level - 1] = value
            generated_kv = self.beam_kv[0][layer, :, :, :level], self.beam_kv[1][layer, :, :, :level]
            bias_Q1T = within_window(self.bias_Q1T, positions_QW[:, :1], rule.window)
            return attend(query, self.keys[layer], self.values[layer], bias_Q1T, generated_kv, rule).flatten(0, 1)

        hidden_ND = self.runner(backbone.embed(ids_QW).flatten(0, 1), positions_QW.flatten(), attend_in_buffers)
        prior_QWC = self.prior_QWC[..., : backbone.layout.sizes[level]]
        thread_N = self.request_Q1.expand(Q, W).flatten()
        bias_NT = self.pointer_bias_QWT.flatten(0, 1)
        log_p_NC = backbone.log_p(hidden_ND, level, prior_QWC.flatten(0, 1), self.sources, thread_N, bias_NT)
        finished_QWC = torch.where(prior_QWC > -torch.inf, 0.0, -torch.inf)
        log_p_QWC = torch.where(self.open_QW[..., None], log_p_NC.view(prior_QWC.shape), finished_QWC)
        score_QW, best_QW = (log_p_QWC + self.score_QW[..., None]).flatten(1).topk(W, dim=-1)
        return score_QW, best_QW

    def _capture(self, level: int) -> None:
        """Record the step, on buffers that hold nothing yet."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries allocate their workspaces before the capture
            self._step(level)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._step(level)
        self.graphs[level] = graph, outputs
