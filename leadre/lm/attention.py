"""Attention for threads with branches: causal over the thread, with a mask for the branches only.

With a dense mask the kernel computes every pair of query and key; a thread with branches needs about half of them.

The function takes the place of the attention function of a Hugging Face body. A layer passes its variant of attention
as arguments: a sliding window, a cap on scores, sinks. They form its `ScoreRule`, in training and in generation.

Letters: B sequences, H heads, T queries, K keys, D width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from leadre.errors import InputError

NAME = "leadre_threads"
CHUNK = 256  # queries of a block; the scores of a block fit into the processor's cache


# arguments of layers that change no result here: masks and positions are those of the caller
IGNORED = {"position_ids", "cache_position", "is_causal", "use_cache", "output_attentions", "output_router_logits"}


@dataclass(frozen=True)
class ScoreRule:
    """How a layer turns scores into weights, beside its mask.

    window    a query attends to itself and the ``window - 1`` positions before it (Mistral, arXiv 2310.06825)
    softcap   scores are replaced by softcap * tanh(score / softcap) (Gemma 2, arXiv 2408.00118)
    sinks_H   a further logit of each head, which takes weight and has no value (GPT-OSS; arXiv 2309.17453)
    """

    window: int | None = None
    softcap: float | None = None
    sinks_H: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the rule is a mere softmax."""
        return self.window is None and self.softcap is None and self.sinks_H is None

    def cap(self, scores: Tensor) -> Tensor:
        """Scores before the mask."""
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap

    def softmax(self, scores: Tensor, heads: tuple[int, ...]) -> Tensor:
        """Weights over the last axis; the H sinks take the shape ``heads``, which broadcasts against the scores."""
        if self.sinks_H is None:
            return torch.softmax(scores, dim=-1)
        sinks = self.sinks_H.view(heads).to(scores.dtype).expand(*scores.shape[:-1], 1)
        return torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]


PLAIN = ScoreRule()


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    causal_until: int = 0,
    positions_BT: Tensor | None = None,
    attend: Any = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """[B, H, T, D] queries -> ([B, T, H, D], None): an attention function with the signature of transformers.

    The first ``causal_until`` queries attend to the keys up to themselves; ``attention_mask`` (bool [B, 1, T -
    causal_until, K]) is that of the other queries. ``positions_BT`` are needed by windows alone; cached keys are at the
    positions from 0 on. In generation ``attend`` (`runner.Attend`) replaces all of this. ``dropout`` is 0, as the body
    is in evaluation mode. InputError for an argument that is not implemented.
    """
    if unknown := sorted(name for name, value in others.items() if value is not None and name not in IGNORED):
        raise InputError(f"its attention takes {', '.join(unknown)}, which is not implemented")
    if attend is not None:
        if scaling is not None and scaling != (usual := query.shape[-1] ** -0.5):
            query = query * (scaling / usual)  # attend applies the usual one
        rows = (part[0].transpose(0, 1) for part in (query.to(value.dtype), key.to(value.dtype), value))
        return attend(module.layer_idx, *rows, ScoreRule(sliding_window or None, softcap, s_aux))[None], None
    K = key.shape[2]
    window = sliding_window if sliding_window and sliding_window < K else None  # a wider one hides nothing
    rule = ScoreRule(window, softcap, s_aux)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    query = query.to(value.dtype)
    key = key.to(value.dtype)  # rotary embeddings left them in float32
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kernel = _fused if query.is_cuda and rule.is_plain else _chunked
    with torch.autocast(query.device.type, enabled=False):
        thread = slice(causal_until)
        parts = kernel(query[:, :, thread], key[:, :, thread], value[:, :, thread], None, scale, rule)
        if causal_until < query.shape[2]:
            mask = attention_mask
            if rule.window is not None:
                assert positions_BT is not None and mask is not None, "a window needs positions"
                mask = mask & _is_near(positions_BT, causal_until, K, rule.window)
            parts += kernel(query[:, :, causal_until:], key, value, mask, scale, rule)
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _is_near(positions_BT: Tensor, causal_until: int, K: int, window: int) -> Tensor:
    """bool [B, 1, T - causal_until, K]: whether a key is less than ``window`` positions before the query."""
    cached = torch.arange(K - positions_BT.shape[1], device=positions_BT.device).expand(len(positions_BT), -1)
    key_BK = torch.cat([cached, positions_BT], dim=1)
    return (key_BK[:, None] > positions_BT[:, causal_until:, None] - window)[:, None]


def _fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, rule: ScoreRule
) -> list[Tensor]:
    """The fused kernel of torch for the plain rule; ``mask`` None = causal."""
    if not query.shape[2]:
        return []
    return [F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale)]


def _chunked(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, rule: ScoreRule
) -> list[Tensor]:
    """The same as matrix products over blocks of queries, without the keys that lie ahead of the whole block.

    On CPUs the fused kernel multiplies bfloat16 through a library that lacks a fast path for some vendors; plain matrix
    products use a library that has one, and are twice as fast.
    """
    parts = []
    for start in range(0, query.shape[2], CHUNK):
        rows = slice(start, min(start + CHUNK, query.shape[2]))
        stop = rows.stop if mask is None else key.shape[2]
        scores = rule.cap(torch.matmul(query[:, :, rows], key[:, :, :stop].transpose(-1, -2)) * scale)
        if mask is None:
            every = torch.ones(rows.stop - start, stop, dtype=torch.bool, device=query.device)
            hidden = every.triu(start + 1)
            if rule.window is not None:
                hidden |= every.tril(start - rule.window)
        else:
            hidden = ~mask[:, :, rows]
        bias = torch.zeros(hidden.shape, dtype=scores.dtype, device=query.device).masked_fill_(hidden, -torch.inf)
        weights = rule.softmax(scores + bias, (-1, 1, 1))
        parts.append(torch.matmul(weights, value[:, :, :stop]))
    return parts


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
