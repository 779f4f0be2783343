"""Attention for threads with branches: the thread part is plainly causal, only the branches need a mask.

A dense mask makes the kernel compute every pair; a thread and its branches need about half of them. Letters: B
sequences, H heads, T queries, K keys, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "leadre_threads"
CHUNK = 256  # queries a block; scores of a block stay in the cache


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
    """[B, H, T, D] queries -> ([B, T, H, D], None), in the form that transformers asks of an attention function.

    The first ``causal_until`` queries see the keys up to themselves; ``attention_mask`` (bool [B, 1, T - causal_until,
    K]) says what each of the others sees. In generation ``attend`` (`runner.Attend`) takes over.
    """
    if attend is not None:
        if scaling is not None and scaling != (usual := query.shape[-1] ** -0.5):
            query = query * (scaling / usual)  # it applies the usual one
        rows = (part[0].transpose(0, 1) for part in (query.to(value.dtype), key.to(value.dtype), value))
        return attend(module.layer_idx, *rows)[None], None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotary embeddings left them in float32
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    look = _fused if query.is_cuda else _chunked
    with torch.autocast(query.device.type, enabled=False):
        parts = look(query[:, :, :causal_until], key[:, :, :causal_until], value[:, :, :causal_until], None, scale)
        if causal_until < query.shape[2]:
            parts += look(query[:, :, causal_until:], key, value, attention_mask, scale)
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> list[Tensor]:
    """The kernel of torch; ``mask`` None is causal."""
    if not query.shape[2]:
        return []
    return [F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale)]


def _chunked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> list[Tensor]:
    """The same as matrix products over blocks of queries, which skip the keys that no query of the block may see.

    On CPUs torch's fused kernel multiplies bfloat16 through a library that has no fast path for every vendor; plain
    products go to the one that does and are twice as fast.
    """
    parts = []
    for start in range(0, query.shape[2], CHUNK):
        rows = slice(start, min(start + CHUNK, query.shape[2]))
        seen = rows.stop if mask is None else key.shape[2]
        scores = torch.matmul(query[:, :, rows], key[:, :, :seen].transpose(-1, -2)) * scale
        if mask is None:
            hidden = torch.ones(rows.stop - start, seen, dtype=torch.bool, device=query.device).triu(start + 1)
        else:
            hidden = ~mask[:, :, rows]
        bias = torch.zeros(hidden.shape, dtype=scores.dtype, device=query.device).masked_fill_(hidden, -torch.inf)
        parts.append(torch.matmul(torch.softmax(scores + bias, dim=-1), value[:, :, :seen]))
    return parts


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
