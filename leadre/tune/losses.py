"""Losses as pure functions of scores, targets and masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leadre.lm.decode import masked_log_softmax


def log_likelihood(logits: Sequence[Tensor], targets_NL: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Log-probability float32 [N] of whole semantic IDs, each level normalised over the codes live there.

    ``logits[l]`` [N, sizes[l]]; ``targets_NL`` int64 codes; ``masks[l]`` bool [N, sizes[l]], must hold the target.
    It is the number that beam search ranks by.
    """
    levels = [
        masked_log_softmax(scores, mask).gather(1, targets_NL[:, level : level + 1])[:, 0]
        for level, (scores, mask) in enumerate(zip(logits, masks, strict=True))
    ]
    return torch.stack(levels).sum(0)


def sft(log_p_N: Tensor, weights_N: Tensor) -> Tensor:
    """Weighted mean of the negative log-likelihoods: a scalar."""
    return -(log_p_N * weights_N).sum() / weights_N.sum()
