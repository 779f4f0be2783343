"""Losses of neural rankers: the log loss of each row, and for coarse rankers a loss over the live ads of a request.

Letters: R requests, C candidates, H labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from leadre.rank.rows import Example


class Loss(Protocol):
    """A loss of requests, as a sum and the size by which it is divided."""

    def total(self, logit_RCH: Tensor, is_row_RC: Tensor, rows: Sequence[Example]) -> Tensor:
        """The sum over ``rows``, whose log-odds are ``logit_RCH``."""
        ...

    def size(self, rows: Sequence[Example]) -> int:
        """The number of terms of the sum."""
        ...


@dataclass(frozen=True)
class LogLoss:
    """The weighted log loss of each label of each row."""

    def total(self, logit_RCH: Tensor, is_row_RC: Tensor, rows: Sequence[Example]) -> Tensor:
        """Sum over all labels."""
        label_RCH = torch.zeros_like(logit_RCH)
        weight_RCH = torch.zeros_like(logit_RCH)
        for label_CH, weight_CH, row in zip(label_RCH, weight_RCH, rows, strict=True):
            label_CH[: len(row.label_CH)] = torch.from_numpy(row.label_CH)
            weight_CH[: len(row.label_CH)] = 1.0 if row.weight_CH is None else torch.from_numpy(row.weight_CH)
        return functional.binary_cross_entropy_with_logits(
            logit_RCH[is_row_RC], label_RCH[is_row_RC], weight_RCH[is_row_RC], reduction="sum"
        )

    def size(self, rows: Sequence[Example]) -> int:
        """The number of labels."""
        return sum(row.label_CH.size for row in rows)


@dataclass(frozen=True, kw_only=True)
class LiveSetLoss:
    """Loss of a request by its first label: a softmax or log losses, and the distance to the final ranker's order.

    The softmax is over the ads that were live: the mean over those with the label of -log p, p the softmax of their
    score. ``negatives``: share of the rows without the label that training kept; each of them counts 1 / ``negatives``
    times in a sum over live ads (sampled softmax: -log ``negatives`` is added to its score). ``teacher_weight``
    multiplies ``temperature`` ** 2 x KL(teacher || model) of the softmax of scores over ``temperature`` (Hinton et al.,
    arXiv 1503.02531), if it is not 0; rows then need ``teacher_C``.
    """

    negatives: float
    is_softmax: bool = True
    teacher_weight: float = 0.0
    temperature: float = 2.0

    def total(self, logit_RCH: Tensor, is_row_RC: Tensor, rows: Sequence[Example]) -> Tensor:
        """Sum over the requests; a request without the label has no softmax."""
        score_RC = logit_RCH[..., 0]
        label_RC = _padded([row.label_CH[:, 0] for row in rows], score_RC)
        log_count_RC = torch.where(label_RC > 0, 0.0, -math.log(self.negatives))
        log_count_RC = log_count_RC.masked_fill(~is_row_RC, -torch.inf)
        if self.is_softmax:
            log_sum_R1 = (score_RC + log_count_RC).logsumexp(1, keepdim=True)
            mean_R = (label_RC * (log_sum_R1 - score_RC)).sum(1) / label_RC.sum(1).clamp(min=1)
            loss = mean_R.sum()
        else:
            loss = LogLoss().total(logit_RCH[..., :1], is_row_RC, rows)
        return (
            loss + self.teacher_weight * self._distance(score_RC, log_count_RC, rows) if self.teacher_weight else loss
        )

    def size(self, rows: Sequence[Example]) -> int:
        """The number of requests."""
        return len(rows)

    def _distance(self, score_RC: Tensor, log_count_RC: Tensor, rows: Sequence[Example]) -> Tensor:
        """Sum over the requests of ``temperature`` ** 2 x KL(teacher || model)."""
        teachers = []
        for row in rows:
            assert row.teacher_C is not None, f"no score of the final ranker for request {row.request}"
            teachers.append(row.teacher_C)
        teacher_RC = _padded(teachers, score_RC)
        log_p_RC, log_q_RC = (
            (values_RC / self.temperature + log_count_RC).log_softmax(1) for values_RC in (teacher_RC, score_RC)
        )
        is_row_RC = log_count_RC > -torch.inf
        difference_RC = (log_p_RC - log_q_RC).masked_fill(~is_row_RC, 0.0)  # padding has -inf less -inf
        return self.temperature**2 * (log_p_RC.exp() * difference_RC).sum()


def _padded(parts: Sequence[np.ndarray], like_RC: Tensor) -> Tensor:
    """Arrays [C] of each request as one [R, C], zeros after the end of each."""
    result = torch.zeros_like(like_RC)
    for row_C, values in zip(result, parts, strict=True):
        row_C[: len(values)] = torch.from_numpy(values)
    return result
