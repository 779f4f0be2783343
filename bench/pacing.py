"""Claim: budgets are spent to their end, by the plan, on the cheapest value.

    python bench/pacing.py FOLDER [--pacers PACER ...]

FOLDER holds the iPinYou log of campaign 2997 (see bench/ipinyou.py). Its 156,063 auctions, in order, are a day of
second-price auctions: by the hours of a day (``diurnal``), the same with ten times the traffic for 30 minutes
(``bursty``), and without any auction from 1 to 5 o'clock (``dead night``). The value of an impression is its click rate
times the training cost of a click. Budgets are shares of what bidding the value spends, and the money of so many wins.
The forecast is the mean of seven other days with their own noise and level; it has no burst. The plan is by traffic.
Each kind of traffic has `DRAWS` draws of its minutes, other ones than those by which the step of `mirror` was chosen.

Only budgets that are feasible under their plan count: in each hour bidding the value spends 1.05 times the plan's
money at least. Figures, the worst over all days:

- ``spent_min``, ``spent_max``: share of the budget spent; .95 to 1;
- ``off_plan_max``: largest difference of spend and plan in any minute, as a share of the budget; at most .05;
- ``pctr_ratio_10``, ``pctr_ratio_50``: sum of click rates won, over that without pacing; at least 3 and 1.2;
- ``jitter_ratio``: standard deviation of the multiplier in the hours 8 to 13, before the burst, if spend is seen five
  minutes late, over that without delay, at budgets of shares; at most 1.5.

Then, for a budget of 10 % of demand on a diurnal and a bursty day, the forecast comes from one or two days of which the
last has a burst in an hour, or a flood of 100 times its auctions. ``few_days_spent`` is the least share of the budget
spent, ``few_days_value`` the least expected clicks as a share of those with seven usual days.

Last, diurnal days of 1,500 and 4,000 of these auctions, one and three a minute, with budgets of the money of 60 to 210
wins: ``few_auctions_on_plan`` is the share of days within 5 % of the plan, ``few_auctions_off_plan`` the worst of them.

Ends with one line of JSON, for the default pacer alone unless others are named.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import ipinyou
import numpy as np

from leadre.auction.pacing import plan as plans
from leadre.auction.pacing.contract import Pacer
from leadre.auction.pacing.registry import PACERS
from leadre.auction.simulate import MINUTES, Day, Floats, pace_day

SHARES = (0.02, 0.1, 0.25, 0.5)
WINS = (37, 183, 725)
DELAY = 5  # minutes
DRAWS = 4
FEW_AUCTIONS = (1_500, 4_000)
FEW_WINS = (60, 120, 160, 210)
FEW_DRAWS = 12
STEADY = slice(8 * 60, 13 * 60)


def traffic(kind: str) -> Floats:
    """[minutes] expected auctions, relative."""
    minute = np.arange(MINUTES)
    weight = 1 + 0.8 * np.sin(2 * np.pi * (minute / MINUTES - 0.4))
    if kind == "bursty":
        weight[14 * 60 : 14 * 60 + 30] *= 10
    if kind == "dead night":
        weight[60:300] = 0
    return weight / weight.sum()


def day_of(value_N: Floats, price_N: Floats, kind: str, generator: np.random.Generator) -> Day:
    """The log as a day of a kind of traffic, with noise from minute to minute."""
    weight = traffic(kind) * generator.gamma(20, 1 / 20, MINUTES)
    minutes = np.sort(generator.choice(MINUTES, len(value_N), p=weight / weight.sum()))
    positions = (minutes + generator.random(len(value_N))) / MINUTES
    return Day(np.sort(positions), value_N, price_N)


def forecast_of(kind: str, auctions: int, generator: np.random.Generator) -> Floats:
    """[quarters] the forecast from seven other days."""
    usual = traffic("diurnal" if kind == "bursty" else kind).reshape(plans.QUARTERS, -1).sum(1)
    days = [generator.poisson(auctions * level * usual).tolist() for level in generator.uniform(0.8, 1.2, 7)]
    quarters = plans.forecast(days)
    assert quarters is not None
    return quarters


def figures(pacer: Pacer, value_N: Floats, price_N: Floats) -> dict[str, float]:
    rows = []
    jitter = []
    for number, kind in enumerate(DRAWS * ("diurnal", "bursty", "dead night")):
        generator = np.random.default_rng(100 + number)
        day = day_of(value_N, price_N, kind, generator)
        forecast_Q = forecast_of(kind, len(value_N), generator)
        plan = plans.by_traffic(forecast_Q)
        won_N = value_N >= price_N
        demand = price_N[won_N].sum()
        budgets = {f"{share:.0%}": int(share * demand) for share in SHARES}
        budgets |= {f"{wins} wins": int(wins * price_N[won_N].mean()) for wins in WINS}
        for name, budget in budgets.items():
            result = pace_day(day, plan, budget, pacer, day_auctions=forecast_Q.sum())
            unpaced = pace_day(day, plan, budget, None, day_auctions=None)
            late = pace_day(day, plan, budget, pacer, day_auctions=forecast_Q.sum(), delay=DELAY)
            ratio = result.value(value_N) / unpaced.value(value_N)
            if name.endswith("%"):
                jitter.append(float(late.multiplier_T[STEADY].std() / result.multiplier_T[STEADY].std()))
            spent = float(result.spent_T[-1] / budget)
            feasible = day.is_feasible(plan, budget)
            rows.append((kind, name, feasible, spent, result.off_plan(budget), ratio))
            print(
                f"{kind:>10} {name:>8} {'' if feasible else 'not feasible'} spent {spent:.4f} "
                f"late {late.spent_T[-1] / budget:.4f}, off plan {rows[-1][4]:.4f} late {late.off_plan(budget):.4f}, "
                f"clicks expected x {ratio:.2f}, multiplier {result.multiplier_T[STEADY].mean():.3f} "
                f"sd {result.multiplier_T[STEADY].std():.4f} late {late.multiplier_T[STEADY].std():.4f}"
            )
    kept = [row for row in rows if row[2]]
    return {
        "spent_min": min(row[3] for row in kept),
        "spent_max": max(row[3] for row in kept),
        "off_plan_max": max(row[4] for row in kept),
        "pctr_ratio_10": min(row[5] for row in kept if row[1] == "10%"),
        "pctr_ratio_50": min((row[5] for row in kept if row[1] == "50%"), default=float("nan")),
        "jitter_ratio": max(jitter),
        "budgets": len(rows),
        "feasible": len(kept),
    }


def few_days(pacer: Pacer, value_N: Floats, price_N: Floats) -> dict[str, float]:
    """The least figures over days whose forecast is from one or two days with a burst or a flood."""
    rows = []
    for number, kind in enumerate(("diurnal", "bursty")):
        generator = np.random.default_rng(300 + number)
        day = day_of(value_N, price_N, kind, generator)
        budget = int(0.1 * price_N[value_N >= price_N].sum())
        usual = forecast_of(kind, len(value_N), generator)
        reference = pace_day(day, plans.by_traffic(usual), budget, pacer, day_auctions=usual.sum()).value(value_N)
        for days, hour, factor in itertools.product((1, 2), (4, 14, 21), (5.5, 100)):
            seen = generator.poisson(usual, (days, len(usual))).astype(float)
            seen[-1, 4 * hour : 4 * hour + 4] *= factor
            forecast_Q = plans.forecast(seen.tolist())
            assert forecast_Q is not None
            result = pace_day(day, plans.by_traffic(forecast_Q), budget, pacer, day_auctions=forecast_Q.sum())
            rows.append((result.spent_T[-1] / budget, result.value(value_N) / reference))
            print(f"{kind:>10} {days} days, {factor} times at {hour}: spent {rows[-1][0]:.4f}, value {rows[-1][1]:.4f}")
    spent, value = np.min(rows, axis=0)
    return {"few_days_spent": float(spent), "few_days_value": float(value)}


def few_auctions(pacer: Pacer, value_N: Floats, price_N: Floats) -> dict[str, float]:
    """How far budgets of few auctions are off their plan; those that are not feasible do not count."""
    off_plan = []
    for auctions, wins, draw in itertools.product(FEW_AUCTIONS, FEW_WINS, range(FEW_DRAWS)):
        generator = np.random.default_rng(5_000 + draw)
        some_N = np.sort(generator.choice(len(value_N), auctions, replace=False))
        day = day_of(value_N[some_N], price_N[some_N], "diurnal", generator)
        forecast_Q = forecast_of("diurnal", auctions, generator)
        plan = plans.by_traffic(forecast_Q)
        budget = int(wins * day.price_N[day.value_N >= day.price_N].mean())
        if day.is_feasible(plan, budget):
            result = pace_day(day, plan, budget, pacer, day_auctions=forecast_Q.sum())
            off_plan.append(result.off_plan(budget))
    print(f"few auctions: {len(off_plan)} days, median {np.median(off_plan):.4f} off the plan")
    return {
        "few_auctions_on_plan": float(np.mean(np.array(off_plan) <= 0.05)),
        "few_auctions_off_plan": max(off_plan),
    }


def main(folder: Path, names: list[str]) -> None:
    log = ipinyou.read(folder)
    result = {}
    for name in names:
        arguments = (PACERS[name], log.value_N, log.price_N)
        rows = figures(*arguments) | few_days(*arguments) | few_auctions(*arguments)
        result[name] = {key: round(number, 4) for key, number in rows.items()}
        print(f"{name}: {result[name]}")
    print(json.dumps(result if len(names) > 1 else result[names[0]]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="folder of ipinyou_2997.theta.txt.gz and its info.json")
    parser.add_argument("--pacers", nargs="+", default=["mirror"], choices=list(PACERS))
    arguments = parser.parse_args()
    main(arguments.folder, arguments.pacers)
