"""The plan of a bounded run: what the stages cost on this machine, and a budget -> the options of each stage.

Pure functions of measurements; `leadre.train.probe` measures. Times are seconds, memory is MB of 2^20 bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from leadre.errors import InputError
from leadre.units import S_PER_HOUR, S_PER_MINUTE

Changes = Mapping[str, Mapping[str, object]]  # by stage: option -> value

BATCHES = (512, 1024, 2048, 3072, 4096)  # positions of a step, from the smallest that is tried
WANTED_STEPS = 100  # a larger batch is taken only if it leaves as many
MIN_STEPS = 8
MAX_BUDGET_S = 10_000 * S_PER_HOUR
FREE_SHARE = 0.6  # of the free memory that a run may take
MIN_MEMORY_MB = 1_000  # of the process with its libraries and the smallest language model
HEAP_GROWTH = 1.3  # batches of other lengths leave holes in the heap
# The counts network of the learnt prior scores each live object of each request.
MAX_LIVE_OF_LEARNT_PRIOR = 10_000
MIN_REQUESTS_OF_LEARNT_PRIOR = 200  # training requests; a third of them trains the network
LEARNT_PRIOR_S_PER_ROW = 3e-5  # a live object of a training visit: features and the epochs of three networks
LEARNT_PRIOR_FROM = 0.35  # of the training requests train it (lm/counts_fit.py)
LEARNT_PRIOR_VISITS = 7_000  # at most
LEARNT_PRIOR_LIVE = 512  # of a visit, at most
LEARNT_PRIOR_SHARE = 0.4  # of the budget
# Shares of the time that is left when the costs are known. Fine-tuning has the rest.
GENERATE_SHARE = 0.25
EVALUATE_SHARE = 0.2
VALIDATE_SHARE = 0.05
VISITS = (50, 20, 10, 5)  # of a user in the test: fewer visits of each user before fewer users
RIVALS = ("popularity", "own_frequency_decayed", "item_knn", "als", "counts_network")  # quick to fit
MIN_COLUMNS = 4  # collaborative ones of a semantic ID's vector
FEW_LABELS = 100  # training requests below which a figure is chance


class StepCost(NamedTuple):
    """Training steps of about ``batch_tokens`` positions, measured.

    ``seconds`` of a typical step, ``peak_mb`` of the process in the longest, ``epoch_steps`` in a pass.
    """

    batch_tokens: int
    seconds: float
    peak_mb: float
    epoch_steps: int


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Measured on this machine, for this log and this model.

    ``search_s``: the beam search of one request, in both views. ``visits_U``: test requests of each user,
    ``validation_U``: validation requests.
    """

    steps: tuple[StepCost, ...]
    search_s: float
    visits_U: tuple[int, ...]
    validation_U: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """Options that the config sets, so that the plan leaves them; None = the plan chooses. 0 as in `leadre tune`."""

    max_steps: int | None = None
    validate_users: int | None = None
    validate_visits: int | None = None
    validate_every: int | None = None
    users: int | None = None
    visits: int | None = None


class Visits(NamedTuple):
    """Requests to answer: ``users`` drawn users (0 = all), at most ``visits`` of each (0 = all), ``total`` requests."""

    users: int
    visits: int
    total: int


def seconds_of(budget: str) -> float | None:
    """The seconds of a budget: ``90s``, ``10m``, ``1.5h``; None for ``none``. Raises InputError."""
    if budget == "none":
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(s|m|h)", budget.strip())
    seconds = float(match[1]) * {"s": 1, "m": S_PER_MINUTE, "h": S_PER_HOUR}[match[2]] if match else 0.0
    if not 0 < seconds <= MAX_BUDGET_S:
        raise InputError(
            f"budget = {budget[:40]!r}: write a number with its unit: 90s, 10m, 2h, at most"
            f" {MAX_BUDGET_S // S_PER_HOUR:,}h; or none"
        )
    return seconds


def memory_limit_mb(most_mb: float, free_mb: float) -> float:
    """The memory that a run may take. Raises InputError on a machine with too little."""
    limit_mb = min(most_mb, FREE_SHARE * free_mb)
    if limit_mb < MIN_MEMORY_MB:
        raise InputError(
            f"memory: {limit_mb:,.0f} MB may be taken ({FREE_SHARE:.0%} of {free_mb:,.0f} MB that are free, at most "
            f"--memory-gb); the stages need {MIN_MEMORY_MB:,} MB; free some, or use another machine"
        )
    return limit_mb


def semid_options(objects: int, acted_on: int) -> dict[str, object]:
    """Options of `semid` for a catalogue of ``objects``, of which ``acted_on`` have a training event.

    Levels have codes enough to separate the objects, and few enough to be shared.
    """
    size = 2 ** math.ceil(math.log2(max(1.5 * math.sqrt(objects), 8)))
    levels = (size, size) if size <= 256 else (256, 256, 256)
    columns = min(64, acted_on // 4)
    has_columns = columns >= MIN_COLUMNS
    collaborative = {"collaborative": 0.7, "collaborative_dim": columns} if has_columns else {"collaborative": 0.0}
    return {"levels": levels, **collaborative}


# A learnt prior leaves little to learn: at the default rates it is noise (LOG.md).
BESIDE_LEARNT: Mapping[str, object] = {"learning_rate": 1e-4, "codes_learning_rate": 3e-4, "short_share": 0.5}


def has_learnt_prior(requests: int, live_ads: float, budget_s: float | None) -> bool:
    """Whether the learnt prior fits log and budget: enough training ``requests``, and not too many live ads in one."""
    rows = min(LEARNT_PRIOR_FROM * requests, LEARNT_PRIOR_VISITS) * min(live_ads, LEARNT_PRIOR_LIVE)
    is_affordable = budget_s is None or rows * LEARNT_PRIOR_S_PER_ROW <= LEARNT_PRIOR_SHARE * budget_s
    return is_affordable and requests >= MIN_REQUESTS_OF_LEARNT_PRIOR and live_ads <= MAX_LIVE_OF_LEARNT_PRIOR


def choose_visits(
    visits_U: Sequence[int], affordable: float, users: int | None = None, visits: int | None = None
) -> Visits:
    """Requests that cost at most ``affordable``, of as many users as possible: first fewer visits of each, then users.

    At least one request is chosen. ``users`` and ``visits`` are fixed unless None, also if they cost more.
    """
    drawn = min(users or len(visits_U), len(visits_U)) / len(visits_U)
    for cap in (0, *VISITS) if visits is None else (visits,):
        count = round(drawn * sum(min(of_user, cap or of_user) for of_user in visits_U))
        if count <= affordable:
            break
    if users is not None or count <= affordable:
        return Visits(users or 0, cap, count)
    mean = count / len(visits_U)
    users = max(1, min(int(affordable / mean), len(visits_U)))
    return Visits(users, cap, round(users * mean))


def choose_batch(
    steps: Sequence[StepCost], limit_mb: float, tune_s: float, wanted_steps: int = WANTED_STEPS
) -> StepCost:
    """The largest measured batch within the memory that leaves ``wanted_steps`` in ``tune_s``, or else the smallest.

    Raises InputError if the smallest exceeds the memory.
    """
    fitting = [cost for cost in steps if HEAP_GROWTH * cost.peak_mb <= limit_mb] or [
        cost for cost in steps[:1] if cost.peak_mb <= limit_mb
    ]
    if not fitting:
        raise InputError(
            f"memory: a step of {steps[0].batch_tokens} positions takes {steps[0].peak_mb:,.0f} MB of "
            f"{limit_mb:,.0f} MB that may be taken; free some, raise --memory-gb, or set fewer `layers` or a smaller "
            "`batch_tokens` in [tune]"
        )
    slow_enough = [cost for cost in fitting if cost.seconds * wanted_steps <= tune_s]
    return (slow_enough or fitting[:1])[-1]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Options that the costs decide, by stage, and the reasons for them as lines for the user."""

    changes: Changes
    reasons: tuple[str, ...]


def choose(costs: Costs, *, left_s: float | None, limit_mb: float, epochs: int, fixed: Fixed | None = None) -> Plan:
    """The plan for ``left_s`` seconds (None = no bound) and ``limit_mb`` of memory, with the options that are fixed.

    If the time is too short for `MIN_STEPS`, the plan is the least that gives a report. Raises InputError if too little
    memory is left.
    """
    fixed = fixed or Fixed()
    if left_s is None:
        batch = choose_batch(costs.steps, limit_mb, math.inf)
        lists = choose_visits(costs.visits_U, math.inf, fixed.users, fixed.visits)
        steps = min(fixed.max_steps or epochs * batch.epoch_steps, epochs * batch.epoch_steps)
        reasons = [
            "no budget: all steps and test requests that the config allows",
            *_reasons(costs, batch, steps, lists),
        ]
        return Plan(changes={"tune": {"batch_tokens": batch.batch_tokens}}, reasons=tuple(reasons))
    least_s = MIN_STEPS * costs.steps[0].seconds / (1 - GENERATE_SHARE - EVALUATE_SHARE - VALIDATE_SHARE)
    reasons = []
    if left_s < least_s:
        left = f"{max(left_s, 0):.0f} s of the budget are left"
        reasons.append(f"{left}; the least that gives a report takes about {least_s:.0f} s")
    left_s = max(left_s, least_s)
    lists = choose_visits(costs.visits_U, GENERATE_SHARE * left_s / costs.search_s, fixed.users, fixed.visits)
    most_checks = VALIDATE_SHARE * left_s / costs.search_s
    checks = choose_visits(costs.validation_U, most_checks, fixed.validate_users, fixed.validate_visits)
    check_s = checks.total * costs.search_s
    tune_s = (1 - EVALUATE_SHARE) * left_s - lists.total * costs.search_s - check_s
    # Besides the validation at the end, a fixed interval gives one every so many steps.
    check_s_of_step = check_s / fixed.validate_every if fixed.validate_every else 0.0
    with_checks = [cost._replace(seconds=cost.seconds + check_s_of_step) for cost in costs.steps]
    batch = choose_batch(with_checks, limit_mb, tune_s, fixed.max_steps or WANTED_STEPS)
    all_steps = epochs * batch.epoch_steps
    affordable_steps = max(int(tune_s / batch.seconds), MIN_STEPS)
    steps = min(affordable_steps if fixed.max_steps is None else fixed.max_steps or all_steps, all_steps)
    missing_s = steps * batch.seconds - tune_s
    if missing_s > 0 and not reasons:
        reasons.append(f"options that the config sets: they take {missing_s:.0f} s more than the budget leaves")
    reasons += [
        *_reasons(costs, batch, steps, lists),
        f"{batch.peak_mb:,.0f} MB in a step, of {limit_mb:,.0f} MB that may be taken",
    ]
    tune: dict[str, object] = {
        "batch_tokens": batch.batch_tokens,
        "max_steps": steps,
        "validate_every": fixed.validate_every or steps,
        "validate_users": checks.users or len(costs.validation_U),
        "validate_visits": checks.visits or max(VISITS),
    }
    generate: dict[str, object] = {"users": lists.users, "visits": lists.visits}
    changes: Changes = {"tune": tune, "generate": generate, "evaluate": {"channels": RIVALS}}
    return Plan(changes=changes, reasons=tuple(reasons))


def _reasons(costs: Costs, batch: StepCost, steps: int, lists: Visits) -> list[str]:
    return [
        f"{steps:,} steps of about {batch.batch_tokens:,} positions, {batch.seconds:.2f} s each: "
        f"{steps / batch.epoch_steps:.2g} passes over the training visits",
        f"lists for {lists.total:,} of {sum(costs.visits_U):,} test requests, {costs.search_s:.2f} s each",
    ]
