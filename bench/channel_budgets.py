"""Claim: learned budgets of black-box channels win more of the optimum than fixed splits.

    python bench/channel_budgets.py FILE

FILE is ``ipinyou_campaigns.json``: totals and price histograms of nine iPinYou campaigns. Each is a channel with a
hundredth of its training impressions a period, and spends a period's budget by one bid, the fluid limit of RLB. Its
clicks are Poisson. The total is a quarter of the training cost of these impressions; money that a channel cannot spend
is lost. Figures are expected clicks as a share of the best split in hindsight (steps of a thousandth of the
total), of the learner as means of `SEEDS` seeds with the standard error, with the share of the money that it spent.
``proportional`` is to past cost; ``greedy`` gives all to the channel with the most past clicks for its money, then to
the next. The first dual is half of the clicks for money of the equal split. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leadre.auction.bidders.contract import History
from leadre.auction.channels import Channels, Floats

SEEDS = 20
ARMS = 12
PERIODS = (50, 200, 800)
STEPS = 1_000


def curve(history: History, auctions: float, budget_K: Floats) -> tuple[Floats, Floats]:
    """(clicks, money spent) of a period with each budget."""
    spend_G = np.cumsum(history.law_G * np.arange(len(history.law_G))) * auctions
    clicks_G = history.win_G * auctions * history.mean_pctr
    return np.interp(budget_K, spend_G, clicks_G), np.minimum(budget_K, spend_G[-1])


@dataclass(frozen=True)
class Market:
    """Expected clicks of a period: ``best`` split in hindsight, fixed ``splits``, and those of each arm."""

    best: float
    splits: dict[str, float]
    total: float
    clicks_MK: Floats
    spent_MK: Floats
    start: Channels

    def learned(self, periods: int, seed: int) -> tuple[Floats, Floats]:
        """([periods] expected clicks, [periods] money) of the learner."""
        generator = np.random.default_rng(seed)
        rows_M = np.arange(len(self.clicks_MK))
        channels = self.start
        sums = []
        for _ in range(periods):
            arm_M = channels.choose()
            expected_M = self.clicks_MK[rows_M, arm_M]
            spent_M = self.spent_MK[rows_M, arm_M]
            channels = channels.after(arm_M, spent_M, generator.poisson(expected_M).astype(float))
            sums.append((expected_M.sum(), spent_M.sum()))
        clicks_P, money_P = np.array(sums, float).T
        return clicks_P, money_P


def read(file: Path) -> Market:
    histories = [
        History(row["imp_train"], row["clk_train"], row["cost_train"], tuple(row["price_counter_train"]))
        for row in json.loads(file.read_text()).values()
    ]
    auctions_M = np.array([history.impressions / 100 for history in histories])
    cost_M = np.array([history.cost / 100 for history in histories])
    total = 0.25 * float(cost_M.sum())

    def expected(budget_MK: Floats) -> tuple[Floats, Floats]:
        rows = [curve(*row) for row in zip(histories, auctions_M, budget_MK, strict=True)]
        return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])

    fine_MK = np.tile(np.linspace(0, total, STEPS + 1), (len(histories), 1))
    gain_MK = np.diff(expected(fine_MK)[0])  # falls with the budget, as prices are bought from the lowest up
    splits = {"equal": np.full(len(histories), total / len(histories)), "proportional": total * cost_M / cost_M.sum()}
    splits["greedy"] = np.zeros(len(histories))
    left = total
    for channel in np.argsort([-history.clicks / history.cost for history in histories]).tolist():
        splits["greedy"][channel] = expected(np.full((len(histories), 1), left))[1][channel, 0]
        left -= splits["greedy"][channel]
    clicks = {name: float(expected(budget_M[:, None])[0].sum()) for name, budget_M in splits.items()}
    budget_K = total * np.geomspace(1 / 64, 1, ARMS)
    clicks_MK, spent_MK = expected(np.tile(budget_K, (len(histories), 1)))
    return Market(
        best=float(np.sort(gain_MK.ravel())[-STEPS:].sum()),
        splits=clicks,
        total=total,
        clicks_MK=clicks_MK,
        spent_MK=spent_MK,
        start=Channels.of(len(histories), budget_K, total, clicks["equal"] / total / 2),
    )


def main(file: Path) -> None:
    market = read(file)
    result: dict[str, object] = {name: round(clicks / market.best, 3) for name, clicks in market.splits.items()}
    for periods in PERIODS:
        runs = [market.learned(periods, seed) for seed in range(SEEDS)]
        share = np.array([clicks_P.mean() for clicks_P, _ in runs]) / market.best
        money = np.mean([money_P.mean() for _, money_P in runs])
        result[f"learned, {periods} periods"] = {
            "share": round(float(share.mean()), 3),
            "error": round(float(share.std(ddof=1) / SEEDS**0.5), 4),
            "spent": round(float(money / market.total), 3),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("file", type=Path, help="ipinyou_campaigns.json")
    main(parser.parse_args().file)
