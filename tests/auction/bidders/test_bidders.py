"""Each bidder passes the contract; tables, duals and samples against numbers by hand."""

import importlib.util
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leadre.auction.bidders.contract import History, Seen
from leadre.auction.bidders.mirror import Mirror
from leadre.auction.bidders.proportional import Linear
from leadre.auction.bidders.registry import BIDDERS
from leadre.auction.bidders.resolve import Resolve, Sample
from leadre.auction.bidders.returns import Corrector
from leadre.auction.bidders.rl import RLB, Fluid, value_table
from leadre.auction.duals import MAX_EXPONENT, additive, entropic
from leadre.auction.simulate import bid_episodes

_spec = importlib.util.spec_from_file_location("contract_bidder", Path(__file__).with_name("contract_bidder.py"))
suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(suite)

HISTORY = suite.HISTORY


class TestMcpc(suite.BidderContract):
    name = "mcpc"

    def test_bid_is_the_past_cost_of_a_click(self):
        bidder = BIDDERS["mcpc"](HISTORY, 0, 0)
        assert bidder.bid(1_000, 1, 0.001) == pytest.approx(0.001 * HISTORY.cost / 20)
        assert Linear(HISTORY, 12.0).bid(1_000, 1, HISTORY.mean_pctr / 2) == pytest.approx(6.0)


class TestSSMDP(suite.BidderContract):
    name = "ss_mdp"

    def test_bid_ignores_the_pctr(self):
        bidder = self.bidder()
        assert bidder.bid(100, 20, 0.0) == bidder.bid(100, 20, 1.0) > 0


class TestRLB(suite.BidderContract):
    name = "rlb"

    def test_table_by_hand(self):
        """Prices 1 and 2, each half of the time, up to three auctions and three units of money."""
        value_NB = value_table(np.array([0, 0.5, 0.5]), 3, 3)
        expected = [[0, 0, 0, 0], [0, 0.5, 1, 1], [0, 0.75, 1.25, 1.75], [0, 0.875, 1.5, 2.0]]
        assert value_NB == pytest.approx(np.array(expected))

    def test_table_is_the_best_of_all_policies(self):
        """Each policy with a constant pCTR is a bid for each state: all of them are tried on two auctions."""
        law_G = np.array([0.1, 0.3, 0.6])
        best = 0.0
        for first, *later in itertools.product(range(3), repeat=4):  # the second bid by the money left, 0 to 2
            gain = 0.0
            for price, p in enumerate(law_G):
                won = first >= price
                left = 2 - price * won
                gain += p * (won + law_G[: min(later[left], left) + 1].sum())
            best = max(best, gain)
        assert value_table(law_G, 2, 2)[2, 2] == pytest.approx(best)

    def test_bid_by_hand(self):
        history = History(100, 10, 150.0, (0, 1, 1))
        bidder = RLB(history, value_table(np.array([0, 0.5, 0.5]), 3, 3))
        # With two auctions and 2 money left: a price of 1 costs 1 - .5 of later gain, a price of 2 all of it, 1.
        assert [bidder.bid(2, 2, pctr) for pctr in (0.0, 0.04, 0.06, 0.09, 0.11)] == [0, 0, 1, 1, 2]
        assert bidder.bid(1, 2, 1.0) == 1

    def test_long_horizon_is_mapped_to_the_last_row(self):
        """As in a table that is long enough, within one unit of money."""
        long = RLB(HISTORY, value_table(HISTORY.law_G, 160, 4 * suite.BUDGET))
        short = self.bidder()
        for left in (60, 300, 800):
            assert short.bid(left, 160, 0.004) == pytest.approx(long.bid(left, 160, 0.004), abs=1)


class TestFluid(suite.MoneyContract):
    name = "fluid"

    def test_constant_bid_spends_the_budget(self):
        bid = Fluid(HISTORY).bid(1e9, int(1e9 / 4), HISTORY.mean_pctr)  # 4 an auction
        law_G = HISTORY.law_G
        spend = [sum(price * law_G[price] for price in range(top + 1)) for top in (int(bid), int(bid) + 1)]
        assert spend[0] <= 4 <= spend[1]

    def test_bid_is_the_limit_of_the_table(self):
        table = RLB(HISTORY, value_table(HISTORY.law_G, 200, 1_000))
        for left in (400, 600, 1_000):
            assert Fluid(HISTORY).bid(left, 200, HISTORY.mean_pctr) == pytest.approx(
                table.bid(left, 200, HISTORY.mean_pctr), abs=1.5
            )


class TestMirror(suite.BidderContract):
    name = "mirror"

    def test_steps_by_hand(self):
        bidder = Mirror(HISTORY, rate=5.0, step=0.1, dual=2.0)
        assert bidder.after(Seen(100, 10, 0.004, 6.0, 2.0)).dual == pytest.approx(2 * np.exp(-0.1 * (1 - 2 / 5)))
        assert bidder.after(Seen(100, 10, 0.004, 6.0, None)).dual == pytest.approx(2 * np.exp(-0.1))
        assert Mirror(HISTORY, 5.0, additive, 0.1, 2.0).after(Seen(100, 10, 0.004, 6.0, 2.0)).dual == pytest.approx(
            1.94
        )

    def test_bid_cut_by_the_money_left_teaches_nothing(self):
        bidder = Mirror(HISTORY, rate=5.0)
        assert bidder.after(Seen(3.0, 10, 0.004, 3.0, None)).dual == bidder.dual

    def test_steps_are_bounded(self):
        assert entropic(1.0, -1e9, 1.0, 50.0) == pytest.approx(np.exp(MAX_EXPONENT))
        assert entropic(0.0, -1.0, 1.0, 50.0) == 0
        assert additive(1.0, 9.0, 1.0, 50.0) == 0 and additive(49.0, -9.0, 1.0, 50.0) == 50


class TestMirrorAdditive(suite.BidderContract):
    name = "mirror_additive"


class TestResolve(suite.MoneyContract):
    name = "resolve"

    def test_dual_by_hand(self, monkeypatch):
        """Three auctions of equal weight: the best by pCTR per price first, until their mean cost is the rate."""
        monkeypatch.setattr("leadre.auction.bidders.resolve.WINDOW", 3)
        monkeypatch.setattr("leadre.auction.bidders.resolve.HALF_AGE", 1e12)
        sample = Sample(HISTORY, np.array([0.004, 0.006, 0.002]), np.array([4.0, 3.0, 4.0]))
        assert sample.dual(1.0) == pytest.approx(0.006 / 3)  # 3 of 3 money for one of three auctions
        assert sample.dual(1.1) == pytest.approx(0.004 / 4)
        assert sample.dual(99.0) == pytest.approx(0.002 / 4)

    def test_price_of_a_loss_is_drawn_above_the_bid(self):
        bidder = Resolve.of(HISTORY)
        for bid in (0.0, 7.9, float(suite.CAP)):
            price = bidder.after(Seen(100, 10, 0.004, bid, None)).recent_R[0][1]
            assert bid < price <= suite.CAP + 1

    def test_buys_more_than_the_law_of_the_history_when_prices_have_doubled(self):
        generator = np.random.default_rng(5)
        pctr_N = HISTORY.mean_pctr * np.exp(generator.normal(0, 0.5, 4_000))
        price_N = np.minimum(2 * np.resize(suite.PRICES, 4_000), suite.CAP).astype(float)
        gain = {}
        for name in ("fluid", "resolve"):
            _, won_N, _ = bid_episodes(BIDDERS[name](HISTORY, 400, 400), pctr_N, price_N, 400, 400)
            gain[name] = pctr_N[won_N].sum()
        assert gain["resolve"] > gain["fluid"]


class TestTargetReturn(suite.BidderContract):
    name = "target_return"


class TestCorrectedTargetReturn(suite.BidderContract):
    """The corrector reads pCTR on its own scale, so a doubled prediction needs another corrector."""

    name = "target_return"
    test_scale_of_the_pctr_is_that_of_the_history = None

    @classmethod
    def bidder(cls, history=HISTORY):
        return replace(super().bidder(history), corrector=Corrector(-0.6, 1.0, 0.3))


def test_every_bidder_has_its_contract():
    tested = {value.name for value in globals().values() if isinstance(value, type) and hasattr(value, "bidder")}
    assert tested == set(BIDDERS)
