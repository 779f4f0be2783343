"""Measure the costs of fine-tuning and generation: a few training steps and beam searches with the real parts."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from leadre import progress
from leadre.artifact import Artifact
from leadre.data import histories
from leadre.lm.decode import BeamSearcher
from leadre.train.plan import HEAP_GROWTH, WANTED_STEPS, Costs, StepCost
from leadre.tune import run as tune
from leadre.tune import sft
from leadre.tune.answers import VIEWS, TunedSearcher
from leadre.tune.batches import Examples
from leadre.tune.optimizer import denormals_as_zero, optimizer_step, trim_heap

if TYPE_CHECKING:
    import torch

    from leadre.lm.backbone import Backbone
    from leadre.train.machine import Peak
    from leadre.tune.threads import Window

WINDOWS = 256  # of the training visits, drawn by the seed
SEARCHES = 24  # requests, each of another user


def measure(
    settings: tune.Config,
    data: Artifact,
    codebook: Artifact,
    *,
    batches: Sequence[int],
    beam: int,
    peak: Peak,
    limit_mb: float,
    until_s: float,
) -> Costs:
    """The costs of ``settings``, with steps of ``batches`` positions (ascending) up to one near a limit.

    The limits are ``limit_mb`` of memory and ``until_s``, the end of the budget on the monotonic clock. Fits the
    learnt prior of ``settings``, if it has one, where `leadre tune` finds it.
    """
    logs = histories.load(data)
    backbone, prompter, live, _ = tune.prepare(settings, logs, data, codebook)
    threads = tune.thread_builder(settings, prompter, logs, live.from_us)
    examples = Examples(threads, live, backbone.layout, settings.new_weight)
    test = logs.requests_of(histories.TEST)
    some = histories.at_most(logs, test, 1, settings.seed)  # of a user: neighbours share most of a thread
    some = np.sort(np.random.default_rng(settings.seed).permutation(some)[:SEARCHES])
    progress.say("train: measuring the time of searches and steps, and their memory")
    trim_heap()
    steps = _steps(settings, backbone, examples, batches, peak, limit_mb, until_s - time.monotonic())
    searcher = TunedSearcher(BeamSearcher(backbone.eval()), threads, live)
    started_s = time.monotonic()
    count = sum(1 for _ in searcher.answer(threads.serving(some), VIEWS, beam)) / len(VIEWS)
    return Costs(
        steps=tuple(steps),
        search_s=(time.monotonic() - started_s) / max(count, 1),
        visits_U=_visits(logs, test),
        validation_U=_visits(logs, logs.requests_of(histories.VALID)),
    )


def _visits(logs: histories.Logs, requests: histories.I64) -> tuple[int, ...]:
    """The number of requests of each user that has one."""
    _, counts = np.unique(logs.request_user_R[requests], return_counts=True)
    return tuple(counts.tolist())


@denormals_as_zero()
def _steps(
    settings: tune.Config,
    backbone: Backbone,
    examples: Examples,
    batches: Sequence[int],
    peak: Peak,
    limit_mb: float,
    left_s: float,
) -> list[StepCost]:
    """Costs of steps of growing batches."""
    windows = examples.windows(settings.seed)
    rng = np.random.default_rng(settings.seed)
    some = [windows[row] for row in rng.permutation(len(windows))[:WINDOWS]]
    optimizer = sft.schedule_optimizer(backbone, settings.schedule)
    backbone.train()
    base_mb = peak.sample()
    costs: list[StepCost] = []
    longest = max(map(examples.length, some))  # one window is the least that a batch holds
    for tokens, following in zip(batches, [*batches[1:], math.inf], strict=True):
        packed = sorted(examples.packed(some, tokens), key=lambda batch: sum(map(examples.length, batch)))
        peak.restart()
        _step(backbone, optimizer, examples, packed[-1])  # the longest, for its memory
        seconds = _step(backbone, optimizer, examples, packed[len(packed) // 2])
        costs.append(StepCost(tokens, seconds, peak.mb, math.ceil(len(packed) * len(windows) / len(some))))
        trim_heap()
        growth = max(following, longest) / max(tokens, longest)
        next_mb = base_mb + growth**2 * (peak.mb - base_mb)  # attention grows with the square of a batch
        if HEAP_GROWTH * next_mb > limit_mb or WANTED_STEPS * seconds > left_s:
            break
    return costs


def _step(backbone: Backbone, optimizer: torch.optim.AdamW, examples: Examples, windows: Sequence[Window]) -> float:
    """The seconds of one training step."""
    started_s = time.monotonic()
    loss = sft.sft_loss(backbone, examples.batch(windows).to(backbone.device))
    optimizer_step(backbone, optimizer, loss, rate=1.0)
    return time.monotonic() - started_s
