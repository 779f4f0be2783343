"""Attention for threads with branches: causal over the thread, with a mask for the branches only.

With a dense mask the kernel computes every pair of query and key; a thread with branches needs about half of them.

Letters: B sequences, H heads, T queries, K keys, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "leadre_threads"
CHUNK = 256  # queries of a block; the scores of a block fit into the processor's cache


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    causal_until: int = 0,
    attend: Any = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """[B, H, T, D] queries -> ([B, T, H, D], None): an attention function with the signature of transformers.

    The first ``causal_until`` queries attend to the keys up to themselves; ``attention_mask`` (bool [B, 1, T -
    causal_until, K]) is that of the other queries. In generation ``attend`` (`runner.Attend`) replaces all of this.
    """
    if attend is not None:
        if scaling is not None and scaling != (usual := query.shape[-1] ** -0.5):
            query = query * (scaling / usual)  # attend applies the usual one
        rows = (part[0].transpose(0, 1) for part in (query.to(value.dtype), key.to(value.dtype), value))
        return attend(module.layer_idx, *rows)[None], None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    query = query.to(value.dtype)
    key = key.to(value.dtype)  # rotary embeddings left them in float32
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kernel = _fused if query.is_cuda else _chunked
    with torch.autocast(query.device.type, enabled=False):
        parts = kernel(query[:, :, :causal_until], key[:, :, :causal_until], value[:, :, :causal_until], None, scale)
        if causal_until < query.shape[2]:
            parts += kernel(query[:, :, causal_until:], key, value, attention_mask, scale)
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> list[Tensor]:
    """The fused kernel of torch; ``mask`` None = causal."""
    if not query.shape[2]:
        return []
    return [F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale)]


def _chunked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> list[Tensor]:
    """The same as matrix products over blocks of queries, without the keys that lie ahead of the whole block.

    On CPUs the fused kernel multiplies bfloat16 through a library that lacks a fast path for some vendors; plain matrix
    products use a library that has one, and are twice as fast.
    """
    parts = []
    for start in range(0, query.shape[2], CHUNK):
        rows = slice(start, min(start + CHUNK, query.shape[2]))
        stop = rows.stop if mask is None else key.shape[2]
        scores = torch.matmul(query[:, :, rows], key[:, :, :stop].transpose(-1, -2)) * scale
        if mask is None:
            hidden = torch.ones(rows.stop - start, stop, dtype=torch.bool, device=query.device).triu(start + 1)
        else:
            hidden = ~mask[:, :, rows]
        bias = torch.zeros(hidden.shape, dtype=scores.dtype, device=query.device).masked_fill_(hidden, -torch.inf)
        parts.append(torch.matmul(torch.softmax(scores + bias, dim=-1), value[:, :, :stop]))
    return parts


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
