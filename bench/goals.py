"""Claim: a campaign's target cost per click, or target return, is kept in clicks that really happen.

    python bench/goals.py FOLDER [--targets TARGET ...] [--late LAW ...]

FOLDER holds the iPinYou log of campaign 2997 (see bench/ipinyou.py). Its 156,063 auctions, in order, are a day of
second-price auctions with a tick a minute, as the writer has it: `leadre.auction.goal` with the dual of a pacer where a
budget binds. Nothing is fitted before the day. Clicks are those of the log, or drawn for `SEEDS` seeds from the click
rate given prediction and price, as fitted on the whole log: .87 of the predicted clicks, and fewer where prices are
low. Delays of clicks are exponential with a mean of a minute, or of an hour. For a return, each click
has a value that is log-normal with a mean of the training cost of a click. The budget is half of the money that the
target alone spends, by an even plan. For late actions (``--late``) the day is repeated for a week, each click of it is
drawn again, and is an action with one of the `LAWS` of delay, where half a day is expected. Figures, of each target:

- ``log``: cost per click over the target (for a return: target over return), with the log's clicks; its interval is of
  2,000 bootstrap samples of blocks of 1,000 auctions;
- ``drawn``: its mean over the seeds, with the interval of the mean; ``low`` and ``high`` of the seeds;
- ``value``: the same for bids of target x predicted rate; ``clicks`` of both, mean of seeds;
- of late actions ``day_1``, ``days_2_3`` and ``days_4_7`` instead of ``log``: the mean in a part of the week, by the
  actions of its auctions, whenever they happen.

Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import ipinyou
import numpy as np

from leadre.auction import goal
from leadre.auction.bidders.returns import Corrector
from leadre.auction.goal import GoalState
from leadre.auction.pacing import plan as plans
from leadre.auction.pacing.contract import UNPACED, GoalFactors, Tick, advance, rate_of, start
from leadre.auction.pacing.registry import PACERS
from leadre.auction.simulate import MINUTES, Bools, Floats
from leadre.units import US_PER_S

SEEDS = 20
UNIT = 1_000  # nanos of the log's unit of money, so that prices are whole
BLOCK = 1_000
WEEK = 7
LAWS: dict[str, Callable[[np.random.Generator, int], Floats]] = {  # seconds; the longest is a week
    "half a day": lambda generator, count: generator.exponential(12 * 3_600.0, count),
    "two days": lambda generator, count: generator.exponential(2 * 86_400.0, count) % (7 * 86_400.0),
    "half in an hour, half in days": lambda generator, count: np.where(
        generator.random(count) < 0.5,
        generator.exponential(1_200.0, count),
        generator.exponential(2 * 86_400.0, count) % (7 * 86_400.0),
    ),
}
DAYS = (("", 60.0, False), (", clicks late", 3_600.0, False), (", budget", 60.0, True))  # mean delay, with a budget
TARGETS = {"5,000 a click": ("cpc", 5_000.0), "8,000 a click": ("cpc", 8_000.0), "return 1.5": ("roas", 1.5)}


@dataclass(frozen=True)
class Clicks:
    """Whether each auction would click, when (seconds after it), and the value of the click over the expected one."""

    is_click_N: Bools
    delay_s_N: Floats
    worth_N: Floats


def clicks_of(is_click_N: Bools, delay_s_N: Floats, kind: str, generator: np.random.Generator) -> Clicks:
    count = len(is_click_N)
    worth_N = np.exp(generator.normal(-0.5, 1.0, count)) if kind == "roas" else np.ones(count)
    return Clicks(is_click_N, delay_s_N, worth_N)


def repeated(log: ipinyou.Log, days: int) -> ipinyou.Log:
    return replace(
        log, pctr_N=np.tile(log.pctr_N, days), price_N=np.tile(log.price_N, days), click_N=np.tile(log.click_N, days)
    )


def run_days(
    log: ipinyou.Log, kind: str, worth: float, clicks: Clicks, budget: float | None = None, days: int = 1
) -> Bools:
    """[N] the auctions won in the days of a log; a budget is that of one day."""
    count = len(log.pctr_N)
    bounds = np.linspace(0, count, days * MINUTES + 1).astype(int).tolist()
    won_N = np.zeros(count, bool)
    state = GoalState(kind)
    pacer = PACERS["mirror"]
    paced = start(pacer)
    plan = plans.even(())
    spent = 0.0
    arrivals: list[tuple[float, float, float]] = []  # a heap: time, delay, weight
    for tick in range(days * MINUTES):
        now_us = (tick + 1) * 60 * US_PER_S
        rate = UNPACED if budget is None else rate_of(pacer, paced)
        factors = GoalFactors(state.correction, state.return_dual, 1 / rate.multiplier - 1)
        part = slice(bounds[tick], bounds[tick + 1])
        bid_N = np.minimum(worth * goal.multiplier(factors) * log.pctr_N[part], log.history.cap) * rate.participate
        price_N = log.price_N[part]
        wins_N = bid_N >= price_N
        if budget is not None:
            wins_N &= spent + np.cumsum(price_N * wins_N) <= budget
        won_N[part] = wins_N
        cost = float(price_N[wins_N].sum())
        spent += cost
        state = goal.with_impression(state, float(log.pctr_N[part][wins_N].sum()), now_us)
        state = goal.with_charge(state, round(cost * UNIT))
        for place in np.flatnonzero(clicks.is_click_N[part] & wins_N) + part.start:
            delay_s = float(clicks.delay_s_N[place])
            heapq.heappush(arrivals, (now_us + delay_s * US_PER_S, delay_s, float(clicks.worth_N[place])))
        while arrivals and arrivals[0][0] <= now_us:
            _, delay_s, weight = heapq.heappop(arrivals)
            state = goal.with_action(state, round(delay_s * US_PER_S), min(weight, goal.MAX_WEIGHT))
        state = goal.advance(state, round(worth * UNIT), now_us)
        if budget is not None:
            at = Tick((tick + 1) / MINUTES, spent, bounds[tick + 1], float(count))
            paced = advance(pacer, paced, plan, round(budget), at)
    return won_N


def over_target(log: ipinyou.Log, worth: float, clicks: Clicks, won_N: Bools) -> float:
    """Money paid over the money that the clicks may cost."""
    return float(log.price_N[won_N].sum() / (worth * (clicks.worth_N * clicks.is_click_N)[won_N].sum()))


def interval_of_log(log: ipinyou.Log, worth: float, clicks: Clicks, won_N: Bools) -> list[float]:
    starts = np.arange(0, len(won_N), BLOCK)
    sums = np.array(
        [
            np.add.reduceat(log.price_N * won_N, starts),
            np.add.reduceat(worth * clicks.worth_N * clicks.is_click_N * won_N, starts),
        ]
    )
    drawn = np.random.default_rng(1).integers(0, len(starts), (2_000, len(starts)))
    samples = sums[:, drawn].sum(2)
    return [round(float(x), 3) for x in np.percentile(samples[0] / samples[1], (2.5, 97.5))]


def figures(log: ipinyou.Log, rate_N: Floats, kind: str, target: float, delay_s: float, *, budgeted: bool) -> object:
    worth = worth_of(log, kind, target)
    generator = np.random.default_rng(0)
    real = clicks_of(log.click_N > 0, generator.exponential(delay_s, len(rate_N)), kind, generator)
    alone_N = run_days(log, kind, worth, real)
    budget = float(log.price_N[alone_N].sum()) / 2 if budgeted else None
    won_N = run_days(log, kind, worth, real, budget) if budgeted else alone_N
    row: dict[str, object] = {"log": [round(over_target(log, worth, real, won_N), 3)]}
    row["log"] += interval_of_log(log, worth, real, won_N)  # type: ignore[operator]
    truthful_N = np.minimum(worth * log.pctr_N, log.history.cap) >= log.price_N
    ratios: list[float] = []
    counts: list[int] = []
    plain: list[float] = []
    plain_counts: list[int] = []
    for seed in range(SEEDS):
        generator = np.random.default_rng(seed)
        is_click_N = generator.random(len(rate_N)) < rate_N
        drawn = clicks_of(is_click_N, generator.exponential(delay_s, len(rate_N)), kind, generator)
        won_N = run_days(log, kind, worth, drawn, budget)
        ratios.append(over_target(log, worth, drawn, won_N))
        counts.append(int(drawn.is_click_N[won_N].sum()))
        plain.append(over_target(log, worth, drawn, truthful_N))
        plain_counts.append(int(drawn.is_click_N[truthful_N].sum()))
    row["drawn"] = mean_of_seeds(ratios)
    row |= {"low": round(min(ratios), 3), "high": round(max(ratios), 3), "value": round(float(np.mean(plain)), 3)}
    return row | {"clicks": [round(float(np.mean(counts))), round(float(np.mean(plain_counts)))]}


def late_figures(log: ipinyou.Log, rate_N: Floats, kind: str, target: float, law: str) -> object:
    worth = worth_of(log, kind, target)
    week = repeated(log, WEEK)
    is_truthful_N = np.minimum(worth * week.pctr_N, log.history.cap) >= week.price_N
    day_N = np.arange(len(week.pctr_N)) // len(log.pctr_N)
    parts = {"drawn": day_N >= 0, "day_1": day_N == 0, "days_2_3": (day_N > 0) & (day_N < 3), "days_4_7": day_N >= 3}
    ratios: dict[str, list[float]] = {name: [] for name in (*parts, "value")}
    counts: list[list[int]] = []
    for seed in range(SEEDS):
        generator = np.random.default_rng(seed)
        is_click_N = generator.random(len(day_N)) < np.tile(rate_N, WEEK)
        drawn = clicks_of(is_click_N, LAWS[law](generator, len(day_N)), kind, generator)
        won_N = run_days(week, "cpa" if kind == "cpc" else kind, worth, drawn, days=WEEK)
        for name, is_part_N in parts.items():
            ratios[name].append(over_target(week, worth, drawn, won_N & is_part_N))
        ratios["value"].append(over_target(week, worth, drawn, is_truthful_N))
        counts.append([int(drawn.is_click_N[won_N].sum()), int(drawn.is_click_N[is_truthful_N].sum())])
    row: dict[str, object] = {name: mean_of_seeds(ratios[name]) for name in ratios}
    row |= {"low": round(min(ratios["drawn"]), 3), "high": round(max(ratios["drawn"]), 3)}
    return row | {"clicks": [round(float(x)) for x in np.mean(counts, 0)]}


def worth_of(log: ipinyou.Log, kind: str, target: float) -> float:
    return target if kind == "cpc" else log.history.click_cost / target


def mean_of_seeds(ratios: list[float]) -> list[float]:
    mean = float(np.mean(ratios))
    half = 1.96 * float(np.std(ratios, ddof=1)) / SEEDS**0.5
    return [round(x, 3) for x in (mean, mean - half, mean + half)]


def main(folder: Path, targets: list[str], late: list[str]) -> None:
    log = ipinyou.read(folder)
    corrector = Corrector.fit(log.pctr_N, log.price_N, log.click_N)
    rate_N = np.array([corrector.rate(p, d) for p, d in zip(log.pctr_N.tolist(), log.price_N.tolist(), strict=True)])
    result = {}
    for name in targets:
        kind, target = TARGETS[name]
        for suffix, delay_s, budgeted in () if late else DAYS:
            result[name + suffix] = figures(log, rate_N, kind, target, delay_s, budgeted=budgeted)
            print(f"{name + suffix}: {result[name + suffix]}", flush=True)
    for name in targets:
        for law in late:
            result[f"{name}, {law}"] = late_figures(log, rate_N, *TARGETS[name], law)
            print(f"{name}, {law}: {result[f'{name}, {law}']}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="folder of ipinyou_2997.theta.txt.gz and its info.json")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--late", nargs="+", default=[], choices=list(LAWS), help="weeks with late actions instead")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.targets, arguments.late)
