"""The iPinYou log of campaign 2997 as arrays, for the benches that replay it.

The folder holds ``ipinyou_2997.theta.txt.gz`` (click, market price and predicted click rate of 156,063 auctions in the
order of their time) and its ``info.json`` (totals and price histogram of the training log). Money is in thousandths of
the log's CPM unit.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leadre.auction.bidders.contract import Floats, History


@dataclass(frozen=True)
class Log:
    click_N: Floats
    price_N: Floats
    pctr_N: Floats
    history: History  # of the training log

    @property
    def value_N(self) -> Floats:
        """Click rate times the training cost of a click."""
        return self.pctr_N * self.history.click_cost


def read(folder: Path) -> Log:
    info = json.loads((folder / "ipinyou_2997.info.json").read_text())
    with gzip.open(folder / "ipinyou_2997.theta.txt.gz", "rt") as lines:
        click_N, price_N, pctr_N = np.loadtxt(lines).T
    history = History(info["imp_train"], info["clk_train"], info["cost_train"], tuple(info["price_counter_train"]))
    return Log(click_N, price_N, pctr_N, history)
