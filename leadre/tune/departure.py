"""How far a tuned model departs from its prior, chosen on validation requests.

A short training learns some of what the prior lacks, and learns it too confidently: at full strength the model can have
a higher loss on new visits than the prior alone, at half of it a lower one. Training cannot show this, as its own
visits are learnt by heart in part. The scale of scores after training is that of temperature scaling (Guo et al.,
arXiv 1706.04599), towards the prior in place of the uniform distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from leadre import progress
from leadre.lm.backbone import Backbone, depart
from leadre.tune import losses
from leadre.tune.batches import Batch, Examples
from leadre.tune.sft import level_log_p
from leadre.tune.threads import Window

DEPARTURES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
BATCHES = 24  # of validation requests, at most


@torch.no_grad()
def choose(backbone: Backbone, examples: Examples, windows: Sequence[Window], tokens: int) -> dict[float, float]:
    """Set ``backbone.departure`` to that of `DEPARTURES` with the lowest loss on ``windows``. Returns all losses.

    A batch has about ``tokens`` positions. Without windows the departure stays 1 and there is no loss.
    """
    backbone.departure = 1.0
    sums = torch.zeros(len(DEPARTURES), dtype=torch.float64)
    weight = 0.0
    batches = examples.packed(windows, tokens)
    chosen = [batches[i] for i in torch.linspace(0, len(batches) - 1, min(BATCHES, len(batches))).round().long()]
    for part in progress.bar(chosen, total=len(chosen), label="tune: departure from the prior"):
        batch = examples.batch(part).to(backbone.device)
        log_p = level_log_p(backbone, batch)
        sums += torch.tensor([-(_log_likelihood(batch, log_p, d) @ batch.weights_N).item() for d in DEPARTURES])
        weight += float(batch.weights_N.sum())
    figures = dict(zip(DEPARTURES, (sums / max(weight, 1e-9)).tolist(), strict=True)) if weight else {}
    if figures:
        backbone.departure = min(figures, key=figures.__getitem__)
    return figures


def _log_likelihood(batch: Batch, log_p: Sequence[torch.Tensor], departure: float) -> torch.Tensor:
    moved = [depart(prior, scores, departure) for prior, scores in zip(batch.priors, log_p, strict=True)]
    return losses.log_likelihood(moved, batch.targets_NL)


def text(figures: Mapping[float, float], departure: float) -> str:
    """The choice in one line."""
    return (
        f"the model departs from its prior by {departure:g} of its scores: validation loss {figures[departure]:.4f}, "
        f"{figures[0.0]:.4f} of the prior alone, {figures[1.0]:.4f} as trained"
    )
