"""All bidders by name, as functions of a campaign's history and of the budget of an episode."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from leadre.auction.bidders.contract import Bidder, Floats, History
from leadre.auction.bidders.mirror import Mirror
from leadre.auction.bidders.proportional import mcpc
from leadre.auction.bidders.resolve import Resolve
from leadre.auction.bidders.returns import STEP, TargetReturn
from leadre.auction.bidders.rl import RLB, Fluid, value_table
from leadre.auction.duals import additive


def _table(history: History, budget: int, auctions: int) -> Floats:
    return value_table(history.law_G, auctions, budget)


BIDDERS: Mapping[str, Callable[[History, int, int], Bidder]] = {  # (history, budget, auctions) -> bidder
    "mcpc": lambda history, budget, auctions: mcpc(history),
    "ss_mdp": lambda history, budget, auctions: RLB(
        history, value_table(history.law_G, auctions, budget), is_mean=True
    ),
    "rlb": lambda history, budget, auctions: RLB(history, _table(history, budget, auctions)),
    "fluid": lambda history, budget, auctions: Fluid(history),
    "mirror": lambda history, budget, auctions: Mirror(history, budget / auctions),
    "mirror_additive": lambda history, budget, auctions: Mirror(history, budget / auctions, additive),
    "resolve": lambda history, budget, auctions: Resolve.of(history),
    "target_return": lambda history, budget, auctions: TargetReturn(
        worth=history.click_cost,
        cap=history.cap,
        mean_price=history.cost / history.impressions,
        step=STEP / auctions**0.5,
        rate=budget / auctions,
    ),
}
