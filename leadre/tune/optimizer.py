"""Optimizer, learning rate, and what keeps CPU training fast and small; shared by `sft` and `preferences.dpo`."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from leadre.lm.backbone import Backbone

WARMUP_STEPS = 60
WARMUP_SHARE = 0.2  # of the steps at most: a run of 40 steps would never come near its peak rate in 60
BETAS = (0.9, 0.98)
MAX_GRADIENT_NORM = 1.0


def learning_rate(step: int, steps: int) -> float:
    """Share (0 to 1) of the peak rate: linear warm-up, then linear decay to 0 at ``steps``.

    The warm-up takes `WARMUP_SHARE` of the steps, at most `WARMUP_STEPS`.
    """
    warm_up = max(1, min(WARMUP_STEPS, int(WARMUP_SHARE * steps)))
    return min(1.0, (step + 1) / warm_up) * max(0.0, 1 - step / steps)


def trainable_parameters(backbone: Backbone) -> dict[str, Tensor]:
    """The parameters with a gradient, by name."""
    return {name: parameter for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def make_optimizer(
    backbone: Backbone, *, body_rate: float, codes_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW with two groups: the pretrained body, and the code rows and pointer, which start untrained."""
    parameters = trainable_parameters(backbone)
    body = [p for name, p in parameters.items() if name.startswith("body.")]
    codes = [p for name, p in parameters.items() if not name.startswith("body.")]
    groups = [
        {"params": body, "base": body_rate, "lr": body_rate},
        {"params": codes, "base": codes_rate, "lr": codes_rate},
    ]
    return torch.optim.AdamW(groups, betas=BETAS, weight_decay=weight_decay)


def optimizer_step(backbone: Backbone, optimizer: torch.optim.AdamW, loss: Tensor, rate: float) -> None:
    """Backward pass of ``loss`` and one update at a share ``rate`` of each group's peak rate; clips the gradient."""
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trainable_parameters(backbone).values(), MAX_GRADIENT_NORM)
    optimizer.step()


@contextlib.contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Flush denormal numbers to zero: gradients of rare codes underflow, and CPUs compute denormals slowly."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def trim_heap() -> None:
    """Return freed pages to the system: batches of varying length leave holes in the heap that glibc keeps."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
