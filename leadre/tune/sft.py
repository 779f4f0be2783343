"""Supervised fine-tuning: one explicit loop, resumable at any step.

The learning rate warms up, then falls linearly to zero over all steps. The number of steps is known before the first
one, so a resumed run takes the same steps as an undisturbed run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path

import torch
from torch import Tensor

from leadre import progress
from leadre.lm.backbone import Backbone
from leadre.lm.pointer import keep_agreeing
from leadre.tune import losses
from leadre.tune.alignment import loss as alignment_losses
from leadre.tune.alignment.sampler import ROW_POSITIONS, AlignmentSampler
from leadre.tune.answers import Outcomes, figures
from leadre.tune.batches import Batch, Examples
from leadre.tune.checkpoint import Checkpoint, TrainingHistory
from leadre.tune.optimizer import denormals_as_zero, learning_rate, make_optimizer, optimizer_step, trim_heap
from leadre.tune.options import TrainingSchedule
from leadre.tune.threads import Window

Validate = Callable[[], Mapping[str, Outcomes]]  # by view

CENTRING_BATCHES = 16
TRIM_EVERY = 20  # steps
RECENT_STEPS = 50  # of the loss in the progress line


@denormals_as_zero()
def train(
    backbone: Backbone,
    examples: Examples,
    schedule: TrainingSchedule,
    folder: Path,
    resume_key: str,
    validate: Validate,
    alignment: AlignmentSampler | None = None,
    alignment_first: int = 0,
    alignment_rate: float = 1.0,
) -> TrainingHistory:
    """Fine-tune ``backbone`` in place and return the history.

    Resumes from the checkpoint in ``folder`` if it has the same ``resume_key``. ``alignment`` examples use a part of
    each step. The first ``alignment_first`` steps train on them alone, at ``alignment_rate`` times the learning rates.
    """
    optimizer = schedule_optimizer(backbone, schedule)
    checkpoint = Checkpoint(folder, resume_key, backbone, optimizer)
    history = checkpoint.resume() or TrainingHistory()
    plan = _plan(examples, schedule, alignment)
    first = alignment_first if alignment else 0
    main_steps = len(plan)
    steps = first + main_steps
    backbone.train()
    saved_s = time.monotonic()
    with progress.track("tune: steps", steps, done=history.step) as advance:
        for step in range(history.step, steps):
            main_step = step - first  # negative: alignment examples alone
            rate = _rate(step, first, main_steps, alignment_rate)
            if main_step == 0:
                batches = [examples.batch(windows).to(backbone.device) for _, windows in plan[:CENTRING_BATCHES]]
                centre_code_scores(backbone, batches)
            history.step = step + 1
            loss = torch.zeros((), device=backbone.device)
            if alignment:
                rows = schedule.batch_tokens // ROW_POSITIONS if main_step < 0 else None
                alignment_loss, task_steps = alignment_losses.step_loss(backbone, alignment, step, rows)
                history.tasks += task_steps
                history.tokens += sum(row.positions for row in task_steps)
                loss = loss + alignment_loss
            if main_step >= 0:
                batch = examples.batch(plan[main_step][1])
                main_loss = sft_loss(backbone, batch.to(backbone.device))
                history.tokens += batch.tokens
                history.loss.append((history.step, main_loss.item(), rate * schedule.learning_rate, history.tokens))
                loss = loss + main_loss
            optimizer_step(backbone, optimizer, loss, rate)
            if main_step >= 0 and ((main_step + 1) % schedule.validate_every == 0 or history.step == steps):
                history.valid.append((history.step, figures(validate())))
                progress.say(f"tune: step {history.step}: {_figures_text(history)}")
            if history.step % TRIM_EVERY == 0:
                trim_heap()
            phase = f"epoch {plan[main_step][0] + 1}" if main_step >= 0 else "alignment"
            advance(1, _progress_text(phase, history, history.seconds + time.monotonic() - saved_s))
            if time.monotonic() - saved_s > schedule.checkpoint_s:
                history.seconds += time.monotonic() - saved_s
                saved_s = time.monotonic()
                checkpoint.save(history)
    history.seconds += time.monotonic() - saved_s
    return history


def schedule_optimizer(backbone: Backbone, schedule: TrainingSchedule) -> torch.optim.AdamW:
    """The optimizer with the rates of ``schedule``."""
    return make_optimizer(
        backbone,
        body_rate=schedule.learning_rate,
        codes_rate=schedule.codes_learning_rate,
        weight_decay=schedule.weight_decay,
    )


def _rate(step: int, first: int, main_steps: int, alignment_rate: float) -> float:
    """The multiple of the peak rates in a step; the ``first`` ones have a schedule of their own."""
    return alignment_rate * learning_rate(step, first) if step < first else learning_rate(step - first, main_steps)


def _plan(
    examples: Examples, schedule: TrainingSchedule, alignment: AlignmentSampler | None
) -> list[tuple[int, list[Window]]]:
    """(epoch, windows of the batch) of all steps of the main task."""
    batch_tokens = schedule.batch_tokens - (alignment.positions if alignment else 0)
    batches = (
        (epoch, windows)
        for epoch in range(schedule.epochs)
        for windows in examples.epoch(schedule.seed + epoch, batch_tokens)
    )
    return list(islice(batches, schedule.max_steps or None))  # epochs after the last step are never cut into windows


def sft_loss(backbone: Backbone, batch: Batch) -> Tensor:
    """The SFT loss of one batch: a scalar."""
    return losses.sft(losses.log_likelihood(level_log_p(backbone, batch), batch.targets_NL), batch.weights_N)


def level_log_p(backbone: Backbone, batch: Batch) -> list[Tensor]:
    """Log-probabilities [N, sizes[l]] of the codes of each level l, given each target's codes before it."""
    hidden_BTD = backbone(batch.ids_BT, batch.positions_BT.clamp(min=0), batch.mask_BNT, batch.thread_length)
    sources = backbone.sources(hidden_BTD[:, : batch.thread_length], batch.ids_BT[:, : batch.thread_length])
    hidden = hidden_BTD.flatten(0, 1)
    log_p = []
    pointer_bias_NT = batch.pointer_bias_NT
    for level, prior in enumerate(batch.priors):
        states = hidden[batch.predicts_NL[:, level]]
        log_p.append(backbone.log_p(states, level, prior, sources, batch.thread_N, pointer_bias_NT))
        if sources is not None:
            source_codes_NT = sources.codes_BTL[batch.thread_N, :, level]
            pointer_bias_NT = keep_agreeing(pointer_bias_NT, source_codes_NT, batch.targets_NL[:, level])
    return log_p


@torch.no_grad()
def centre_code_scores(backbone: Backbone, batches: Sequence[Batch]) -> None:
    """Set the bias of each code so that its mean score over ``batches`` is zero: the trie's prior decides at first.

    Before training the mean score of a code is arbitrary; otherwise the first hundreds of steps unlearn it.
    """
    backbone.bias_S.data = torch.zeros_like(backbone.bias_S)
    hidden = [
        backbone(batch.ids_BT, batch.positions_BT.clamp(min=0), batch.mask_BNT, batch.thread_length).flatten(0, 1)
        for batch in batches
    ]
    for level, (start, end) in enumerate(pairwise(backbone.layout.offsets)):
        states = torch.cat([h[b.predicts_NL[:, level]] for h, b in zip(hidden, batches, strict=True)])
        backbone.bias_S[start:end] = -backbone.logits(states, level).mean(0)


def _figures_text(history: TrainingHistory) -> str:
    return ", ".join(f"{name} {figure:.4f}" for name, figure in history.valid[-1][1].items())


def _progress_text(phase: str, history: TrainingHistory, seconds: float) -> str:
    recent = [row[1] for row in history.loss[-RECENT_STEPS:]]
    loss = f", loss {sum(recent) / len(recent):.3f}" if recent else ""
    return f"{phase}{loss}, {history.tokens / seconds:,.0f} tokens/s"
