"""The training curve as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from leadre.tune.sft import History

SMOOTH_STEPS = 50


def loss_curve(history: History, path: Path) -> None:
    """Loss by tokens read (a moving mean over the raw values) and validation recall beside it, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    tokens = np.array([row[3] for row in history.loss]) / 1e6
    loss = np.array([row[1] for row in history.loss])
    width = min(SMOOTH_STEPS, len(loss))
    smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
    left.plot(tokens, loss, color="#c6d4e1", linewidth=0.8, label="step")
    left.plot(tokens[width - 1 :], smooth, color="#1f5a96", label=f"mean of {width} steps")
    left.set(
        xlabel="million tokens read",
        ylabel="loss (nats an ad)",
        title="training loss",
        ylim=(None, np.quantile(loss, 0.99)),
    )
    left.legend(frameon=False)
    by_step = {row[0]: row[3] / 1e6 for row in history.loss}
    for name in history.valid[0][1] if history.valid else ():
        right.plot(
            [by_step[s] for s, _ in history.valid], [row[name] for _, row in history.valid], marker="o", label=name
        )
    right.set(xlabel="million tokens read", title="validation", ylim=(0, None))
    if history.valid:
        right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
