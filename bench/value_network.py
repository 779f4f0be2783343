"""Claim: RLB's value network buys no more than what replaces it: the mapping of states, and the fluid bid.

    python bench/value_network.py FOLDER

FOLDER holds the iPinYou log of campaign 2997 (see bench/ipinyou.py); the protocol is that of bench/bidding.py, with the
budgets 1/32 and 1/16. The network (`leadre.auction.bidders.network`) is fitted to the table of 1,000 auctions and the
larger budget, on no auction of the log. Two forms of its third input were compared by their error on the table.

- ``rlb``: the whole table; ``mapping``: its first 50 rows, with states beyond mapped to the last of them;
- ``network``: the first 50 rows, and the network beyond; ``fluid``: one bid for each money an auction.

Figures: root mean squared error of D over the rows from 100 on, each 50th, in units of the mean pCTR, of the network
and of the mapping: over all money of the table, and from 1 to 4 units of money an auction, where these budgets are
(``near``). For each bidder clicks and sum of pCTR of each budget, and the sum of pCTR won less RLB's with a paired
interval over episodes. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import bidding
import ipinyou
import numpy as np

from leadre.auction.bidders.contract import Bidder, Floats
from leadre.auction.bidders.network import EXACT, NetworkRLB, SlopeNetwork, fit
from leadre.auction.bidders.rl import RLB, Fluid, value_table
from leadre.auction.simulate import bid_episodes

AUCTIONS = bidding.AUCTIONS
SHARES = (1 / 32, 1 / 16)
STEPS = 4_000
NEAR = (1, 4)  # money an auction


def mapped_slope(value_NB: Floats, n: int) -> Floats:
    """D of a row by the mapping of states to row `EXACT`."""
    money_B = np.arange(value_NB.shape[1])
    mapped_B: Floats = np.interp(money_B * (EXACT / n), money_B, value_NB[EXACT]) * (n / EXACT)
    return np.diff(mapped_B)


def errors(value_NB: Floats, slope_of: Callable[[int], Floats]) -> dict[str, float]:
    """Root mean squared errors of D."""
    rows = range(2 * EXACT, AUCTIONS + 1, EXACT)
    error_NB = {n: slope_of(n) - np.diff(value_NB[n]) for n in rows}
    near = np.concatenate([error_B[NEAR[0] * n : NEAR[1] * n] for n, error_B in error_NB.items()])
    every = np.concatenate(list(error_NB.values()))
    return {"all": round(float(np.sqrt((every**2).mean())), 4), "near": round(float(np.sqrt((near**2).mean())), 4)}


def bidders(log: ipinyou.Log, value_NB: Floats, network: SlopeNetwork) -> dict[str, Bidder]:
    exact_NB = value_NB[: EXACT + 1]
    return {
        "rlb": RLB(log.history, value_NB),
        "mapping": RLB(log.history, exact_NB),
        "network": NetworkRLB(log.history, network, exact_NB),
        "fluid": Fluid(log.history),
    }


def main(folder: Path) -> None:
    log = ipinyou.read(folder)
    mean_cost = log.history.cost / log.history.impressions
    budgets = [int(mean_cost * share * AUCTIONS) for share in SHARES]
    value_NB = value_table(log.history.law_G, AUCTIONS, max(budgets))
    network = fit(value_NB, STEPS)
    money_B = np.arange(value_NB.shape[1] - 1.0)
    result: dict[str, object] = {
        "error_network": errors(value_NB, lambda n: network.slope(n, money_B)),
        "error_mapping": errors(value_NB, lambda n: mapped_slope(value_NB, n)),
        "mean_slope": errors(value_NB, lambda n: np.zeros(len(money_B)))["near"],
    }
    print(result, flush=True)
    won = {
        name: [bid_episodes(bidder, log.pctr_N, log.price_N, budget, AUCTIONS)[1] for budget in budgets]
        for name, bidder in bidders(log, value_NB, network).items()
    }
    table_N = sum(won_N.astype(float) for won_N in won["rlb"])
    for name, rows in won.items():
        result[name] = {
            "clicks": [int((log.click_N * won_N).sum()) for won_N in rows],
            "pctr": [round(float((log.pctr_N * won_N).sum()), 1) for won_N in rows],
            "less_rlb": bidding.interval(
                bidding.episodes(log.pctr_N * (sum(won_N.astype(float) for won_N in rows) - table_N))
            ),
        }
        print(f"{name}: {result[name]}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="folder of ipinyou_2997.theta.txt.gz and its info.json")
    main(parser.parse_args().folder)
