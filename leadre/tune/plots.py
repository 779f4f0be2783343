"""Training curves as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadre.tune.alignment.report import TaskStep
from leadre.tune.checkpoint import TrainingHistory

SMOOTH_STEPS = 50


def loss_curve(history: TrainingHistory, path: Path) -> None:
    """Loss by training tokens (each step and a moving mean), and validation recall beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    tokens = np.array([row[3] for row in history.loss]) / 1e6
    loss = np.array([row[1] for row in history.loss])
    width = min(SMOOTH_STEPS, len(loss))
    left.plot(tokens, loss, color="#c6d4e1", linewidth=0.8, label="step")
    _smooth(left, tokens, loss, width, color="#1f5a96", label=f"mean of {width} steps")
    left.set(
        xlabel="million training tokens",
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
    right.set(xlabel="million training tokens", title="validation", ylim=(0, None))
    if history.valid:
        right.legend(frameon=False)
    _finish(figure, path)


def preferences(history: TrainingHistory, guard: float, path: Path) -> None:
    """Reward margin, accuracy, gain in likelihood of chosen and rejected, and recall with its guard.

    If chosen and rejected both lose likelihood, ads in no pair gain it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    margin, accuracy, likelihood, recall = figure.subplots(2, 2).ravel()
    steps = np.array([step for step, _ in history.pairs])
    width = max(min(SMOOTH_STEPS, len(steps) // 8), 1)
    series = {name: np.array([row[name] for _, row in history.pairs]) for name in history.pairs[0][1]}
    for axes, name, label in ((margin, "margin", "nats x beta"), (accuracy, "accuracy", "share of pairs")):
        axes.plot(steps, series[name], color="#c6d4e1", linewidth=0.8, label="step")
        _smooth(axes, steps, series[name], width, color="#1f5a96", label=f"mean of {width} steps")
        axes.set(xlabel="step", ylabel=label)
    margin.set(title="reward margin: chosen - rejected")
    accuracy.set(title="accuracy: the margin is above zero", ylim=(0, 1))
    for name, color in (("chosen", "#1f5a96"), ("rejected", "#c2502e")):
        gained = series[f"gained {name}"]
        likelihood.plot(steps, gained, color=color, linewidth=0.8, alpha=0.25)
        _smooth(likelihood, steps, gained, width, color=color, label=name)
    likelihood.axhline(0, color="black", linewidth=0.8)
    likelihood.set(xlabel="step", ylabel="nats an ad", title="log-likelihood gained on the reference")
    for name, before in history.valid[0][1].items():
        shares = [row[name] / before if before else np.nan for _, row in history.valid]
        recall.plot([step for step, _ in history.valid], shares, marker="o", label=name)
    recall.axhline(1 - guard, color="black", linestyle=":", label="guard")
    recall.set(xlabel="step", ylabel="share of the start", title="validation")
    for axes in (margin, accuracy, likelihood, recall):
        axes.legend(frameon=False)
    _finish(figure, path)


def task_losses(task_steps: Sequence[TaskStep], path: Path) -> None:
    """Loss of each alignment task over the steps, and the positions of each task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    tasks = list(dict.fromkeys(row.task for row in task_steps))
    for number, task in enumerate(tasks):
        rows = [row for row in task_steps if row.task == task]
        steps = np.array([row.step for row in rows])
        loss = np.array([row.loss for row in rows])
        width = max(min(SMOOTH_STEPS, len(rows) // 8), 1)
        _smooth(left, steps, loss, width, color=f"C{number}", label=task)
        right.barh(task, sum(row.positions for row in rows), color=f"C{number}")
    left.set(xlabel="step", ylabel="nats a word or code", title="alignment tasks", ylim=(0, None))
    left.legend(frameon=False, fontsize="small")
    right.set(xlabel="positions", title="positions by task")
    _finish(figure, path)


def _smooth(axes: Any, x: NDArray[Any], y: NDArray[Any], width: int, *, color: str, label: str) -> None:
    """A moving mean over ``width`` values."""
    axes.plot(x[width - 1 :], np.convolve(y, np.ones(width) / width, mode="valid"), color=color, label=label)


def _finish(figure: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
