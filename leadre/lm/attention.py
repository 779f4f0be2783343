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


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    causal_until: int = 0,
    **_: Any,
) -> tuple[Tensor, None]:
    """[B, H, T, D] queries -> ([B, T, H, D], None), in the form that transformers asks of an attention function.

    The first ``causal_until`` queries see the keys up to themselves; ``attention_mask`` (bool [B, 1, T - causal_until,
    K]) says what each of the others sees.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    parts = []
    if causal_until:
        thread = slice(0, causal_until)
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, thread], key[:, :, thread], value[:, :, thread], is_causal=True, scale=scaling
            )
        )
    if causal_until < query.shape[2]:
        branches = query[:, :, causal_until:]
        parts.append(F.scaled_dot_product_attention(branches, key, value, attn_mask=attention_mask, scale=scaling))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
