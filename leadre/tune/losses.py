"""Losses as pure functions of scores, targets and masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def log_likelihood(log_p: Sequence[Tensor], targets_NL: Tensor) -> Tensor:
    """Log-probability float32 [N] of whole semantic IDs: the number that beam search ranks by.

    ``log_p[l]`` [N, sizes[l]] are a level's log-probabilities over what is live there; ``targets_NL`` int64 codes.
    """
    levels = [scores.gather(1, targets_NL[:, level : level + 1])[:, 0] for level, scores in enumerate(log_p)]
    return torch.stack(levels).sum(0)


def sft(log_p_N: Tensor, weights_N: Tensor) -> Tensor:
    """Weighted mean of the negative log-likelihoods: a scalar."""
    return -(log_p_N * weights_N).sum() / weights_N.sum()
