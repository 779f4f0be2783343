"""The checkpoint of a neural ranker's training: a killed run resumes from it and ends with the same weights.

One safetensors file: parameters, moments of AdamW, the best parameters until now; its metadata has the rest as JSON.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from leadre import progress

FILE = "training.safetensors"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
PARAMETER, BEST = "parameter:", "best:"


@dataclass
class Curve:
    """Losses by epoch, in nats a row, or a request of a coarse ranker."""

    train: list[float] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)

    def epochs_since_best(self) -> int:
        """Epochs after the one with the lowest validation loss; 0 before the first."""
        return len(self.valid) - 1 - int(np.argmin(self.valid)) if self.valid else 0

    def save(self, path: Path) -> None:
        """Write the losses as CSV, a line for each epoch."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("epoch", "train_loss", "valid_loss"))
            writer.writerows((n, *losses) for n, losses in enumerate(zip(self.train, self.valid, strict=True), 1))


@dataclass
class Reached:
    """How far a training has come: best parameters, finished epochs, losses of the current epoch's batches."""

    best: dict[str, NDArray[np.float32]]
    curve: Curve = field(default_factory=Curve)
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in ``folder``. ``key`` identifies config and inputs: another key is another training."""

    folder: Path
    key: str

    def save(self, params: Mapping[str, Tensor], optimizer: torch.optim.AdamW, reached: Reached) -> None:
        """Write the file and rename it, so that a killed write leaves the checkpoint before it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {BEST + name: torch.from_numpy(values) for name, values in reached.best.items()}
        for name, tensor in params.items():
            tensors[PARAMETER + name] = tensor.detach()
            tensors |= {f"{moment}:{name}": value for moment, value in optimizer.state.get(tensor, {}).items()}
        facts = {"key": self.key, "curve": asdict(reached.curve), "losses": reached.losses}
        temporary = self.folder / f".{FILE}"
        save_file(tensors, temporary, metadata={"facts": json.dumps(facts)})
        os.replace(temporary, self.folder / FILE)

    def resume(self, params: Mapping[str, Tensor], optimizer: torch.optim.AdamW) -> Reached | None:
        """Set parameters and optimizer to the checkpoint; None if there is none of this training."""
        if not (self.folder / FILE).exists():
            return None
        with safe_open(self.folder / FILE, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            if facts["key"] != self.key:
                progress.say(f"rank train: {self.folder} belongs to another config or other data; training starts anew")
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        for name, tensor in params.items():
            tensor.data.copy_(tensors[PARAMETER + name])
            moments = {moment: tensors[f"{moment}:{name}"] for moment in MOMENTS if f"{moment}:{name}" in tensors}
            if moments:
                optimizer.state[tensor] = moments
        best = {name.removeprefix(BEST): value.numpy() for name, value in tensors.items() if name.startswith(BEST)}
        reached = Reached(best=best, curve=Curve(**facts["curve"]), losses=facts["losses"])
        progress.say(f"rank train: resumes in epoch {len(reached.curve.valid) + 1}, batch {len(reached.losses) + 1}")
        return reached
