"""Training of neural rankers: log loss over rows, requests kept together, early stop on later requests.

AdamW with a rate of its own for tables, whose rows are updated by few of the batches. Training runs the model's
functions on tensors; the result is arrays of numpy.

Letters: N rows of a batch, H labels.
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
from torch.nn import functional

from leadre import progress
from leadre.errors import InputError
from leadre.rank import layers
from leadre.rank.checkpoint import Checkpoint, Curve, Reached
from leadre.rank.inputs import Batch, SequenceBatch, collate
from leadre.rank.models.shared import CONTENT, Assisted, Ranker, State, fit_numbers
from leadre.rank.processes import ALONE, Processes
from leadre.rank.rows import Example
from leadre.rank.spec import FeatureSpec

Arrays = dict[str, NDArray[np.float32]]


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
    rows: Sequence[Example],
    valid: Sequence[Example],
    training: Training,
    seed: int,
    content_OW: NDArray[np.float32] | None = None,
    *,
    checkpoint: Checkpoint | None = None,
    processes: Processes = ALONE,
) -> tuple[Arrays, Curve]:
    """(parameters of the epoch with the lowest validation loss, losses).

    ``content_OW``: content vectors of the objects, for a ranker that reads them. A ``checkpoint`` of the same training
    is resumed. All ``processes`` call this with the same arguments and return the same. InputError if it diverges.
    """
    initial = ranker.init(spec, np.random.default_rng(seed))
    _set_fixed(initial, rows, content_OW)
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
                loss = _step(ranker, spec, params, optimizer, [rows[i] for i in part], processes, rng)
                if not math.isfinite(loss):
                    raise InputError(
                        f"the training diverges: its loss is {loss} in step {done}; look for absurd numbers"
                    )
                reached.losses.append(loss)
                advance(1, f"loss {reached.losses[-1]:.4f}")
                if checkpoint and processes.number == 0 and time.monotonic() - saved_s > training.checkpoint_s:
                    checkpoint.save(params, optimizer, reached)
                    saved_s = time.monotonic()
            curve.train.append(float(np.mean(reached.losses)))
            curve.valid.append(_validate(ranker, spec, params, valid, training.batch, processes))
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
    params: Mapping[str, Tensor],
    optimizer: torch.optim.AdamW,
    rows: Sequence[Example],
    processes: Processes,
    rng: np.random.Generator,
) -> float:
    """One step of the optimizer on a batch. Returns the mean log loss of its rows before the step."""
    optimizer.zero_grad(set_to_none=processes.count == 1)
    part = processes.part(rows)
    loss = torch.zeros(())
    if part:
        batch = as_tensors(collate([row.inputs for row in part]))
        state = ranker.user(params, spec, batch)
        loss = _loss(ranker, spec, params, part, batch, state) / _size(rows, spec)
        assisted = loss
        if isinstance(ranker, Assisted):
            assisted = loss + ranker.auxiliary(params, spec, state, batch, rng) / len(rows)
        assisted.backward()
    loss = loss.detach()
    trained = [tensor for tensor in params.values() if tensor.requires_grad]
    if processes.count > 1:
        for tensor in trained:
            tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        processes.add([loss, *(tensor.grad for tensor in trained if tensor.grad is not None)])
    optimizer.step()
    return float(loss)


def _size(rows: Sequence[Example], spec: FeatureSpec) -> int:
    """The number of labels of the rows."""
    return sum(len(row.ads) for row in rows) * len(spec.labels)


def _loss(
    ranker: Ranker,
    spec: FeatureSpec,
    params: Mapping[str, Tensor],
    rows: Sequence[Example],
    batch: Batch,
    state: State,
) -> Tensor:
    """Sum of the weighted log losses of the labels of ``rows``, which are ``batch``."""
    label_RCH = torch.zeros((*batch.mask_RC.shape, len(spec.labels)))
    weight_RCH = torch.zeros_like(label_RCH)
    for label_CH, weight_CH, row in zip(label_RCH, weight_RCH, rows, strict=True):
        label_CH[: len(row.label_CH)] = torch.from_numpy(row.label_CH)
        weight_CH[: len(row.label_CH)] = 1.0 if row.weight_CH is None else torch.from_numpy(row.weight_CH)
    logit_RCH: Tensor = ranker.score(params, spec, state, batch)
    is_row_RC = batch.mask_RC
    return functional.binary_cross_entropy_with_logits(
        logit_RCH[is_row_RC], label_RCH[is_row_RC], weight_RCH[is_row_RC], reduction="sum"
    )


@torch.no_grad()
def _validate(
    ranker: Ranker,
    spec: FeatureSpec,
    params: Mapping[str, Tensor],
    rows: Sequence[Example],
    size: int,
    processes: Processes,
) -> float:
    """Mean log loss of the rows' labels."""
    own = processes.part(rows)
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(own), size):
        part = own[start : start + size]
        batch = as_tensors(collate([row.inputs for row in part]))
        total += _loss(ranker, spec, params, part, batch, ranker.user(params, spec, batch))
    processes.add([total])
    return float(total) / _size(rows, spec)


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
