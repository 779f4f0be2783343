"""Loss of alignment examples.

The frozen word embeddings score words. The code head scores codes, as in the main task: among the live objects of the
example's request, or in the training catalogue. The pointer has no part; it would copy the answer from the prompt
instead of training the code embeddings.

Letters: N answers, L levels, K tasks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from leadre.lm.backbone import Backbone
from leadre.tune import losses
from leadre.tune.alignment.packing import PackedExamples, pack
from leadre.tune.alignment.report import TaskStep
from leadre.tune.alignment.sampler import AlignmentSampler


def step_loss(
    backbone: Backbone, sampler: AlignmentSampler, step: int, rows: int | None = None
) -> tuple[Tensor, list[TaskStep]]:
    """(loss of the examples of a step, one `TaskStep` for each task drawn); ``rows`` as in `AlignmentSampler.draw`."""
    packed = pack(sampler.draw(step, rows), sampler.live, sampler.trie_of, tuple(sampler.weights))
    packed = packed.to(backbone.device)
    total, mean_K = packed_loss(backbone, packed, sampler.weights)
    task_steps = [
        TaskStep(step + 1, task, packed.examples[task], packed.positions[task], mean)
        for task, mean in zip(packed.tasks, mean_K.tolist(), strict=True)
        if packed.examples[task]
    ]
    return total, task_steps


def packed_loss(backbone: Backbone, packed: PackedExamples, weights: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """(scalar loss, mean negative log-likelihood in nats of a word or code by task [K]; 0 for a task not drawn).

    The loss is the weighted mean over the tasks drawn, so its scale does not grow with the number of tasks.
    """
    hidden = backbone(packed.ids_BT, packed.positions_BT, packed.mask_BTT, 0).flatten(0, 1)
    nll_N = F.cross_entropy(backbone.word_logits(hidden[packed.words_at_N]), packed.words_N, reduction="none")
    log_p = [
        backbone.head_log_p(hidden[packed.codes_at_ML[:, level]], level, prior)
        for level, prior in enumerate(packed.priors)
    ]
    if log_p:
        nll_N = torch.cat([nll_N, -losses.by_level(log_p, packed.codes_ML).flatten()])
    zeros_K = nll_N.new_zeros(len(packed.tasks))
    count_K = zeros_K.index_add(0, packed.task_N, torch.ones_like(nll_N))
    mean_K = zeros_K.index_add(0, packed.task_N, nll_N) / count_K.clamp(min=1)
    weight_K = torch.tensor([weights[task] for task in packed.tasks], device=hidden.device)
    return (mean_K * weight_K).sum() / (count_K > 0).sum(), mean_K.detach()
