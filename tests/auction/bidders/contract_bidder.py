"""Contract of the bidders: a class of tests; a subclass gives it one bidder. The market is drawn, small and seeded."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leadre.auction.bidders.contract import History, Seen
from leadre.auction.bidders.registry import BIDDERS
from leadre.auction.simulate import bid_episodes

CAP = 60
AUCTIONS = 40
BUDGET = 200
_generator = np.random.default_rng(3)
PRICES = np.minimum(_generator.gamma(2.0, 8.0, 5_000).astype(int), CAP)
HISTORY = History(5_000, 20, float(PRICES.sum()), tuple(np.bincount(PRICES, minlength=CAP + 1).tolist()))
PCTR_N = HISTORY.mean_pctr * np.exp(_generator.normal(0, 0.5, 400))
PRICE_N = np.minimum(_generator.gamma(2.0, 8.0, 400).astype(int), CAP).astype(float)


def examples(number):
    """Settings of a test that several classes inherit."""
    return settings(deadline=None, max_examples=number, suppress_health_check=[HealthCheck.differing_executors])


class BidderContract:
    name = ""

    @classmethod
    def bidder(cls, history=HISTORY):
        return BIDDERS[cls.name](history, BUDGET, AUCTIONS)

    @pytest.fixture(scope="class")
    @classmethod
    def taught(cls):
        """The bidder after ten episodes, and one without a past."""
        return [bid_episodes(cls.bidder(), PCTR_N, PRICE_N, BUDGET, AUCTIONS)[2], cls.bidder()]

    @examples(100)
    @given(left=st.integers(0, 3 * BUDGET), n=st.integers(1, 3 * AUCTIONS), ratio=st.floats(0, 1_000))
    def test_bid_is_at_most_the_money_left_and_the_cap(self, taught, left, n, ratio):
        for bidder in taught:
            assert 0 <= bidder.bid(left, n, ratio * HISTORY.mean_pctr) <= min(left, CAP)

    @examples(20)
    @given(prices=st.lists(st.integers(0, 2 * CAP), min_size=1, max_size=2 * AUCTIONS))
    def test_budget_is_kept_for_any_prices(self, taught, prices):
        price_N = np.array(prices, float)
        for bidder in taught:
            _, won_N, _ = bid_episodes(bidder, np.resize(PCTR_N, len(prices)), price_N, BUDGET, AUCTIONS)
            assert all((price_N * won_N)[start : start + AUCTIONS].sum() <= BUDGET for start in (0, AUCTIONS))

    @examples(50)
    @given(left=st.integers(0, BUDGET), n=st.integers(1, AUCTIONS), pctr=st.tuples(*2 * [st.floats(0, 0.1)]))
    def test_bid_never_falls_with_the_pctr(self, taught, left, n, pctr):
        for bidder in taught:
            assert bidder.bid(left, n, min(pctr)) <= bidder.bid(left, n, max(pctr))

    def test_state_is_json_and_resumes_with_the_same_bids(self):
        """After 170 auctions: a bidder that learns in steps of a hundred has some that it has not yet used."""
        bid_N, _, _ = bid_episodes(self.bidder(), PCTR_N, PRICE_N, BUDGET, AUCTIONS)
        bidder = self.bidder()
        left = BUDGET
        for i, (pctr, price) in enumerate(zip(PCTR_N.tolist(), PRICE_N.tolist(), strict=True)):
            left = BUDGET if i % AUCTIONS == 0 else left
            if i == 170:
                bidder = self.bidder().resume(json.loads(json.dumps(bidder.state, allow_nan=False)))
            n = AUCTIONS - i % AUCTIONS
            bid = bidder.bid(left, n, pctr)
            assert bid == bid_N[i]
            bidder = bidder.after(Seen(left, n, pctr, bid, price if bid >= price else None))
            left -= price * (bid >= price)

    def test_scale_of_the_pctr_is_that_of_the_history(self):
        """A predictor that is twice as high everywhere, in the history too, wins the same auctions."""
        doubled = replace(HISTORY, clicks=2 * HISTORY.clicks)
        _, won_N, _ = bid_episodes(self.bidder(), PCTR_N, PRICE_N, BUDGET, AUCTIONS)
        _, doubled_N, _ = bid_episodes(self.bidder(doubled), 2 * PCTR_N, PRICE_N, BUDGET, AUCTIONS)
        assert won_N.any() and (won_N == doubled_N).all()


class MoneyContract(BidderContract):
    """Of those that bid more with more money: the exact table is not concave, and the others read no money."""

    @examples(50)
    @given(left=st.tuples(*2 * [st.integers(0, BUDGET)]), n=st.integers(1, AUCTIONS))
    def test_bid_never_falls_with_the_money_left(self, taught, left, n):
        for bidder in taught:
            assert bidder.bid(min(left), n, 0.004) <= bidder.bid(max(left), n, 0.004)
