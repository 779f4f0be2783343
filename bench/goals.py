"""Claim: a campaign's target cost per click, or target return, is kept in clicks that really happen.

    python bench/goals.py FOLDER [--targets TARGET ...]

FOLDER holds the iPinYou log of campaign 2997 (see bench/ipinyou.py). Its 156,063 auctions, in order, are a day of
second-price auctions with a tick a minute, as the writer has it: `leadre.auction.goal` with the dual of a pacer where a
budget binds. Nothing is fitted before the day. Clicks are those of the log, or drawn for `SEEDS` seeds from the click
rate given prediction and price, as fitted on the whole log: .87 of the predicted clicks, and fewer where prices are
low. Delays of clicks are exponential with a mean of a minute, or of four hours. For a return, each click
has a value that is log-normal with a mean of the training cost of a click. The budget is half of the money that the
target alone spends, by an even plan. Figures, of each target:

- ``log``: cost per click over the target (for a return: target over return), with the log's clicks; its interval is of
  2,000 bootstrap samples of blocks of 1,000 auctions;
- ``drawn``: its mean over the seeds, with the interval of the mean; ``low`` and ``high`` of the seeds;
- ``value``: the same for bids of target x predicted rate; ``clicks`` of both, mean of seeds.

Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
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
TARGETS = {"5,000 a click": ("cpc", 5_000.0), "8,000 a click": ("cpc", 8_000.0), "return 1.5": ("roas", 1.5)}


@dataclass(frozen=True)
class Clicks:
    """Whether each auction would click, when (seconds after it), and the value of the click over the expected one."""

    is_click_N: Bools
    delay_s_N: Floats
    worth_N: Floats


def clicks_of(is_click_N: Bools, delay_s: float, kind: str, generator: np.random.Generator) -> Clicks:
    count = len(is_click_N)
    worth_N = np.exp(generator.normal(-0.5, 1.0, count)) if kind == "roas" else np.ones(count)
    return Clicks(is_click_N, generator.exponential(delay_s, count), worth_N)


def run_day(log: ipinyou.Log, kind: str, worth: float, clicks: Clicks, budget: float | None) -> Bools:
    """[N] the auctions won in a day."""
    count = len(log.pctr_N)
    bounds = np.linspace(0, count, MINUTES + 1).astype(int).tolist()
    won_N = np.zeros(count, bool)
    state = GoalState(kind)
    pacer = PACERS["mirror"]
    paced = start(pacer)
    plan = plans.even(())
    spent = 0.0
    arrivals: list[tuple[float, float, float]] = []
    for tick in range(MINUTES):
        now_us = (tick + 1) * 60 * US_PER_S
        rate = UNPACED if budget is None else rate_of(pacer, paced)
        factors = GoalFactors(goal.correction(state, now_us), state.return_dual, 1 / rate.multiplier - 1)
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
            arrivals.append((now_us + delay_s * US_PER_S, delay_s, float(clicks.worth_N[place])))
        for _, delay_s, weight in [click for click in arrivals if click[0] <= now_us]:
            state = goal.with_action(state, round(delay_s * US_PER_S), weight=weight)
        arrivals = [click for click in arrivals if click[0] > now_us]
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
    worth = target if kind == "cpc" else log.history.click_cost / target
    real = clicks_of(log.click_N > 0, delay_s, kind, np.random.default_rng(0))
    alone_N = run_day(log, kind, worth, real, None)
    budget = float(log.price_N[alone_N].sum()) / 2 if budgeted else None
    won_N = run_day(log, kind, worth, real, budget) if budgeted else alone_N
    row: dict[str, object] = {"log": [round(over_target(log, worth, real, won_N), 3)]}
    row["log"] += interval_of_log(log, worth, real, won_N)  # type: ignore[operator]
    truthful_N = np.minimum(worth * log.pctr_N, log.history.cap) >= log.price_N
    ratios: list[float] = []
    counts: list[int] = []
    plain: list[float] = []
    plain_counts: list[int] = []
    for seed in range(SEEDS):
        generator = np.random.default_rng(seed)
        drawn = clicks_of(generator.random(len(rate_N)) < rate_N, delay_s, kind, generator)
        won_N = run_day(log, kind, worth, drawn, budget)
        ratios.append(over_target(log, worth, drawn, won_N))
        counts.append(int(drawn.is_click_N[won_N].sum()))
        plain.append(over_target(log, worth, drawn, truthful_N))
        plain_counts.append(int(drawn.is_click_N[truthful_N].sum()))
    mean = float(np.mean(ratios))
    half = 1.96 * float(np.std(ratios, ddof=1)) / SEEDS**0.5
    row["drawn"] = [round(x, 3) for x in (mean, mean - half, mean + half)]
    row |= {"low": round(min(ratios), 3), "high": round(max(ratios), 3), "value": round(float(np.mean(plain)), 3)}
    return row | {"clicks": [round(float(np.mean(counts))), round(float(np.mean(plain_counts)))]}


def main(folder: Path, targets: list[str]) -> None:
    log = ipinyou.read(folder)
    corrector = Corrector.fit(log.pctr_N, log.price_N, log.click_N)
    rate_N = np.array([corrector.rate(p, d) for p, d in zip(log.pctr_N.tolist(), log.price_N.tolist(), strict=True)])
    result = {}
    for name in targets:
        kind, target = TARGETS[name]
        for suffix, delay_s, budgeted in (
            ("", 60.0, False),
            (", clicks late", 3_600.0, False),
            (", budget", 60.0, True),
        ):
            result[name + suffix] = figures(log, rate_N, kind, target, delay_s, budgeted=budgeted)
            print(f"{name + suffix}: {result[name + suffix]}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="folder of ipinyou_2997.theta.txt.gz and its info.json")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    arguments = parser.parse_args()
    main(arguments.folder, arguments.targets)
