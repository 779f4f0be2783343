"""Preference optimisation: one explicit loop, beside that of `sft`, over pairs of objects live in the same request.

Chosen and rejected objects are branches of the same thread, scored level by level under the same mask, and each object
once however many pairs it is in. The reference is the model before the first step: the log-probabilities of all pairs
are computed then, so no second model is kept. Windows are cut once and hold for the prompts of every epoch.

A preference loss can lower the likelihood of the chosen together with that of the rejected, in favour of all other
objects. So the loss keeps an SFT term, and a guard watches validation recall in every view. The run ends with the
weights of the highest validation GMV among those that pass the guard (`KeptWeights`).

Letters: P pairs of a batch, L levels, N objects (targets) of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre import progress
from leadre.data.moment import Moment
from leadre.lm.backbone import Backbone
from leadre.lm.layout import Layout
from leadre.lm.prior import NO_PRICE_EXPONENTS, InventoryPrior
from leadre.semid.trie import path_priors
from leadre.tune import losses, sft
from leadre.tune.answers import Outcomes, figures
from leadre.tune.batches import Batch, Examples, Targets
from leadre.tune.checkpoint import Checkpoint, TrainingHistory
from leadre.tune.optimizer import denormals_as_zero, learning_rate, optimizer_step, trim_heap
from leadre.tune.options import TrainingSchedule
from leadre.tune.preferences.options import PreferenceObjective
from leadre.tune.preferences.pairs import Pairs
from leadre.tune.threads import ThreadBuilder, Window

KEPT = "kept"  # folder in the checkpoint: the weights that the run ends with, as far as it has come


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

    def targets(self, r: int, moment: Moment) -> Targets:
        """The objects of the request's pairs, among all live objects."""
        codes = self.live.codes_OL[self.objects(r)]
        trie, live_objects = self.live.all(moment)
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


class Comparison(NamedTuple):
    """Validation beside the fine-tuned model's: as text; whether it passes the guard; whether its fall is proven."""

    text: str
    passes: bool
    is_proven: bool


def compare_outcomes(outcomes: Mapping[str, Outcomes], reference: Mapping[str, Outcomes], guard: float) -> Comparison:
    """Compare recall in every view, request by request (`PreferenceObjective` has the rule of ``guard``)."""
    texts = []
    passes = True
    is_proven = False
    for view, now in outcomes.items():
        before = reference[view]
        fall_V = before.recall_V - now.recall_V
        error = float(fall_V.std() / len(fall_V) ** 0.5) if len(fall_V) else 0.0
        texts.append(f"{view} {now.recall:.4f} (was {before.recall:.4f}, standard error of the fall {error:.4f})")
        excess = before.recall - now.recall - guard * before.recall
        passes &= excess <= 0
        is_proven |= excess > 0 and before.recall - now.recall > 2 * error
    return Comparison(", ".join(texts), passes, is_proven)


@dataclass(frozen=True)
class KeptWeights:
    """The weights that the run ends with: of those that pass the guard, the ones of the highest GMV in the view `all`.

    Of equal GMV the later ones are kept. If none pass, the weights before the first step are kept.
    """

    checkpoint: Checkpoint
    reference: Mapping[str, Outcomes]  # of the fine-tuned model without prices
    guard: float

    def offer(self, history: TrainingHistory, outcomes: Mapping[str, Outcomes]) -> Comparison:
        """Add the outcomes of the current weights to ``history``, and keep the weights if they are the best so far."""
        comparison = compare_outcomes(outcomes, self.reference, self.guard)
        gmv = outcomes["all"].gmv
        if comparison.passes and (history.kept is None or gmv >= history.kept[1]):
            history.kept = (history.step, gmv)
            self.checkpoint.save(history)
        return comparison

    def restore(self, history: TrainingHistory) -> None:
        """Put the kept weights back into the backbone."""
        self.checkpoint.resume()
        if history.kept is None:
            progress.say("tune-dpo: no weights pass the guard; keeps those before the first step")
        else:
            progress.say(f"tune-dpo: keeps the weights of step {history.kept[0]}, GMV@10 {history.kept[1]:.4f}")


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

    ``validate_reference`` returns the outcomes that the guard compares with: those of the fine-tuned model without
    prices.
    """
    batches = examples.epoch(schedule.seed, schedule.batch_tokens)
    plan = _plan(len(batches), schedule)
    reference_2PL = reference_log_p(backbone, examples, [batches[b] for b in np.unique(plan)])
    optimizer = sft.schedule_optimizer(backbone, schedule)
    reference = validate_reference()
    checkpoint = Checkpoint(folder, resume_key, backbone, optimizer)
    kept = KeptWeights(replace(checkpoint, folder=folder / KEPT), reference, objective.guard)
    history = checkpoint.resume() or _first_history(kept, examples, validate)
    backbone.train()
    saved_s = time.monotonic()
    with progress.track("tune-dpo: steps", len(plan), done=history.step) as advance:
        for step in range(history.step, len(plan)):
            rate = learning_rate(step, len(plan))
            pair_batch = examples.pair_batch(batches[plan[step]])
            loss, row = step_loss(backbone, pair_batch, examples.pairs, reference_2PL, objective)
            optimizer_step(backbone, optimizer, loss, rate)
            history.step = step + 1
            history.tokens += pair_batch.batch.tokens
            history.loss.append((history.step, loss.item(), rate * schedule.learning_rate, history.tokens))
            history.pairs.append((history.step, row))
            if history.step % sft.TRIM_EVERY == 0:
                trim_heap()
            advance(1, f"loss {loss.item():.3f}, margin {row['margin']:.3f}, accuracy {row['accuracy']:.2f}")
            is_last = history.step == len(plan)
            if (is_last or history.step % schedule.validate_every == 0) and _validate(kept, history, validate):
                break
            if time.monotonic() - saved_s > schedule.checkpoint_s:
                history.seconds += time.monotonic() - saved_s
                saved_s = time.monotonic()
                checkpoint.save(history)
    kept.restore(history)
    history.seconds += time.monotonic() - saved_s
    return history


def _first_history(kept: KeptWeights, examples: PreferenceExamples, validate: sft.Validate) -> TrainingHistory:
    """The history before the first step: the fine-tuned model without prices, and with them if it has any."""
    history = TrainingHistory(valid=[(0, figures(kept.reference))])
    kept.checkpoint.save(history)  # even if they fail the guard: there are no others to end with
    if examples.live.money == NO_PRICE_EXPONENTS:
        kept.offer(history, kept.reference)
        return history
    outcomes = validate()
    history.valid.append((0, figures(outcomes)))
    comparison = kept.offer(history, outcomes)
    advice = "" if comparison.passes else "; below the guard: lower --money or --money-prior"
    progress.say(f"tune-dpo: prices alone: {comparison.text}, GMV@10 {outcomes['all'].gmv:.4f}{advice}")
    return history


def _validate(kept: KeptWeights, history: TrainingHistory, validate: sft.Validate) -> bool:
    """Validate the current weights and keep them if they are the best. Whether training ends: the fall is proven."""
    outcomes = validate()
    history.valid.append((history.step, figures(outcomes)))
    comparison = kept.offer(history, outcomes)
    verdict = "" if comparison.passes else "; below the guard"
    if comparison.is_proven:
        verdict += " by more than chance, so training ends"
    progress.say(f"tune-dpo: step {history.step}: {comparison.text}, GMV@10 {outcomes['all'].gmv:.4f}{verdict}")
    return comparison.is_proven


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
    if objective.loss == "simpo":
        preference, rewards_P = losses.simpo(
            chosen_PL, rejected_PL, beta=objective.beta, margins_N=margins_P, weights_N=weights_P
        )
    else:
        preference, rewards_P = losses.dpo(
            chosen_PL,
            rejected_PL,
            reference[0],
            reference[1],
            beta=objective.beta,
            margins_N=margins_P,
            weights_N=weights_P,
        )
    row = {
        "preference": preference.item(),
        "margin": rewards_P.mean().item(),
        "accuracy": (rewards_P > 0).float().mean().item(),
    }
    gained_2P = likelihood_2P.detach() - reference.sum(-1)
    for side, name in enumerate(("chosen", "rejected")):
        row |= {f"log_p {name}": likelihood_2P[side].mean().item(), f"gained {name}": gained_2P[side].mean().item()}
    likelihood = losses.sft(likelihood_2P[0], weights_P * value_P**objective.money)
    has_preference = objective.loss != "none"  # without it, its figures are still reported
    return has_preference * preference + objective.sft_weight * likelihood, row


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
