"""Training of neural rankers: log loss over rows, requests kept together, early stop on later requests.

AdamW with a rate of its own for tables, whose rows are updated by few of the batches. Training runs the model's
functions on tensors; the result is arrays of numpy.

Letters: N rows of a batch, H labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from leadre import progress
from leadre.rank import layers
from leadre.rank.inputs import Batch, SequenceBatch, collate
from leadre.rank.models.shared import CONTENT, Ranker
from leadre.rank.rows import Example
from leadre.rank.spec import FeatureSpec

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Options of the training loop. ``patience``: epochs without a lower validation loss before the end."""

    epochs: int = 8
    batch: int = 64  # requests
    learning_rate: float = 1e-3
    table_rate: float = 3e-3
    weight_decay: float = 1e-5
    patience: int = 2


@dataclass
class Curve:
    """Losses by epoch, in nats a row."""

    train: list[float] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)


def fit(
    ranker: Ranker,
    spec: FeatureSpec,
    rows: Sequence[Example],
    valid: Sequence[Example],
    training: Training,
    seed: int,
    content_OW: NDArray[np.float32] | None = None,
) -> tuple[Arrays, Curve]:
    """(parameters of the epoch with the lowest validation loss, losses).

    ``content_OW``: content vectors of the objects, for a ranker that reads them.
    """
    rng = np.random.default_rng(seed)
    initial = ranker.init(spec, rng)
    _set_fixed(initial, rows, content_OW)
    params = {name: torch.from_numpy(values.copy()) for name, values in initial.items()}
    optimizer = _optimizer(params, training)
    curve = Curve()
    best: Arrays = initial
    batches = -(-len(rows) // training.batch)
    with progress.track("train the ranker", training.epochs * batches) as advance:
        for _ in range(training.epochs):
            losses = []
            for part in np.array_split(rng.permutation(len(rows)), batches):
                loss = _loss(ranker, spec, params, [rows[i] for i in part])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                advance(1, f"loss {losses[-1]:.4f}")
            curve.train.append(float(np.mean(losses)))
            curve.valid.append(_validate(ranker, spec, params, valid, training.batch))
            if curve.valid[-1] == min(curve.valid):
                best = {name: tensor.detach().numpy().copy() for name, tensor in params.items()}
            if len(curve.valid) - 1 - int(np.argmin(curve.valid)) >= training.patience:
                break
    return best, curve


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
    scale_F = number_NF.std(axis=0)
    initial["fixed.centre"] = number_NF.mean(axis=0)
    initial["fixed.scale"] = np.where(scale_F < 1e-6, 1.0, scale_F).astype(np.float32)
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


def _loss(ranker: Ranker, spec: FeatureSpec, params: Mapping[str, Tensor], rows: Sequence[Example]) -> Tensor:
    """Mean log loss of the rows' labels."""
    batch = as_tensors(collate([row.inputs for row in rows]))
    label_RCH = torch.zeros((*batch.mask_RC.shape, len(spec.labels)))
    for target, row in zip(label_RCH, rows, strict=True):
        target[: len(row.label_CH)] = torch.from_numpy(row.label_CH)
    logit_RCH: Tensor = ranker.score(params, spec, ranker.user(params, spec, batch), batch)
    return functional.binary_cross_entropy_with_logits(logit_RCH[batch.mask_RC], label_RCH[batch.mask_RC])


@torch.no_grad()
def _validate(
    ranker: Ranker, spec: FeatureSpec, params: Mapping[str, Tensor], rows: Sequence[Example], size: int
) -> float:
    total = count = 0.0
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        candidates = sum(len(row.ads) for row in part)
        total += float(_loss(ranker, spec, params, part)) * candidates
        count += candidates
    return total / count


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
