"""Losses of bags: DLLP beside soft labels of rows, and the soft labels of EasyLLP.

Letters: R requests, C candidates, H labels, N rows, B bags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from leadre.rank.proportions.bags import I64, BagRows, Floats
from leadre.rank.rows import Example

MIN_P = 1e-12  # a mean probability is taken as at least this far from 0 and from 1


@dataclass(frozen=True, kw_only=True)
class BagLoss:
    """Log losses of the soft labels of rows by their weight, and `bag_loss` of their bags; a `rank.losses.Loss`."""

    sum_B: I64
    factor_B: Floats

    def total(self, logit_RCH: Tensor, is_row_RC: Tensor, rows: Sequence[Example]) -> Tensor:
        """Sum over rows and bags; all rows of a bag are among ``rows``."""
        logit_NH = logit_RCH[is_row_RC]
        target_NH, weight_NH, number_N = (
            np.concatenate([getattr(row, name) for row in rows]) for name in ("target_CH", "weight_CH", "bag_C")
        )
        loss = functional.binary_cross_entropy_with_logits(
            logit_NH, torch.from_numpy(target_NH), torch.from_numpy(weight_NH), reduction="sum"
        )
        numbers, bag_N = np.unique(number_N, return_inverse=True)
        return loss + bag_loss(logit_NH[:, 0], bag_N, self.sum_B[numbers], self.factor_B[numbers])

    def size(self, rows: Sequence[Example]) -> int:
        """The number of rows."""
        return sum(len(row.ads) for row in rows)


def bag_loss(logit_N: Tensor, bag_N: I64, sum_B: I64, factor_B: Floats) -> Tensor:
    """DLLP: log loss of the share of actions in each bag against its mean probability (Ardehali and Culotta, 2017).

    Sum over the bags of factor x -(Y log p + (n - Y) log(1 - p)), where Y of n rows have an action and p is the mean
    probability of the n rows: nats of n rows, so that it compares with the log loss of rows, which it is for n = 1.
    """
    bags = torch.from_numpy(bag_N)
    actions_B = torch.from_numpy(sum_B).double()
    size_B = torch.bincount(bags, minlength=len(sum_B)).double()
    total_B = torch.zeros_like(size_B).index_add(0, bags, logit_N.double().sigmoid())
    p_B = (total_B / size_B).clamp(MIN_P, 1 - MIN_P)
    loss_B = -(actions_B * p_B.log() + (size_B - actions_B) * (-p_B).log1p())
    return (torch.from_numpy(factor_B) * loss_B).sum()


def easy_targets(rows: BagRows) -> Floats:
    """EasyLLP: soft labels whose log loss has the expectation of that of the labels (arXiv 2302.03115).

    n (Y / n - r) + r for each row of a bag with Y actions in n rows, where r is the rate of all rows (Busa-Fekete et
    al., NeurIPS 2023). It may lie outside 0 and 1, its variance grows with n, and the expectation holds for bags of
    independent rows alone.
    """
    target_B = rows.sum_B - (rows.size_B - 1) * rows.rate
    return target_B[rows.bag_N]
