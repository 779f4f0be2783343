"""Training history, and the checkpoint that a killed run resumes from."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from leadre import progress
from leadre.lm.backbone import Backbone
from leadre.tune.alignment.report import TaskStep
from leadre.tune.optimizer import trainable_parameters

WEIGHTS = "state.safetensors"
STATE = "state.json"
OPTIMIZER_STATE = ("exp_avg", "exp_avg_sq", "step")  # AdamW's tensors for each parameter


@dataclass
class TrainingHistory:
    """Figures of a run so far.

    loss    rows of loss.csv: step, loss of the main task, learning rate, tokens so far
    valid   rows of valid.csv: step, recall and GMV by view
    pairs   rows of pairs.csv: step, figures of the step's preference pairs
    tasks   rows of the alignment tasks
    kept    step and validation GMV of the weights that preference training keeps so far; None = none passed its guard
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: list[tuple[int, float, float, int]] = field(default_factory=list)
    valid: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    pairs: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    tasks: list[TaskStep] = field(default_factory=list)
    kept: tuple[int, float] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """Weights, optimizer and history in ``folder``. ``resume_key`` identifies the run's config and inputs."""

    folder: Path
    resume_key: str
    backbone: Backbone
    optimizer: torch.optim.AdamW

    def save(self, history: TrainingHistory) -> None:
        """Write the checkpoint. ``state.json`` is renamed last, so a killed write leaves the checkpoint before it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        parameters = trainable_parameters(self.backbone)
        tensors = dict(parameters)
        for name, parameter in parameters.items():
            state = self.optimizer.state[parameter]
            tensors |= {f"{key}:{name}": state[key] for key in OPTIMIZER_STATE if key in state}
        weights = f"{WEIGHTS}.{history.step}"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, self.folder / weights)
        content = {"identity": self.resume_key, "weights": weights, "history": asdict(history)}
        temporary = self.folder / f"{STATE}.tmp"
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, self.folder / STATE)
        for old in self.folder.glob(f"{WEIGHTS}.*"):
            if old.name != weights:
                old.unlink()

    def resume(self) -> TrainingHistory | None:
        """Load weights and optimizer state and return the history; None if there is no checkpoint of this run."""
        if not (self.folder / STATE).exists():
            return None
        content = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        if content["identity"] != self.resume_key:
            progress.say(f"tune: {self.folder} belongs to another config or other data; training starts from step 0")
            return None
        tensors = load_file(self.folder / content["weights"])
        for name, parameter in trainable_parameters(self.backbone).items():
            parameter.data.copy_(tensors[name])
            state: dict[str, Any] = {
                key: tensors[f"{key}:{name}"] for key in OPTIMIZER_STATE if f"{key}:{name}" in tensors
            }
            self.optimizer.state[parameter] = {
                key: tensor if key == "step" else tensor.to(parameter.device) for key, tensor in state.items()
            }
        history = _history(content["history"])
        progress.say(f"tune: takes the weights of step {history.step} from {self.folder}")
        return history


def _history(content: dict[str, Any]) -> TrainingHistory:
    """The history out of JSON; checkpoints of earlier releases lack some columns."""
    kept = content.get("kept")
    return TrainingHistory(
        step=content["step"],
        tokens=content["tokens"],
        seconds=content["seconds"],
        loss=[(int(step), float(loss), float(rate), int(tokens)) for step, loss, rate, tokens in content["loss"]],
        valid=[(int(step), dict(recalls)) for step, recalls in content.get("valid", [])],
        pairs=[(int(step), dict(figures)) for step, figures in content.get("pairs", [])],
        tasks=[TaskStep(*row) for row in content.get("tasks", [])],
        kept=None if kept is None else (int(kept[0]), float(kept[1])),
    )
