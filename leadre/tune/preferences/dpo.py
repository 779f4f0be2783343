"""Preference optimisation: one explicit loop, beside that of `sft`, over pairs of objects live in the same request.

Chosen and rejected objects are branches of the same thread, scored level by level under the same mask, and each object
once however many pairs it is in. The reference is the model before the first step: the log-probabilities of all pairs
are computed then, so no second model is kept. Windows are cut once and hold for the prompts of every epoch.

A preference loss can lower the likelihood of the chosen together with that of the rejected, in favour of all other
objects. So the loss keeps an SFT term, and a guard watches validation recall: the run ends with the last weights that
passed it.

Letters: P pairs of a batch, L levels, N objects (targets) of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre import progress
from leadre.lm.backbone import Backbone
from leadre.lm.layout import Layout
from leadre.lm.prior import InventoryPrior
from leadre.semid.trie import path_priors
from leadre.tune import losses, sft
from leadre.tune.batches import Batch, Examples, Targets
from leadre.tune.checkpoint import Checkpoint, TrainingHistory
from leadre.tune.optimizer import denormals_as_zero, learning_rate, optimizer_step, trim_heap
from leadre.tune.options import TrainingSchedule
from leadre.tune.preferences.options import PreferenceObjective
from leadre.tune.preferences.pairs import Pairs
from leadre.tune.threads import ThreadBuilder, Window

PASSED = "passed"  # folder in the checkpoint: the last weights that passed the guard


@dataclass(frozen=True)
class PairBatch:
    """A batch whose targets are the objects of P pairs."""

    batch: Batch
    chosen_P: Tensor  # index of the chosen object among the targets of ``batch``
    rejected_P: Tensor
    pair_P: Tensor  # index in `Pairs`


class PreferenceExamples(Examples):
    """Makes batches from pairs: the objects of a request's pairs are its branches."""

    def __init__(self, threads: ThreadBuilder, live: InventoryPrior, layout: Layout, pairs: Pairs) -> None:
        super().__init__(threads, live, layout, new_weight=0.0)
        self.pairs = pairs
        self.requests_R, starts = np.unique(pairs.request_P, return_index=True)
        ends = np.append(starts[1:], len(pairs))
        self._pairs_of = {int(r): slice(*rows) for r, *rows in zip(self.requests_R, starts, ends, strict=True)}

    def windows(self, seed: int) -> list[Window]:
        return self.threads.training(seed, self.requests_R)

    def branch_count(self, requests_R: NDArray[np.int64]) -> int:
        return sum(len(self.objects(int(r))) for r in requests_R)

    def objects(self, r: int) -> NDArray[np.int64]:
        """The objects of the pairs of request ``r``, ascending."""
        rows = self._pairs_of[r]
        return np.unique(np.concatenate([self.pairs.chosen_P[rows], self.pairs.rejected_P[rows]]))

    def targets(self, r: int) -> Targets:
        """The objects of the request's pairs, among all live objects."""
        codes = self.live.codes_OL[self.objects(r)]
        trie, live_objects = self.live.all(self.threads.moments[r])
        return Targets(
            codes_NL=codes,
            priors=path_priors(trie, codes),
            weights_N=np.ones(len(codes)),
            branch_N=np.arange(len(codes)),
            live=[live_objects],
            view_N=np.zeros(len(codes), np.int64),
        )

    def pair_batch(self, windows: Sequence[Window]) -> PairBatch:
        """The pairs of these windows as tensors."""
        chosen = []
        rejected = []
        pair = []
        first_target = 0
        for r in np.concatenate([window.requests for window in windows]).tolist():
            rows = self._pairs_of[r]
            objects = self.objects(r)
            chosen.append(first_target + np.searchsorted(objects, self.pairs.chosen_P[rows]))
            rejected.append(first_target + np.searchsorted(objects, self.pairs.rejected_P[rows]))
            pair.append(np.arange(rows.start, rows.stop))
            first_target += len(objects)
        columns = (torch.from_numpy(np.concatenate(column)) for column in (chosen, rejected, pair))
        return PairBatch(self.batch(windows), *columns)


@denormals_as_zero()
def train(
    backbone: Backbone,
    examples: PreferenceExamples,
    schedule: TrainingSchedule,
    objective: PreferenceObjective,
    folder: Path,
    resume_key: str,
    validate: sft.Validate,
    validate_reference: sft.Validate,
) -> TrainingHistory:
    """Train ``backbone`` on the pairs, in place. ``folder`` and ``resume_key`` as in `sft.train`.

    ``validate_reference`` returns the recalls that the guard compares with: those of the fine-tuned model without
    prices.
    """
    batches = examples.epoch(schedule.seed, schedule.batch_tokens)
    plan = _plan(len(batches), schedule)
    reference_2PL = reference_log_p(backbone, examples, [batches[b] for b in np.unique(plan)])
    optimizer = sft.schedule_optimizer(backbone, schedule)
    reference_recalls = validate_reference()
    checkpoint = Checkpoint(folder, resume_key, backbone, optimizer)
    passed = replace(checkpoint, folder=folder / PASSED)
    history = checkpoint.resume()
    if history is None:
        history = TrainingHistory(valid=[(0, sft.mean_recalls(reference_recalls))])
        if objective.money:
            _validate_prices(validate, history, reference_recalls, objective)
        passed.save(history)
    backbone.train()
    saved_s = time.monotonic()
    with progress.track("tune-dpo: steps", len(plan), done=history.step) as advance:
        for step in range(history.step, len(plan)):
            rate = learning_rate(step, len(plan))
            pair_batch = examples.pair_batch(batches[plan[step]])
            loss, figures = step_loss(backbone, pair_batch, examples.pairs, reference_2PL, objective)
            optimizer_step(backbone, optimizer, loss, rate)
            history.step = step + 1
            history.tokens += pair_batch.batch.tokens
            history.loss.append((history.step, loss.item(), rate * schedule.learning_rate, history.tokens))
            history.pairs.append((history.step, figures))
            if history.step % sft.TRIM_EVERY == 0:
                trim_heap()
            advance(1, f"loss {loss.item():.3f}, margin {figures['margin']:.3f}, accuracy {figures['accuracy']:.2f}")
            if history.step % schedule.validate_every == 0 or history.step == len(plan):
                recalls = validate()
                history.valid.append((history.step, sft.mean_recalls(recalls)))
                comparison, has_fallen = compare_recalls(recalls, reference_recalls, objective.guard)
                ending = "; too low, so the run ends with the last weights that passed" * has_fallen
                progress.say(f"tune-dpo: step {history.step}: {comparison}{ending}")
                if has_fallen:
                    passed.resume()
                    break
                passed.save(history)
            if time.monotonic() - saved_s > schedule.checkpoint_s:
                history.seconds += time.monotonic() - saved_s
                saved_s = time.monotonic()
                checkpoint.save(history)
    history.seconds += time.monotonic() - saved_s
    return history


def _validate_prices(
    validate: Callable[[], sft.Recalls],
    history: TrainingHistory,
    reference_recalls: sft.Recalls,
    objective: PreferenceObjective,
) -> None:
    """Report the recall of the model with prices, before the first step."""
    recalls = validate()
    history.valid.append((0, sft.mean_recalls(recalls)))
    comparison, has_fallen = compare_recalls(recalls, reference_recalls, objective.guard)
    advice = "; below the guard: lower --money or --money-prior" * has_fallen
    progress.say(f"tune-dpo: prices alone: {comparison}{advice}")


def step_loss(
    backbone: Backbone, pair_batch: PairBatch, pairs: Pairs, reference_2PL: Tensor, objective: PreferenceObjective
) -> tuple[Tensor, dict[str, float]]:
    """(loss of one batch, its row of pairs.csv).

    "log_p" is the mean log-likelihood of whole IDs, in nats; "gained" is its change since the first step.
    """
    chosen_PL, rejected_PL, shared_PL = log_p_of_pairs(backbone, pair_batch)
    likelihood_2P = torch.stack([chosen_PL, rejected_PL]).sum(-1)
    reference = reference_2PL[:, pair_batch.pair_P].to(backbone.device)
    weights_P, margins_P, value_P = (
        torch.from_numpy(column)[pair_batch.pair_P].to(backbone.device)
        for column in (pairs.weight_P, pairs.margin_P, pairs.value_P)
    )
    if objective.stop_shared:
        chosen_PL = losses.without_shared(chosen_PL, shared_PL)
        rejected_PL = losses.without_shared(rejected_PL, shared_PL)
    if objective.loss == "dpo":
        preference, rewards_P = losses.dpo(
            chosen_PL,
            rejected_PL,
            reference[0],
            reference[1],
            beta=objective.beta,
            margins_N=margins_P,
            weights_N=weights_P,
        )
    else:
        preference, rewards_P = losses.simpo(
            chosen_PL, rejected_PL, beta=objective.beta, margins_N=margins_P, weights_N=weights_P
        )
    figures = {
        "preference": preference.item(),
        "margin": rewards_P.mean().item(),
        "accuracy": (rewards_P > 0).float().mean().item(),
    }
    gained_2P = likelihood_2P.detach() - reference.sum(-1)
    for row, name in enumerate(("chosen", "rejected")):
        figures |= {f"log_p {name}": likelihood_2P[row].mean().item(), f"gained {name}": gained_2P[row].mean().item()}
    likelihood = losses.sft(likelihood_2P[0], weights_P * value_P**objective.money)
    return preference + objective.sft_weight * likelihood, figures


def log_p_of_pairs(backbone: Backbone, pair_batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probabilities of chosen, of rejected, `losses.shared_levels`): float32, float32 and bool [P, L]."""
    batch = pair_batch.batch.to(backbone.device)
    log_p_NL = losses.by_level(sft.level_log_p(backbone, batch), batch.targets_NL)
    chosen_P = pair_batch.chosen_P.to(backbone.device)
    rejected_P = pair_batch.rejected_P.to(backbone.device)
    shared_PL = losses.shared_levels(batch.targets_NL[chosen_P], batch.targets_NL[rejected_P])
    return log_p_NL[chosen_P], log_p_NL[rejected_P], shared_PL


@torch.no_grad()
def reference_log_p(backbone: Backbone, examples: PreferenceExamples, batches: Sequence[Sequence[Window]]) -> Tensor:
    """Log-probabilities of chosen and rejected by level: float32 [2, all pairs, L], CPU; nan outside ``batches``."""
    log_p_2PL = torch.full((2, len(examples.pairs), len(examples.layout.sizes)), torch.nan)
    for windows in progress.bar(batches, len(batches), "tune-dpo: reference"):
        pair_batch = examples.pair_batch(windows)
        log_p_2PL[:, pair_batch.pair_P] = torch.stack(log_p_of_pairs(backbone, pair_batch)[:2]).float().cpu()
    return log_p_2PL


def _plan(batches: int, schedule: TrainingSchedule) -> NDArray[np.int64]:
    """The batch of each step: all batches, in another order each epoch."""
    orders = [np.random.default_rng((schedule.seed, epoch)).permutation(batches) for epoch in range(schedule.epochs)]
    plan = np.concatenate(orders)
    return plan[: schedule.max_steps or None]


def compare_recalls(recalls: sft.Recalls, reference: sft.Recalls, guard: float) -> tuple[str, bool]:
    """(comparison by view as text, whether a recall has fallen too far, see `PreferenceObjective`)."""
    before = sft.mean_recalls(reference)
    comparisons = []
    has_fallen = False
    for view, now in sft.mean_recalls(recalls).items():
        fall_R = reference[view] - recalls[view]
        error = float(fall_R.std() / len(fall_R) ** 0.5) if len(fall_R) else 0.0
        comparisons.append(f"{view} {now:.4f} (was {before[view]:.4f}, standard error of the fall {error:.4f})")
        has_fallen |= before[view] - now > max(guard * before[view], 2 * error)
    return ", ".join(comparisons), has_fallen
