"""Preference optimisation: one explicit loop, beside that of `sft`, over pairs of objects that were live in a request.

Chosen and rejected are branches of the same thread, scored level by level under the same mask, each object once however
many pairs it is in. The reference is the model as it comes: its log-probabilities of all pairs are computed before the
first step, and no second model is kept. Windows are cut once, so that they hold for the prompts of every epoch.

Pushing the rejected down may push the chosen down with it, and all else up (squeezed probability): the loss keeps an
SFT term, and a guard watches recall. The weights that come out are the last ones that passed it.

Letters: P pairs of a batch, L levels, N objects (targets) of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
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
from leadre.tune.preferences.pairs import Pairs
from leadre.tune.threads import ThreadBuilder, Window

PASSED = "passed"  # folder in the checkpoint: the last weights that passed the guard


@dataclass(frozen=True, kw_only=True)
class PreferenceObjective:
    """``loss`` ("dpo" or "simpo") with its ``beta``, the SFT term's weight, and the guard.

    ``stop_shared``: no gradient of the preference at the codes that a pair shares (`losses.without_shared`).
    ``money``: in the SFT term a conversion counts its worth to this power, as the pointer has it (`InventoryPrior`);
    the plain
    likelihood would take back what it says.
    ``guard``: the run stops where a recall has fallen by more than this share of the fine-tuned model's or, where so
    few requests cannot tell so little, by more than two standard errors of the fall.
    """

    loss: str
    beta: float
    stop_shared: bool
    sft_weight: float
    money: float
    guard: float


@dataclass(frozen=True)
class PairBatch:
    """A batch whose targets are the objects of its pairs; for each pair its rows there and its index in the `Pairs`."""

    batch: Batch
    chosen_P: Tensor
    rejected_P: Tensor
    pair_P: Tensor


class PreferenceExamples(Examples):
    """Makes batches from pairs: the objects of a request's pairs are its branches."""

    def __init__(self, threads: ThreadBuilder, live: InventoryPrior, layout: Layout, pairs: Pairs) -> None:
        super().__init__(threads, live, layout, new_weight=0.0)
        self.pairs = pairs
        self.requests_R, starts = np.unique(pairs.request_P, return_index=True)
        ends = np.append(starts[1:], len(pairs))
        self._rows = {int(r): slice(*rows) for r, *rows in zip(self.requests_R, starts, ends, strict=True)}

    def windows(self, seed: int) -> list[Window]:
        return self.threads.training(seed, self.requests_R)

    def answers(self, requests_R: NDArray[np.int64]) -> int:
        return sum(len(self.objects(int(r))) for r in requests_R)

    def objects(self, r: int) -> NDArray[np.int64]:
        """The objects of the pairs of request ``r``, ascending."""
        rows = self._rows[r]
        return np.unique(np.concatenate([self.pairs.chosen_P[rows], self.pairs.rejected_P[rows]]))

    def targets(self, r: int) -> Targets:
        """The objects of the request's pairs, among all that was live."""
        codes = self.live.codes_OL[self.objects(r)]
        trie, every = self.live.all(r)
        branches = np.arange(len(codes))
        ones, view = np.ones(len(codes)), np.zeros(len(codes), np.int64)
        return Targets(codes, path_priors(trie, codes), ones, branches, [every], view)

    def duels(self, windows: Sequence[Window]) -> PairBatch:
        """Tensors of these windows."""
        chosen, rejected, pair, targets = [], [], [], 0
        for r in np.concatenate([window.requests for window in windows]).tolist():
            rows, objects = self._rows[r], self.objects(r)
            chosen.append(targets + np.searchsorted(objects, self.pairs.chosen_P[rows]))
            rejected.append(targets + np.searchsorted(objects, self.pairs.rejected_P[rows]))
            pair.append(np.arange(rows.start, rows.stop))
            targets += len(objects)
        index = (torch.from_numpy(np.concatenate(column)) for column in (chosen, rejected, pair))
        return PairBatch(self.batch(windows), *index)


@sft.flushed_denormals()
def train(
    backbone: Backbone,
    contests: PreferenceExamples,
    schedule: sft.TrainingSchedule,
    objective: PreferenceObjective,
    checkpoint: Path,
    identity: str,
    validate: sft.Validate,
    before: sft.Validate,
) -> sft.TrainingHistory:
    """Teach ``backbone`` the pairs, in place. ``checkpoint`` and ``identity`` as in `sft.train`.

    ``before`` validates the model that the guard compares with: the one that was fine-tuned, without prices.
    """
    batches = contests.epoch(schedule.seed, schedule.batch_tokens)
    plan = _plan(len(batches), schedule)
    before_2PL = reference(backbone, contests, [batches[b] for b in np.unique(plan)])
    optimizer = sft.make_optimizer(backbone, schedule)
    recalls_before = before()
    history = sft.resume(checkpoint, identity, backbone, optimizer)
    if history is None:
        history = sft.TrainingHistory(valid=[(0, sft.means(recalls_before))])
        if objective.money:
            recalls = validate()
            history.valid.append((0, sft.means(recalls)))
            told, has_fallen = _compare(recalls, recalls_before, objective.guard)
            advice = "; the guard wants more: lower --money or --money-prior" * has_fallen
            progress.say(f"tune-dpo: prices alone: {told}{advice}")
        sft.save(checkpoint / PASSED, identity, backbone, optimizer, history)
    backbone.train()
    saved_s = started_s = time.monotonic()
    with progress.track("tune-dpo: steps", len(plan), done=history.step) as advance:
        for step in range(history.step, len(plan)):
            rate = sft.learning_rate(step, len(plan))
            duels = contests.duels(batches[plan[step]])
            loss, figures = step_loss(backbone, duels, contests.pairs, before_2PL, objective)
            sft.update(backbone, optimizer, loss, rate)
            history.step, history.tokens = step + 1, history.tokens + duels.batch.tokens
            history.loss.append((history.step, loss.item(), rate * schedule.learning_rate, history.tokens))
            history.pairs.append((history.step, figures))
            if history.step % sft.TRIM_STEPS == 0:
                sft.give_back_memory()
            advance(1, f"loss {loss.item():.3f}, margin {figures['margin']:.3f}, accuracy {figures['accuracy']:.2f}")
            if history.step % schedule.validate_every == 0 or history.step == len(plan):
                recalls = validate()
                history.valid.append((history.step, sft.means(recalls)))
                told, has_fallen = _compare(recalls, recalls_before, objective.guard)
                ending = "; too low, so the run ends with the last that passed" * has_fallen
                progress.say(f"tune-dpo: step {history.step}: {told}{ending}")
                if has_fallen:
                    sft.resume(checkpoint / PASSED, identity, backbone, optimizer)
                    break
                sft.save(checkpoint / PASSED, identity, backbone, optimizer, history)
            if time.monotonic() - saved_s > schedule.checkpoint_s:
                history.seconds += time.monotonic() - started_s
                started_s = saved_s = time.monotonic()
                sft.save(checkpoint, identity, backbone, optimizer, history)
    history.seconds += time.monotonic() - started_s
    return history


def step_loss(
    backbone: Backbone, duels: PairBatch, pairs: Pairs, before_2PL: Tensor, objective: PreferenceObjective
) -> tuple[Tensor, dict[str, float]]:
    """(loss of one batch, what pairs.csv says of it).

    Log-likelihoods are means over whole IDs, in nats; "gained" is how much they have moved since the first step.
    """
    chosen_PL, rejected_PL, shared_PL = log_p_of_pairs(backbone, duels)
    likelihood_2P = torch.stack([chosen_PL, rejected_PL]).sum(-1)
    before = before_2PL[:, duels.pair_P].to(backbone.device)
    weights_P, margins_P, worth_P = (
        torch.from_numpy(column)[duels.pair_P].to(backbone.device)
        for column in (pairs.weight_P, pairs.margin_P, pairs.worth_P)
    )
    apart = chosen_PL, rejected_PL
    if objective.stop_shared:
        apart = losses.without_shared(chosen_PL, shared_PL), losses.without_shared(rejected_PL, shared_PL)
    if objective.loss == "dpo":
        preference, rewards_P = losses.dpo(
            *apart, before[0], before[1], beta=objective.beta, margins_N=margins_P, weights_N=weights_P
        )
    else:
        preference, rewards_P = losses.simpo(*apart, beta=objective.beta, margins_N=margins_P, weights_N=weights_P)
    figures = {
        "preference": preference.item(),
        "margin": rewards_P.mean().item(),
        "accuracy": (rewards_P > 0).float().mean().item(),
    }
    gained_2P = likelihood_2P.detach() - before.sum(-1)
    for row, name in enumerate(("chosen", "rejected")):
        figures |= {f"log_p {name}": likelihood_2P[row].mean().item(), f"gained {name}": gained_2P[row].mean().item()}
    likelihood = losses.sft(likelihood_2P[0], weights_P * worth_P**objective.money)
    return preference + objective.sft_weight * likelihood, figures


def log_p_of_pairs(backbone: Backbone, duels: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
    """(chosen, rejected, `losses.shared_levels`): float32, float32 and bool [P, L]."""
    batch = duels.batch.to(backbone.device)
    log_p_NL = losses.by_level(sft.level_log_p(backbone, batch), batch.targets_NL)
    chosen_P, rejected_P = duels.chosen_P.to(backbone.device), duels.rejected_P.to(backbone.device)
    shared_PL = losses.shared_levels(batch.targets_NL[chosen_P], batch.targets_NL[rejected_P])
    return log_p_NL[chosen_P], log_p_NL[rejected_P], shared_PL


@torch.no_grad()
def reference(backbone: Backbone, contests: PreferenceExamples, batches: Sequence[Sequence[Window]]) -> Tensor:
    """Log-probabilities of chosen and of rejected by level, float32 [2, all pairs, L] on the CPU; nan in no batch."""
    found_2PL = torch.full((2, len(contests.pairs), len(contests.layout.sizes)), torch.nan)
    for windows in progress.bar(batches, len(batches), "tune-dpo: reference"):
        duels = contests.duels(windows)
        found_2PL[:, duels.pair_P] = torch.stack(log_p_of_pairs(backbone, duels)[:2]).float().cpu()
    return found_2PL


def _plan(batches: int, schedule: sft.TrainingSchedule) -> NDArray[np.int64]:
    """Which batch each step takes: all of them in another order each epoch."""
    orders = [np.random.default_rng((schedule.seed, epoch)).permutation(batches) for epoch in range(schedule.epochs)]
    plan = np.concatenate(orders)
    return plan[: schedule.max_steps or None]


def _compare(recalls: sft.Recalls, before: sft.Recalls, share: float) -> tuple[str, bool]:
    """(how recall stands in words, whether it has fallen too far in any view, see `PreferenceObjective`)."""
    was, told, has_fallen = sft.means(before), [], False
    for name, now in sft.means(recalls).items():
        fall_R = before[name] - recalls[name]
        error = float(fall_R.std() / len(fall_R) ** 0.5) if len(fall_R) else 0.0
        told.append(f"{name} {now:.4f} (was {was[name]:.4f}, standard error of the fall {error:.4f})")
        has_fallen |= was[name] - now > max(share * was[name], 2 * error)
    return ", ".join(told), has_fallen
