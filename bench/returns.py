"""Claim: a target cost per click or a target return is kept in clicks, with predictions corrected on the own wins.

    python bench/returns.py FOLDER

FOLDER holds the iPinYou log of campaign 2997 (see bench/ipinyou.py). The bidder runs through the first half of the log
without a corrector and keeps the clicks and prices of its own wins. `Corrector` is fitted on these alone. The second
half is run twice, with predictions as they are and corrected. No number was tuned on the second half. A click is worth
the target cost of a click, or its training cost / the target return. With a budget, each 1,000 auctions have a quarter
of the training cost of 1,000 impressions. Figures of the second half:

- ``kept``: clicks x worth / money paid, 1 if the target is met; ``promised``: the same with predicted clicks;
- ``clicks``; ``paid``; ``realised``: clicks over predicted clicks of the wins.

Intervals are percentiles of 2,000 bootstrap samples of blocks of 1,000 auctions. Then the dual alone, in predicted
value over the whole log at worth 5,000: value as a share of the best single multiplier in hindsight, final return and
the lowest running slack in units of the mean price, without and with the strict start. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import ipinyou
import numpy as np

from leadre.auction.bidders.returns import STEP, Corrector, TargetReturn
from leadre.auction.simulate import Floats, bid_episodes

BLOCK = 1_000
TARGET_COSTS = (5_000.0, 8_000.0)
TARGET_RETURNS = (1.5, 3.0)
BUDGET_SHARE = 0.25
TRUTHFUL = 3.0  # times the root of the auctions


def share(top_N: Floats, bottom_N: Floats) -> list[float]:
    """The quotient of the sums, and the ends of its interval."""
    starts = np.arange(0, len(top_N), BLOCK)
    sums = np.array([np.add.reduceat(top_N, starts), np.add.reduceat(bottom_N, starts)])
    drawn = np.random.default_rng(1).integers(0, len(starts), (2_000, len(starts)))
    samples = sums[:, drawn].sum(2)
    low, high = np.percentile(samples[0] / samples[1], (2.5, 97.5))
    return [round(float(x), 3) for x in (sums[0].sum() / sums[1].sum(), low, high)]


def bidder_of(log: ipinyou.Log, worth: float, rate: float | None, auctions: int) -> TargetReturn:
    return TargetReturn(
        worth=worth,
        cap=log.history.cap,
        mean_price=log.history.cost / log.history.impressions,
        step=STEP / auctions**0.5,
        rate=rate,
    )


def halves(log: ipinyou.Log, worth: float, rate: float | None) -> dict[str, dict[str, object]]:
    half = len(log.pctr_N) // 2
    budget = np.inf if rate is None else rate * BLOCK
    bidder = bidder_of(log, worth, rate, half)
    first = slice(0, half)
    second = slice(half, None)
    _, won_N, taught = bid_episodes(bidder, log.pctr_N[first], log.price_N[first], budget, BLOCK)
    print(f"  the first half has {int(won_N.sum())} wins and {int((log.click_N[first] * won_N).sum())} clicks of them")
    corrector = Corrector.fit(log.pctr_N[first][won_N], log.price_N[first][won_N], log.click_N[first][won_N])
    rows: dict[str, dict[str, object]] = {}
    for name, rates in (("uncorrected", bidder.corrector), ("corrected", corrector)):
        pctr_N = log.pctr_N[second]
        price_N = log.price_N[second]
        start = taught if name == "uncorrected" else replace(bidder, corrector=rates)
        _, won_N, _ = bid_episodes(start, pctr_N, price_N, budget, BLOCK)
        click_N = log.click_N[second] * won_N
        expected_N = won_N * np.array([rates.rate(p, d) for p, d in zip(pctr_N, price_N, strict=True)])
        rows[name] = {
            "kept": share(worth * click_N, price_N * won_N),
            "promised": share(worth * expected_N, price_N * won_N)[0],
            "realised": share(click_N, expected_N),
            "clicks": int(click_N.sum()),
            "paid": int((price_N * won_N).sum()),
        }
    print(f"  {corrector}")
    return rows


def dual_alone(log: ipinyou.Log, truthful: int) -> dict[str, float]:
    auctions = len(log.pctr_N)
    bidder = replace(bidder_of(log, 5_000.0, None, auctions), truthful=truthful)
    _, won_N, _ = bid_episodes(bidder, log.pctr_N, log.price_N, np.inf, auctions)
    value_N = 5_000.0 * log.pctr_N
    order_N = np.argsort(-value_N / np.maximum(log.price_N, 1e-9))
    slack_N = np.cumsum((value_N - log.price_N)[order_N])
    best = value_N[order_N][slack_N >= 0].sum()
    running_N = np.cumsum((value_N - log.price_N) * won_N)
    return {
        "value": round(float(value_N[won_N].sum() / best), 4),
        "return": round(float(value_N[won_N].sum() / log.price_N[won_N].sum()), 4),
        "lowest_slack": round(float(running_N.min() / bidder.mean_price), 2),
    }


def main(folder: Path) -> None:
    log = ipinyou.read(folder)
    rate = BUDGET_SHARE * log.history.cost / log.history.impressions
    worths = {f"target cost {target:.0f}": target for target in TARGET_COSTS}
    worths |= {f"target return {target}": log.history.click_cost / target for target in TARGET_RETURNS}
    result: dict[str, object] = {}
    for name, worth in worths.items():
        for suffix, money in (("", None), (" with a budget", rate)):
            result[name + suffix] = halves(log, worth, money)
            print(f"{name + suffix}: {result[name + suffix]}")
    result["dual"] = dual_alone(log, 0)
    result["dual, strict"] = dual_alone(log, int(TRUTHFUL * len(log.pctr_N) ** 0.5))
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="folder of ipinyou_2997.theta.txt.gz and its info.json")
    main(parser.parse_args().folder)
