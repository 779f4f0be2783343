"""Losses as pure functions of scores, targets and masks.

Every semantic ID is a path of L codes, so likelihoods need no normalisation by length.

Letters: N targets or pairs, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def by_level(log_p: Sequence[Tensor], targets_NL: Tensor) -> Tensor:
    """Log-probability float32 [N, L] of each target's code at each level, given its previous codes.

    ``log_p[l]`` [N, sizes[l]]: log-probabilities at level l over its live codes; ``targets_NL``: int64 codes.
    """
    return torch.cat([scores.gather(1, targets_NL[:, level, None]) for level, scores in enumerate(log_p)], dim=1)


def log_likelihood(log_p: Sequence[Tensor], targets_NL: Tensor) -> Tensor:
    """Log-probability float32 [N] of whole semantic IDs: the score that beam search ranks by."""
    return by_level(log_p, targets_NL).sum(1)


def sft(log_p_N: Tensor, weights_N: Tensor) -> Tensor:
    """Weighted mean of the negative log-likelihoods: a scalar."""
    return -(log_p_N * weights_N).sum() / weights_N.sum()


def shared_levels(codes_NL: Tensor, others_NL: Tensor) -> Tensor:
    """bool [N, L]: levels in the common prefix of two paths. An equal code after a different one is not shared."""
    return (codes_NL == others_NL).cumprod(1).bool()


def without_shared(log_p_NL: Tensor, shared_NL: Tensor) -> Tensor:
    """The same values, without a gradient at the shared levels (RAD-DPO, arXiv 2602.23964).

    At shared levels the exact gradients of chosen and rejected cancel. In bfloat16 they leave noise on the first
    levels, which most pairs share.
    """
    return torch.where(shared_NL, log_p_NL.detach(), log_p_NL)


def dpo(
    chosen_NL: Tensor,
    rejected_NL: Tensor,
    reference_chosen_NL: Tensor,
    reference_rejected_NL: Tensor,
    *,
    beta: float,
    margins_N: Tensor,
    weights_N: Tensor,
) -> tuple[Tensor, Tensor]:
    """(loss, reward margins [N]) of Direct Preference Optimization (Rafailov et al., arXiv 2305.18290).

    All [N, L] are log-probabilities by level, the last two under the reference model. A pair's reward margin is
    ``beta`` times the gain of chosen over rejected against the reference. ``margins_N``: value that it should exceed (0
    in the paper); ``weights_N``: weight of the pair in the mean.
    """
    gained_NL = (chosen_NL - reference_chosen_NL) - (rejected_NL - reference_rejected_NL)
    return _preference(beta * gained_NL.sum(1), margins_N, weights_N)


def simpo(
    chosen_NL: Tensor, rejected_NL: Tensor, *, beta: float, margins_N: Tensor, weights_N: Tensor
) -> tuple[Tensor, Tensor]:
    """(loss, reward margins [N]) of SimPO (Meng et al., arXiv 2405.14734): as `dpo`, without a reference model.

    ``margins_N`` is the paper's gamma. The paper divides log-likelihoods by the length, so its beta is L times ours.
    """
    return _preference(beta * (chosen_NL - rejected_NL).sum(1), margins_N, weights_N)


def _preference(rewards_N: Tensor, margins_N: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor]:
    """(Bradley-Terry loss: weighted mean of -log sigmoid(reward - margin), rewards [N])."""
    return -(F.logsigmoid(rewards_N - margins_N) * weights_N).sum() / weights_N.sum(), rewards_N.detach()
