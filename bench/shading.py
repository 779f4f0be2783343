"""Claim: shading keeps most of the surplus of a first-price auction, with each of the three kinds of feedback.

    python bench/shading.py FOLDER

FOLDER holds the iPinYou log of campaign 2997 (see bench/ipinyou.py). Each market price is the highest competing
bid of a first-price auction; a bid that equals it wins and pays itself. The value of an impression is its click rate
times the training cost of a click. The first `WARM_UP` auctions bid at random in [.5, 1] of the value. Then each
`REFIT` auctions the law of the price is fitted to the last `WINDOW` ones, alone or in groups by value, from the
feedback of the bidder's own bids alone, with a share `EXPLORED` of random bids. Figures of each kind of feedback and
law, all auctions included:

- ``surplus``: value less price, as a share of truthful bidding in a second-price auction, the most that any bid gets;
- ``paid``: price of a won impression as a share of the price that bidding the value pays;
- ``won``: share of the auctions won.

Intervals are percentiles of 1,000 bootstrap samples of blocks of 1,000 auctions. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import ipinyou
import numpy as np

from leadre.auction.shading import (
    Feedback,
    Fit,
    Floats,
    explore,
    fit_by_value,
    fit_histogram,
    fit_log_normal,
    fit_logistic,
)

WARM_UP = 2_000
REFIT = 1_000
WINDOW = 20_000
EXPLORED = 0.02
BLOCK = 1_000

Report = Callable[[Floats, Floats], Feedback]  # (bids, prices) -> the feedback of one kind

KINDS: dict[str, Report] = {
    "price": Feedback.of_prices,
    "price of wins": lambda bid_N, price_N: Feedback.of_won_prices(bid_N, bid_N >= price_N, price_N),
    "win or loss": lambda bid_N, price_N: Feedback.of_wins(bid_N, bid_N >= price_N),
}
LAWS: dict[str, tuple[Fit, int]] = {  # law -> its fit and the number of groups of values
    "histogram by value": (fit_histogram, 8),
    "histogram": (fit_histogram, 1),
    "log-normal by value": (fit_log_normal, 8),
    "logistic": (fit_logistic, 1),
}


def bids_of(value_N: Floats, price_N: Floats, report: Report, fit: Fit, groups: int) -> Floats:
    """[N] the bids of a bidder that sees the feedback of its own bids alone."""
    generator = np.random.default_rng(0)
    draws_N, places_N = generator.random((2, len(value_N)))
    bid_N, _ = explore(value_N, value_N, 0.99, np.zeros_like(draws_N), places_N)
    for start in range(WARM_UP, len(value_N), REFIT):
        seen = slice(max(0, start - WINDOW), start)
        curve = fit_by_value(fit, report(bid_N[seen], price_N[seen]), value_N[seen], groups)
        part = slice(start, start + REFIT)
        bid_N[part], _ = explore(value_N[part], curve.shade(value_N[part]), EXPLORED, draws_N[part], places_N[part])
    return bid_N


def intervals(value_N: Floats, price_N: Floats, bid_N: Floats) -> dict[str, list[float]]:
    """Each figure with the ends of its interval."""
    won_N = (bid_N >= price_N) & (bid_N > 0)
    truthful_N = value_N >= price_N
    starts = np.arange(0, len(value_N), BLOCK)
    rows = (
        won_N * (value_N - bid_N),
        truthful_N * (value_N - price_N),
        won_N * bid_N,
        won_N.astype(float),
        truthful_N * value_N,
        truthful_N.astype(float),
        np.ones_like(value_N),
    )
    sums_RB = np.array([np.add.reduceat(row, starts) for row in rows])
    drawn = np.random.default_rng(1).integers(0, len(starts), (1_000, len(starts)))
    samples_RS = np.concatenate([sums_RB.sum(1)[:, None], sums_RB[:, drawn].sum(2)], axis=1)
    surplus, most, paid, won, full_price, full_won, auctions = samples_RS
    figures = {"surplus": surplus / most, "paid": (paid / won) / (full_price / full_won), "won": won / auctions}
    return {
        name: [round(float(x), 4) for x in (row[0], *np.percentile(row[1:], (2.5, 97.5)))]
        for name, row in figures.items()
    }


def main(folder: Path) -> None:
    log = ipinyou.read(folder)
    value_N = log.value_N
    price_N = log.price_N
    result = {}
    for kind, report in KINDS.items():
        for law, (fit, groups) in LAWS.items():
            if law == "logistic" and kind != "win or loss":
                continue  # it reads no price
            result[f"{kind}, {law}"] = intervals(value_N, price_N, bids_of(value_N, price_N, report, fit, groups))
            print(f"{kind}, {law}: {result[f'{kind}, {law}']}")
    hindsight = fit_histogram(Feedback.of_prices(value_N, price_N), np.unique(price_N[price_N > 0]))
    result["all prices known, histogram"] = intervals(value_N, price_N, hindsight.shade(value_N))
    factors = {share: intervals(value_N, price_N, share * value_N) for share in np.arange(0.1, 1.0, 0.05)}
    best = max(factors, key=lambda share: factors[share]["surplus"][0])
    result[f"best factor in hindsight, {best:.2f}"] = factors[best]
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="folder of ipinyou_2997.theta.txt.gz and its info.json")
    main(parser.parse_args().folder)
