"""Log of the alignment tasks: what each step drew of each task, and a summary by task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from leadre.tune.alignment.phrasings import PHRASINGS

REPORT_STEPS = 50


class TaskStep(NamedTuple):
    """One task in one step: examples, their positions, and the mean loss of a word or code in nats."""

    step: int
    task: str
    examples: int
    positions: int
    loss: float


def summary(task_steps: Sequence[TaskStep]) -> list[tuple[str, int, int, float, float]]:
    """(task, examples, positions, mean loss of the run's first and of its last `REPORT_STEPS` steps) by task drawn.

    A mean is nan if the task was not drawn in those steps.
    """
    last_step = max((row.step for row in task_steps), default=0)
    rows = []
    for task in PHRASINGS:
        steps = [row for row in task_steps if row.task == task]
        examples = sum(row.examples for row in steps)
        if examples:
            positions = sum(row.positions for row in steps)
            first_loss = _mean_loss([row for row in steps if row.step <= REPORT_STEPS])
            last_loss = _mean_loss([row for row in steps if row.step > last_step - REPORT_STEPS])
            rows.append((task, examples, positions, first_loss, last_loss))
    return rows


def _mean_loss(rows: Sequence[TaskStep]) -> float:
    return float(np.mean([row.loss for row in rows])) if rows else float("nan")
