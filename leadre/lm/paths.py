"""Prefill of threads, and the log-probabilities of code paths that continue them.

A thread is prefilled once. The paths of all its requests attend to its keys and values in place, and to the few codes
of their own.

Letters: B threads, T positions, Q requests over all threads, L levels, C codes of a level, N paths, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre.lm.backbone import Backbone
from leadre.lm.beam import BeamRequest, Ints, are_live, repeatable
from leadre.lm.cache import BeamCache, PromptCache
from leadre.lm.layout import Ids
from leadre.lm.pointer import PointerSources, keep_agreeing
from leadre.lm.prefix import BlockHash, PrefixCache
from leadre.lm.runner import BodyRunner
from leadre.semid.trie import Mask

Threads = Sequence[tuple[Ids, Sequence[BeamRequest]]]


@dataclass
class OpenPaths:
    """Paths under construction: their KV cache, the hidden state at their last position, and their pointer bias."""

    backbone: Backbone
    beams: BeamCache
    sources: PointerSources | None
    hidden_ND: Tensor
    pointer_bias_NT: Tensor

    def log_p(self, level: int, prior_NC: NDArray[np.float32]) -> Tensor:
        """Log-probabilities [N, C] of the next code of each path (`Backbone.log_p`)."""
        prior = torch.from_numpy(prior_NC).to(self.hidden_ND.device)
        return self.backbone.log_p(
            self.hidden_ND, level, prior, self.sources, self.beams.thread_N, self.pointer_bias_NT
        )

    def append(self, level: int, codes_N: Ints, parents_N: Ints) -> None:
        """Decode one code: run the model over codes of ``level`` that continue the paths ``parents_N``, ascending.

        Paths that are no parent end here.
        """
        backbone = self.backbone
        device = self.hidden_ND.device
        code_N = torch.from_numpy(codes_N).to(device)
        parent_N = torch.from_numpy(parents_N).to(device)
        self.pointer_bias_NT = self.pointer_bias_NT[parent_N]
        if self.sources is not None:
            source_codes_NT = self.sources.codes_BTL[self.beams.thread_N[parent_N], :, level]
            self.pointer_bias_NT = keep_agreeing(self.pointer_bias_NT, source_codes_NT, code_N)
        ids_N = backbone.layout.words + backbone.layout.offsets[level] + code_N
        self.hidden_ND = self.beams.append(embed_rows(backbone, ids_N), parent_N)


@dataclass(frozen=True)
class PrefilledThreads:
    """Threads after prefill: their KV cache, their pointer sources, and the hidden state at each request's end."""

    backbone: Backbone
    codes_OL: Ints
    requests: Sequence[BeamRequest]  # Q of them, thread after thread
    cache: PromptCache
    sources: PointerSources | None
    ids_BT: Ints
    thread_Q: Ints
    end_Q: Ints
    hidden_QD: Tensor

    def open_paths(self, requests_N: Ints, masks: Sequence[Mask] | None) -> OpenPaths:
        """Empty paths of these requests (ascending, repeats allowed).

        The pointer of each path may repeat the objects that are live in its mask; without masks, every object.
        """
        ids_NT = self.ids_BT[self.thread_Q[requests_N]]
        layout = self.backbone.layout
        is_source_NT = repeatable(layout, ids_NT, self.end_Q[requests_N])
        for is_source_T, ids_T, mask in zip(is_source_NT, ids_NT, masks or (), strict=masks is not None):
            is_source_T[is_source_T] = are_live(mask, self.codes_OL[layout.objects(ids_T[is_source_T])])
        bias_NT = np.where(is_source_NT, np.float32(0), np.float32(-np.inf))
        for bias_T, q in zip(bias_NT, requests_N, strict=True):
            request_bias_T = self.requests[q].pointer_bias_T
            if request_bias_T is not None:
                bias_T[: len(request_bias_T)] += request_bias_T
        thread_N, end_N, request_N, pointer_bias_NT = (
            torch.from_numpy(array).to(self.backbone.device)
            for array in (self.thread_Q[requests_N], self.end_Q[requests_N], requests_N, bias_NT)
        )
        beams = BeamCache(self.cache, thread_N, end_N)
        return OpenPaths(self.backbone, beams, self.sources, self.hidden_QD[request_N], pointer_bias_NT)

    def log_p_of(self, objects_N: Ints, requests_N: Ints, catalogue: Mask) -> NDArray[np.float32]:
        """Log-probability within ``catalogue`` of each object, given its request (ascending): float32 [N]."""
        codes_NL = self.codes_OL[objects_N]
        paths = self.open_paths(requests_N, None)
        row_N = np.arange(len(objects_N))
        log_p_N = np.zeros(len(objects_N), np.float32)
        states_N = catalogue.roots(len(objects_N))
        for level in range(catalogue.depth if len(objects_N) else 0):
            if level:
                paths.append(level - 1, codes_NL[:, level - 1], row_N)
            log_p_NC = paths.log_p(level, catalogue.log_prior(states_N, level))
            log_p_N += log_p_NC.float().cpu().numpy()[row_N, codes_NL[:, level]]
            states_N = catalogue.step(states_N, codes_NL[:, level], level)
        return log_p_N


def prefill(
    backbone: Backbone,
    runner: BodyRunner,
    threads: Threads,
    prefix_cache: PrefixCache | None,
    codes_OL: Ints,
    hashes: list[list[BlockHash]] | None = None,
) -> PrefilledThreads:
    """Run the model over all threads. ``codes_OL`` are the codes of every object, level by level.

    ``hashes``: those of the threads for the prefix cache, if the caller has them already.
    """
    device = backbone.device
    thread_ids = [ids for ids, _ in threads]
    requests = [request for _, requests in threads for request in requests]
    thread_Q = np.repeat(np.arange(len(threads)), [len(requests) for _, requests in threads])
    end_Q = np.array([request.end for request in requests])
    codes = len(backbone.layout.sizes) - 1  # the last one is no input
    backbone.check_length(max(map(len, thread_ids)) + codes)
    cache = PromptCache(runner, thread_ids, device, prefix_cache, hashes)
    hidden_BTD = cache.prefill(lambda ids_N: embed_rows(backbone, ids_N))
    ids_BT = np.zeros(hidden_BTD.shape[:2], np.int64)
    for b, ids in enumerate(thread_ids):
        ids_BT[b, : len(ids)] = ids
    return PrefilledThreads(
        backbone=backbone,
        codes_OL=codes_OL,
        requests=requests,
        cache=cache,
        sources=backbone.sources(hidden_BTD, torch.from_numpy(ids_BT).to(device)),
        ids_BT=ids_BT,
        thread_Q=thread_Q,
        end_Q=end_Q,
        hidden_QD=hidden_BTD[torch.from_numpy(thread_Q).to(device), torch.from_numpy(end_Q).to(device)],
    )


def embed_rows(backbone: Backbone, ids_N: Tensor) -> Tensor:
    """Embeddings [N, D] of IDs of the layout."""
    return backbone.embed(ids_N[None])[0]
