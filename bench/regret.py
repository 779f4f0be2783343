"""Claim: regret against the optimum in hindsight grows like the root of the auctions, and slower than the value.

    python bench/regret.py FOLDER [--plots FOLDER]

FOLDER holds the iPinYou files ``ipinyou_2997.*`` (see bench/ipinyou.py) and ``ipinyou_campaigns.json``. Auctions are
drawn from the log, (pCTR, price) together, `SEEDS` seeds for each horizon T. Value is in predicted clicks.

- **budget**: T auctions with an eighth of the training cost of T impressions. Inputs: ``iid``; ``periodic``: prices
  rise and fall by half with a period of 500 auctions; ``corrupted``: iid, but in one stretch of 5 sqrt(T) auctions
  prices are five times as high and click rates a fifth; ``a tenth corrupted``: in T / 10 auctions. Regret is the value
  of the fractional knapsack of all T auctions, less the value won. Mirror descent has the step 1 / sqrt(T) of the
  theory. ``slope``: of log regret on log T, least squares over all seeds, with an interval over bootstrap samples of
  the seeds; ``share``: value over the optimum at the longest T.
- **return**: a target cost of 5,000 a click without a budget, iid. ``regret``: the best value in hindsight at the
  target less the value won; ``violation``: the most by which money paid was above the value won, at any time;
  without and with the strict start.
- **channels**: clicks as a share of the best split, mean of all periods up to a period (bench/channel_budgets.py).

Regret can be negative where the target is violated. ``--plots`` writes regret.png, return.png and channels.png. Ends
with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import channel_budgets
import ipinyou
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from leadre.auction.bidders.contract import Bidder, Floats
from leadre.auction.bidders.mirror import Mirror
from leadre.auction.bidders.registry import BIDDERS
from leadre.auction.bidders.returns import STEP, TargetReturn
from leadre.auction.duals import additive, entropic
from leadre.auction.simulate import bid_episodes
from leadre.evaluate import plots

HORIZONS = (1_000, 2_000, 4_000, 8_000, 16_000, 32_000)
SEEDS = 6
RATE = 1 / 8  # of the training cost of an impression
PERIOD = 500
WORTH = 5_000.0
TRUTHFUL = 3.0
PERIODS = 800
FIRST = 10  # period of the plot: before it, the learner tries budgets and spends beyond the total
Inputs = Callable[[Floats, Floats, np.random.Generator], tuple[Floats, Floats]]
COLORS = (plots.OURS, plots.ACCENT, "#009E73")


def iid(pctr_T: Floats, price_T: Floats, generator: np.random.Generator) -> tuple[Floats, Floats]:
    return pctr_T, price_T


def periodic(pctr_T: Floats, price_T: Floats, generator: np.random.Generator) -> tuple[Floats, Floats]:
    return pctr_T, price_T * (1 + 0.5 * np.sin(2 * np.pi * np.arange(len(price_T)) / PERIOD))


def corrupted(pctr_T: Floats, price_T: Floats, generator: np.random.Generator) -> tuple[Floats, Floats]:
    return _stretch(pctr_T, price_T, generator, round(5 * len(price_T) ** 0.5))


def tenth(pctr_T: Floats, price_T: Floats, generator: np.random.Generator) -> tuple[Floats, Floats]:
    return _stretch(pctr_T, price_T, generator, len(price_T) // 10)


def _stretch(pctr_T: Floats, price_T: Floats, generator: np.random.Generator, length: int) -> tuple[Floats, Floats]:
    start = int(generator.integers(0, len(price_T) - length))
    is_bad_T = np.zeros(len(price_T), bool)
    is_bad_T[start : start + length] = True
    return np.where(is_bad_T, pctr_T / 5, pctr_T), np.where(is_bad_T, price_T * 5, price_T)


INPUTS: dict[str, Inputs] = {"iid": iid, "periodic": periodic, "corrupted": corrupted, "a tenth corrupted": tenth}


def bidders(log: ipinyou.Log, budget: float, auctions: int) -> dict[str, Bidder]:
    step = auctions**-0.5
    rate = budget / auctions
    return {
        "mirror, entropic": Mirror(log.history, rate, entropic, step),
        "mirror, additive": Mirror(log.history, rate, additive, step),
        "resolve": BIDDERS["resolve"](log.history, int(budget), auctions),
    }


def knapsack(value_T: Floats, price_T: Floats, budget: float) -> float:
    """The most value for the budget if parts of an auction could be bought."""
    order_T = np.argsort(-value_T / np.maximum(price_T, 1e-9))
    return float(np.interp(budget, np.cumsum(price_T[order_T]), np.cumsum(value_T[order_T])))


def at_target(value_T: Floats, price_T: Floats) -> float:
    """The most value at prices of at most the value in sum, if parts of an auction could be bought."""
    order_T = np.argsort(-value_T / np.maximum(price_T, 1e-9))
    slack_T = np.cumsum((value_T - price_T)[order_T])
    sum_T = np.cumsum(value_T[order_T])
    last = int(slack_T.argmax())  # from here on the slack falls
    return float(np.interp(0.0, -slack_T[last:], sum_T[last:]))


def draw(log: ipinyou.Log, auctions: int, seed: int) -> tuple[Floats, Floats, np.random.Generator]:
    generator = np.random.default_rng([auctions, seed])
    place_T = generator.integers(0, len(log.pctr_N), auctions)
    return log.pctr_N[place_T], log.price_N[place_T], generator


def budget_regret(log: ipinyou.Log, inputs: Inputs) -> tuple[dict[str, Floats], dict[str, float]]:
    """(bidder -> [horizons, seeds] regret, bidder -> share of the optimum at the longest horizon)."""
    regret: dict[str, list[list[float]]] = {}
    shares: dict[str, list[float]] = {}
    for auctions in HORIZONS:
        budget = RATE * log.history.cost / log.history.impressions * auctions
        rows: dict[str, list[float]] = {}
        for seed in range(SEEDS):
            pctr_T, price_T = inputs(*draw(log, auctions, seed))
            best = knapsack(pctr_T, price_T, budget)
            for name, bidder in bidders(log, budget, auctions).items():
                _, won_T, _ = bid_episodes(bidder, pctr_T, price_T, budget, auctions)
                value = float(pctr_T[won_T].sum())
                rows.setdefault(name, []).append(best - value)
                if auctions == HORIZONS[-1]:
                    shares.setdefault(name, []).append(value / best)
        for name, row in rows.items():
            regret.setdefault(name, []).append(row)
    means = {name: float(np.mean(share)) for name, share in shares.items()}
    return {name: np.array(rows) for name, rows in regret.items()}, means


def return_regret(log: ipinyou.Log, truthful: float) -> tuple[Floats, Floats]:
    """([horizons, seeds] regret, [horizons, seeds] violation), in actions of the target."""
    regret = np.zeros((len(HORIZONS), SEEDS))
    violation = np.zeros_like(regret)
    for row, auctions in enumerate(HORIZONS):
        bidder = TargetReturn(
            worth=WORTH,
            cap=log.history.cap,
            mean_price=log.history.cost / log.history.impressions,
            step=STEP / auctions**0.5,
            truthful=int(truthful * auctions**0.5),
        )
        for seed in range(SEEDS):
            pctr_T, price_T, _ = draw(log, auctions, seed)
            _, won_T, _ = bid_episodes(replace(bidder), pctr_T, price_T, np.inf, auctions)
            won = float(pctr_T[won_T].sum())
            regret[row, seed] = at_target(WORTH * pctr_T, price_T) / WORTH - won
            deficit_T = np.cumsum((price_T / WORTH - pctr_T) * won_T)
            violation[row, seed] = max(0.0, float(deficit_T.max()))
    return regret, violation


def slope(regret_HS: Floats) -> list[float]:
    """The slope of log mean regret on log T, and the ends of its interval over bootstrap samples of the seeds."""
    log_T = np.log(HORIZONS)
    generator = np.random.default_rng(1)
    samples = [np.arange(SEEDS), *(generator.integers(0, SEEDS, SEEDS) for _ in range(1_000))]
    slopes = [np.polyfit(log_T, np.log(np.maximum(regret_HS[:, s].mean(1), 1e-3)), 1)[0] for s in samples]
    return [round(float(x), 2) for x in (slopes[0], *np.percentile(slopes[1:], (2.5, 97.5)))]


def line(ax: Axes, x: Floats, runs_XS: Floats, name: str, color: str) -> None:
    """The mean of runs with its interval."""
    mean = runs_XS.mean(1)
    half = 1.96 * runs_XS.std(1, ddof=1) / runs_XS.shape[1] ** 0.5
    ax.plot(x, mean, color=color, lw=2, label=name)
    ax.fill_between(x, mean - half, mean + half, color=color, alpha=0.18, lw=0)


def panels(count: int, across: str, up: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(3.0 * count + 0.6, 3.2), layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, count, squeeze=False)[0])
    for ax in axes:
        ax.grid(color=plots.FAINT, lw=0.8)
        ax.set_axisbelow(True)
        ax.set_xlabel(across)
    axes[0].set_ylabel(up)
    return figure, axes


def root_line(ax: Axes, at: float) -> None:
    horizon = np.array(HORIZONS, float)
    ax.plot(horizon, at * np.sqrt(horizon / horizon[0]), color=plots.RIVAL, lw=1.2, ls="--", label="root of T")


def plot_budget(regrets: dict[str, dict[str, Floats]]) -> Figure:
    figure, axes = panels(len(regrets), "auctions T", "regret (clicks)")
    for ax, (title, by_bidder) in zip(axes, regrets.items(), strict=True):
        for (name, regret_HS), color in zip(by_bidder.items(), COLORS, strict=True):
            line(ax, np.array(HORIZONS, float), regret_HS, name, color)
        root_line(ax, float(min(regret_HS[0].mean() for regret_HS in by_bidder.values())))
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_title(title, loc="left", fontsize=11, weight="bold")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def plot_return(runs: dict[str, tuple[Floats, Floats]]) -> Figure:
    figure, axes = panels(2, "auctions T", "clicks")
    for (name, both), color in zip(runs.items(), COLORS, strict=False):
        for ax, values_HS in zip(axes, both, strict=True):
            line(ax, np.array(HORIZONS, float), values_HS, name, color)
    for ax, title in zip(axes, ("regret", "largest violation of the target"), strict=True):
        ax.set_xscale("log")
        ax.set_title(title, loc="left", fontsize=11, weight="bold")
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def plot_channels(market: channel_budgets.Market, share_PS: Floats) -> Figure:
    figure, axes = panels(1, "periods", "share of the best split")
    ax = axes[0]
    shown_PS = share_PS[FIRST - 1 :]
    line(ax, np.arange(FIRST, FIRST + len(shown_PS), dtype=float), shown_PS, "learned", plots.OURS)
    for (name, clicks), style in zip(market.splits.items(), ("--", "-.", ":"), strict=True):
        ax.axhline(clicks / market.best, color=plots.RIVAL, lw=1.4, ls=style, label=name)
    ax.set_xscale("log")
    ax.set_ylim(0.7, 1.0)
    figure.set_size_inches(5.4, 3.4)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def main(folder: Path, images: Path | None) -> None:
    log = ipinyou.read(folder)
    result: dict[str, object] = {}
    regrets: dict[str, dict[str, Floats]] = {}
    for name, inputs in INPUTS.items():
        regrets[name], shares = budget_regret(log, inputs)
        slopes = {bidder: slope(regret_HS) for bidder, regret_HS in regrets[name].items()}
        result[name] = {bidder: {"slope": slopes[bidder], "share": round(share, 4)} for bidder, share in shares.items()}
        print(f"{name}: {result[name]}", flush=True)
    runs = {"no strict start": return_regret(log, 0.0), "strict start": return_regret(log, TRUTHFUL)}
    for name, (regret_HS, violation_HS) in runs.items():
        result[f"return, {name}"] = {
            "regret": [round(float(x), 2) for x in regret_HS.mean(1)],
            "violation": [round(float(x), 3) for x in violation_HS.mean(1)],
            "regret_slope": slope(regret_HS),
        }
        print(f"return, {name}: {result[f'return, {name}']}", flush=True)
    market = channel_budgets.read(folder / "ipinyou_campaigns.json")
    clicks_PS = np.array([market.learned(PERIODS, seed)[0] for seed in range(channel_budgets.SEEDS)]).T
    share_PS = np.cumsum(clicks_PS, axis=0) / np.arange(1, PERIODS + 1)[:, None] / market.best
    result["channels"] = {str(period): round(float(share_PS[period - 1].mean()), 3) for period in (10, 50, 200, 800)}
    result["channels"] |= {name: round(clicks / market.best, 3) for name, clicks in market.splits.items()}  # type: ignore[operator]
    if images is not None:
        with matplotlib.rc_context(plots.STYLE):
            plots.png(plot_budget(regrets), images / "regret.png")
            plots.png(plot_return(runs), images / "return.png")
            plots.png(plot_channels(market, share_PS), images / "channels.png")
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="folder of the iPinYou files")
    parser.add_argument("--plots", type=Path, help="folder for the images; default: none")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.plots)
