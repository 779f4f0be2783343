"""Training of neural rankers: log loss over rows or another, requests kept together, early stop on later requests.

AdamW with a rate of its own for tables, whose rows are updated by few of the batches. Training runs the model's
functions on tensors; the result is arrays of numpy.

Letters: R requests, C candidates, H labels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre import progress
from leadre.errors import InputError
from leadre.rank import layers
from leadre.rank.checkpoint import Checkpoint, Curve, Reached
from leadre.rank.inputs import Batch, SequenceBatch, collate
from leadre.rank.losses import LogLoss, Loss
from leadre.rank.models.shared import CONTENT, Assisted, Ranker, fit_numbers
from leadre.rank.processes import ALONE, Processes
from leadre.rank.rows import Example
from leadre.rank.spec import FeatureSpec

Arrays = dict[str, NDArray[np.float32]]
Rows = Sequence[Example] | Sequence[list[Example]]  # a batch has some of these; examples of a list stay together

LOG_LOSS = LogLoss()


@dataclass(frozen=True, kw_only=True)
class Training:
    """Options of the training loop. ``patience``: epochs without a lower validation loss before the end.

    The rates fall linearly from those given to zero over all ``epochs``.
    """

    epochs: int = 3
    batch: int = 64  # requests
    learning_rate: float = 1e-3
    table_rate: float = 3e-3
    weight_decay: float = 1e-5
    patience: int = 2
    checkpoint_s: float = 60.0


def fit(
    ranker: Ranker,
    spec: FeatureSpec,
    rows: Rows,
    valid: Rows,
    training: Training,
    seed: int,
    content_OW: NDArray[np.float32] | None = None,
    *,
    loss: Loss = LOG_LOSS,
    checkpoint: Checkpoint | None = None,
    processes: Processes = ALONE,
) -> tuple[Arrays, Curve]:
    """(parameters of the epoch with the lowest validation loss, losses).

    ``content_OW``: content vectors of the objects, for a ranker that reads them. Validation has the same ``loss``. A
    ``checkpoint`` of the same training is resumed. All ``processes`` call this with the same arguments and return the
    same. InputError if it diverges.
    """
    initial = ranker.init(spec, np.random.default_rng(seed))
    _set_fixed(initial, _examples(rows), content_OW)
    params = {name: torch.from_numpy(values.copy()) for name, values in initial.items()}
    optimizer = _optimizer(params, training)
    reached = (checkpoint and checkpoint.resume(params, optimizer)) or Reached(best=initial)
    curve = reached.curve
    batches = -(-len(rows) // training.batch)
    done = len(curve.valid) * batches + len(reached.losses)
    saved_s = time.monotonic()
    with progress.track("train the ranker", training.epochs * batches, done) as advance:
        while len(curve.valid) < training.epochs and curve.epochs_since_best() < training.patience:
            order = np.random.default_rng([seed, len(curve.valid)]).permutation(len(rows))
            for part in np.array_split(order, batches)[len(reached.losses) :]:
                _set_rates(optimizer, training, done / (training.epochs * batches))
                done += 1
                rng = np.random.default_rng([seed, done, processes.number])
                value = _step(ranker, spec, loss, params, optimizer, _some(rows, part), processes, rng)
                if not math.isfinite(value):
                    raise InputError(
                        f"the training diverges: its loss is {value} in step {done}; look for absurd numbers"
                    )
                reached.losses.append(value)
                advance(1, f"loss {reached.losses[-1]:.4f}")
                if checkpoint and processes.number == 0 and time.monotonic() - saved_s > training.checkpoint_s:
                    checkpoint.save(params, optimizer, reached)
                    saved_s = time.monotonic()
            curve.train.append(float(np.mean(reached.losses)))
            curve.valid.append(_validate(ranker, spec, loss, params, valid, training.batch, processes))
            reached.losses.clear()
            if curve.epochs_since_best() == 0:
                reached.best = {name: tensor.detach().numpy().copy() for name, tensor in params.items()}
    return reached.best, curve


def logits(
    ranker: Ranker, spec: FeatureSpec, params: Mapping[str, NDArray[np.float32]], batch: Batch
) -> NDArray[np.float64]:
    """Log-odds [R, C, H] by numpy, as in serving."""
    state = ranker.user(params, spec, batch)
    return np.asarray(ranker.score(params, spec, state, batch), np.float64)


@layers.joined.register(Tensor)
def _joined(first: Tensor, parts: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], dim=-1)


def _set_fixed(initial: Arrays, rows: Sequence[Example], content_OW: NDArray[np.float32] | None) -> None:
    """Set what training does not change: centre and scale of the numbers in the training rows, content vectors."""
    number_NF = np.concatenate([row.inputs.number_CF for row in rows])
    initial |= fit_numbers(number_NF)
    if CONTENT in initial:
        assert content_OW is not None, "the ranker reads content vectors"
        norm_O = np.linalg.norm(content_OW, axis=1, keepdims=True)
        unit_OW = content_OW / np.where(norm_O > 0, norm_O, 1)
        initial[CONTENT] = np.concatenate([np.zeros((1, unit_OW.shape[1])), unit_OW]).astype(np.float32)


def _optimizer(params: Mapping[str, Tensor], training: Training) -> torch.optim.AdamW:
    """AdamW over all parameters but the fixed ones, which it leaves without gradients."""
    tables: list[Tensor] = []
    others: list[Tensor] = []
    for name, tensor in params.items():
        if not name.startswith("fixed."):
            (tables if name.startswith("table.") else others).append(tensor.requires_grad_())
    groups = [{"params": tables, "lr": training.table_rate}, {"params": others, "lr": training.learning_rate}]
    return torch.optim.AdamW(groups, weight_decay=training.weight_decay)


def _set_rates(optimizer: torch.optim.AdamW, training: Training, share: float) -> None:
    """Rates after a share of all steps."""
    for group, rate in zip(optimizer.param_groups, (training.table_rate, training.learning_rate), strict=True):
        group["lr"] = rate * (1 - share)


def _step(
    ranker: Ranker,
    spec: FeatureSpec,
    loss: Loss,
    params: Mapping[str, Tensor],
    optimizer: torch.optim.AdamW,
    rows: Rows,
    processes: Processes,
    rng: np.random.Generator,
) -> float:
    """One step of the optimizer on a batch. Returns the mean loss of its rows before the step."""
    optimizer.zero_grad(set_to_none=processes.count == 1)
    part = _examples(rows[processes.number :: processes.count])
    every = _examples(rows)
    value = torch.zeros(())
    if part:
        batch = as_tensors(collate([row.inputs for row in part]))
        state = ranker.user(params, spec, batch)
        value = loss.total(ranker.score(params, spec, state, batch), batch.mask_RC, part) / loss.size(every)
        assisted = value
        if isinstance(ranker, Assisted):
            assisted = value + ranker.auxiliary(params, spec, state, batch, rng) / len(every)
        assisted.backward()
    value = value.detach()
    trained = [tensor for tensor in params.values() if tensor.requires_grad]
    if processes.count > 1:
        for tensor in trained:
            tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        processes.add([value, *(tensor.grad for tensor in trained if tensor.grad is not None)])
    optimizer.step()
    return float(value)


def _some(rows: Rows, numbers: NDArray[np.int64]) -> Rows:
    """The examples, or lists of them, of these numbers."""
    chosen: Rows = [rows[i] for i in numbers]
    return chosen


def _examples(rows: Rows) -> list[Example]:
    """All examples."""
    return [row for unit in rows for row in ([unit] if isinstance(unit, Example) else unit)]


@torch.no_grad()
def _validate(
    ranker: Ranker,
    spec: FeatureSpec,
    loss: Loss,
    params: Mapping[str, Tensor],
    rows: Rows,
    size: int,
    processes: Processes,
) -> float:
    """Mean loss of the rows."""
    own = rows[processes.number :: processes.count]
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(own), size):
        part = _examples(own[start : start + size])
        batch = as_tensors(collate([row.inputs for row in part]))
        logit_RCH = ranker.score(params, spec, ranker.user(params, spec, batch), batch)
        total += loss.total(logit_RCH, batch.mask_RC, part)
    processes.add([total])
    return float(total) / loss.size(_examples(rows))


def as_tensors(batch: Batch) -> Batch:
    """The batch as tensors that share its memory."""

    def tensor(value: NDArray[np.generic]) -> Tensor:
        result = torch.from_numpy(value)
        return result.long() if result.dtype == torch.int32 else result

    sequences = {
        name: SequenceBatch(**{f.name: tensor(getattr(part, f.name)) for f in fields(part)})
        for name, part in batch.sequences.items()
    }
    arrays = {f.name: tensor(getattr(batch, f.name)) for f in fields(batch) if f.name != "sequences"}
    return Batch(**arrays, sequences=sequences)
