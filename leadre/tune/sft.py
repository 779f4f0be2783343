"""Supervised fine-tuning: one explicit loop, resumable at any step.

The learning rate warms up and then falls linearly to nothing over all steps, which are known beforehand, so a resumed
run takes the very steps that an undisturbed one takes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from leadre import progress
from leadre.lm.backbone import Backbone
from leadre.tune import losses
from leadre.tune.alignment import tasks as auxiliary
from leadre.tune.alignment.tasks import AlignmentSampler, TaskStep
from leadre.tune.batches import Batch, Examples

Recalls = Mapping[str, NDArray[np.float64]]  # by view, of each request with something to find
Validate = Callable[[], Recalls]

WARMUP_STEPS = 60
BETAS = (0.9, 0.98)
CLIP_NORM = 1.0
OPENING_BATCHES = 16
TRIM_STEPS = 20
STATE, FACTS = "state.safetensors", "state.json"


@dataclass(frozen=True, kw_only=True)
class TrainingSchedule:
    """How long and how fast: ``batch_tokens`` positions a step, ``epochs`` passes, at most ``max_steps`` if not 0."""

    epochs: int
    max_steps: int
    batch_tokens: int
    learning_rate: float
    codes_learning_rate: float
    weight_decay: float
    seed: int
    validate_every: int
    checkpoint_s: float


@dataclass
class TrainingHistory:
    """What the run has seen so far: rows of loss.csv (step, loss, lr, tokens) and valid.csv (step, metrics).

    Where preferences are learnt, ``pairs`` has rows of pairs.csv (step, what the model makes of the step's pairs);
    where alignment tasks are, ``tasks`` has what each step drew of them. ``loss`` is that of the main task alone.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: list[tuple[int, float, float, int]] = field(default_factory=list)
    valid: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    pairs: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    tasks: list[TaskStep] = field(default_factory=list)


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Gradients of rare codes underflow, and denormal numbers are slow on CPUs; who called has them back afterwards."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@flushed_denormals()
def train(
    backbone: Backbone,
    examples: Examples,
    schedule: TrainingSchedule,
    checkpoint: Path,
    identity: str,
    validate: Validate,
    sentences: AlignmentSampler | None = None,
    aux_first: int = 0,
) -> TrainingHistory:
    """Fine-tune ``backbone`` in place. ``checkpoint`` is a folder of a run with the same ``identity``, or of nobody.

    ``sentences`` take their positions out of those of a step. ``aux_first`` steps of them alone come before, with a
    rise and fall of the rate of their own.
    """
    optimizer = make_optimizer(backbone, schedule)
    history = resume(checkpoint, identity, backbone, optimizer) or TrainingHistory()
    batch_tokens = schedule.batch_tokens - (sentences.positions if sentences else 0)
    plan = [
        (epoch, windows)
        for epoch in range(schedule.epochs)
        for windows in examples.epoch(schedule.seed + epoch, batch_tokens)
    ]
    first, most = aux_first if sentences else 0, min(len(plan), schedule.max_steps or len(plan))
    steps = first + most
    backbone.train()
    saved_s = started_s = time.monotonic()
    with progress.track("tune: steps", steps, done=history.step) as advance:
        for step in range(history.step, steps):
            rate = learning_rate(step, first) if step < first else learning_rate(step - first, most)
            if step == first:
                opening = [examples.batch(windows).to(backbone.device) for _, windows in plan[:OPENING_BATCHES]]
                start_from_prior(backbone, opening)
            total, history.step = torch.zeros((), device=backbone.device), step + 1
            if sentences:
                rows = schedule.batch_tokens // auxiliary.ROW if step < first else None
                total = total + _align(backbone, sentences, step, rows, history)
            if step >= first:
                loss = _answer(backbone, examples.batch(plan[step - first][1]), history)
                history.loss.append((history.step, loss.item(), rate * schedule.learning_rate, history.tokens))
                total = total + loss
            update(backbone, optimizer, total, rate)
            if step >= first and ((step + 1 - first) % schedule.validate_every == 0 or history.step == steps):
                history.valid.append((history.step, means(validate())))
                progress.say(
                    f"tune: step {history.step}: " + ", ".join(f"{k} {v:.4f}" for k, v in history.valid[-1][1].items())
                )
            rate_s = history.tokens / (history.seconds + time.monotonic() - started_s)
            if history.step % TRIM_STEPS == 0:
                give_back_memory()
            where = f"epoch {plan[step - first][0] + 1}, loss {_recent(history):.3f}" if step >= first else "alignment"
            advance(1, f"{where}, {rate_s:,.0f} tokens/s")
            if time.monotonic() - saved_s > schedule.checkpoint_s:
                history.seconds += time.monotonic() - started_s
                started_s = saved_s = time.monotonic()
                save(checkpoint, identity, backbone, optimizer, history)
    history.seconds += time.monotonic() - started_s
    return history


def _align(
    backbone: Backbone, sentences: AlignmentSampler, step: int, rows: int | None, history: TrainingHistory
) -> Tensor:
    """The loss of a step's sentences."""
    loss, drawn = auxiliary.step_loss(backbone, sentences, step, rows)
    history.tasks += drawn
    history.tokens += sum(row.positions for row in drawn)
    return loss


def _answer(backbone: Backbone, batch: Batch, history: TrainingHistory) -> Tensor:
    """The loss of a step's visits."""
    history.tokens += batch.tokens
    return step_loss(backbone, batch.to(backbone.device))


def give_back_memory() -> None:
    """Return freed pages to the system: batches of ever new lengths leave holes that glibc would keep for good."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def update(backbone: Backbone, optimizer: torch.optim.AdamW, loss: Tensor, rate: float) -> None:
    """One step down ``loss`` at a share ``rate`` of the full rates."""
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained(backbone).values(), CLIP_NORM)
    optimizer.step()


def means(found: Recalls) -> dict[str, float]:
    """One number a view; zero where no request had anything to find."""
    return {name: float(values.mean()) if len(values) else 0.0 for name, values in found.items()}


def step_loss(backbone: Backbone, batch: Batch) -> Tensor:
    """The SFT loss of one batch: a scalar."""
    return losses.sft(losses.log_likelihood(level_log_p(backbone, batch), batch.targets_NL), batch.weights_N)


def level_log_p(backbone: Backbone, batch: Batch) -> list[Tensor]:
    """Log-probabilities [N, sizes[l]] of each level's codes for each target, given the target's codes before."""
    hidden_BTD = backbone(batch.ids_BT, batch.positions_BT.clamp(min=0), batch.mask_BNT, batch.thread)
    sources = backbone.sources(hidden_BTD[:, : batch.thread], batch.ids_BT[:, : batch.thread])
    hidden = hidden_BTD.flatten(0, 1)
    log_p, log_worth_NT = [], batch.log_worth_NT
    for level, prior in enumerate(batch.priors):
        states = hidden[batch.predicts_NL[:, level]]
        log_p.append(backbone.log_p(states, level, prior, sources, batch.thread_N, log_worth_NT))
        if sources is not None:  # from here on only objects that agree with this code can be repeated
            carried = sources.codes_BTL[batch.thread_N, :, level]
            log_worth_NT = log_worth_NT.where(carried == batch.targets_NL[:, level, None], -torch.inf)
    return log_p


@torch.no_grad()
def start_from_prior(backbone: Backbone, batches: Sequence[Batch]) -> None:
    """Set the bias of every code so that its score is zero on average over ``batches``: the trie's prior decides.

    What the scores have in common over all prompts is arbitrary before training; the first hundreds of steps would
    otherwise go into unlearning it.
    """
    layout, backbone.bias_S.data = backbone.layout, torch.zeros_like(backbone.bias_S)
    hidden = [backbone(b.ids_BT, b.positions_BT.clamp(min=0), b.mask_BNT, b.thread).flatten(0, 1) for b in batches]
    for level, (start, end) in enumerate(pairwise(layout.offsets)):
        asked = torch.cat([h[b.predicts_NL[:, level]] for h, b in zip(hidden, batches, strict=True)])
        backbone.bias_S[start:end] = -backbone.logits(asked, level).mean(0)


def learning_rate(step: int, steps: int) -> float:
    """Share of the full rate: up over the first steps, then linearly down to zero at the end."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * max(0.0, 1 - step / steps)


def trained(backbone: Backbone) -> dict[str, Tensor]:
    """The parameters that learn, by name."""
    return {name: parameter for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def make_optimizer(backbone: Backbone, schedule: TrainingSchedule) -> torch.optim.AdamW:
    """AdamW; code rows and pointer, which do not start from pretraining, get a rate of their own."""
    parameters = trained(backbone)
    codes = [p for name, p in parameters.items() if not name.startswith("body.")]
    body = [p for name, p in parameters.items() if name.startswith("body.")]
    groups = [
        {"params": body, "base": schedule.learning_rate, "lr": schedule.learning_rate},
        {"params": codes, "base": schedule.codes_learning_rate, "lr": schedule.codes_learning_rate},
    ]
    return torch.optim.AdamW(groups, betas=BETAS, weight_decay=schedule.weight_decay)


def save(
    folder: Path, identity: str, backbone: Backbone, optimizer: torch.optim.AdamW, history: TrainingHistory
) -> None:
    """Write weights, optimizer and history; the step is the last to be renamed, so a killed write is never read."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(trained(backbone))
    for name, parameter in trained(backbone).items():
        state = optimizer.state[parameter]
        tensors |= {f"{key}:{name}": state[key] for key in ("exp_avg", "exp_avg_sq", "step") if key in state}
    weights = f"{STATE}.{history.step}"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / weights)
    facts = {"identity": identity, "weights": weights, "history": asdict(history)}
    temporary = folder / f"{FACTS}.tmp"
    temporary.write_text(json.dumps(facts), encoding="utf-8")
    os.replace(temporary, folder / FACTS)
    for old in folder.glob(f"{STATE}.*"):
        if old.name != weights:
            old.unlink()


def resume(folder: Path, identity: str, backbone: Backbone, optimizer: torch.optim.AdamW) -> TrainingHistory | None:
    """Load the checkpoint in ``folder`` into model and optimizer; None where there is none of this ``identity``."""
    if not (folder / FACTS).exists():
        return None
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    if facts["identity"] != identity:
        progress.say(f"tune: {folder} belongs to another config or other data; starting anew")
        return None
    tensors = load_file(folder / facts["weights"])
    for name, parameter in trained(backbone).items():
        parameter.data.copy_(tensors[name])
        state: dict[str, Any] = {
            key: tensors[f"{key}:{name}"] for key in ("exp_avg", "exp_avg_sq", "step") if f"{key}:{name}" in tensors
        }
        optimizer.state[parameter] = {
            key: tensor if key == "step" else tensor.to(parameter.device) for key, tensor in state.items()
        }
    raw = facts["history"]
    progress.say(f"tune: takes the weights of step {raw['step']} from {folder}")
    rows = [(int(s), float(loss), float(lr), int(t)) for s, loss, lr, t in raw["loss"]]
    valid, pairs = ([(int(s), dict(m)) for s, m in raw.get(name, [])] for name in ("valid", "pairs"))
    tasks = [TaskStep(*row) for row in raw.get("tasks", [])]
    return TrainingHistory(raw["step"], raw["tokens"], raw["seconds"], rows, valid, pairs, tasks)


def _recent(history: TrainingHistory, steps: int = 50) -> float:
    losses_ = [row[1] for row in history.loss[-steps:]]
    return sum(losses_) / len(losses_)
