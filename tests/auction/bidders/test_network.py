"""RLB's value network passes the contract; its slopes against the table that it is fitted to."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from leadre.auction.bidders.network import EXACT, NetworkRLB, SlopeNetwork, fit
from leadre.auction.bidders.rl import RLB, value_table

_spec = importlib.util.spec_from_file_location("contract_bidder", Path(__file__).with_name("contract_bidder.py"))
suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(suite)

HISTORY = suite.HISTORY
AUCTIONS = 120
MONEY = 4 * suite.BUDGET
TABLE = value_table(HISTORY.law_G, AUCTIONS, MONEY)


@lru_cache
def fit_once():
    """The network of all tests: a table is in units of the mean pCTR, so it serves each history of these prices."""
    return fit(TABLE, 1_000)


@pytest.fixture
def fitted():
    return fit_once()


class TestNetwork(suite.BidderContract):
    """With all auctions of the contract's episodes beyond the exact rows, so that the network makes the bids."""

    @classmethod
    def bidder(cls, history=HISTORY):
        return NetworkRLB(history, fit_once(), TABLE[:5])


def test_slopes_are_close_to_those_of_the_table(fitted):
    money = np.arange(MONEY)
    for n in range(EXACT + 1, AUCTIONS + 1, 10):
        slope = np.diff(TABLE[n])
        assert np.sqrt(np.mean((fitted.slope(n, money) - slope) ** 2)) < 0.7 * slope.std()


def test_bids_are_those_of_the_table(fitted):
    """To a tenth of the range of bids; in the exact rows to the rounding of a sum."""
    table = RLB(HISTORY, TABLE)
    learned = NetworkRLB(HISTORY, fitted, TABLE[: EXACT + 1])
    for n, left in ((100, 400), (80, 200), (120, 600)):
        assert learned.bid(left, n, HISTORY.mean_pctr) == pytest.approx(table.bid(left, n, HISTORY.mean_pctr), abs=6)
    for n, left in ((10, 40), (50, 300)):
        assert learned.bid(left, n, HISTORY.mean_pctr) == pytest.approx(table.bid(left, n, HISTORY.mean_pctr), abs=1)


def test_longer_horizon_is_mapped_to_the_last_one_at_the_same_money_an_auction():
    """A slope that falls with the money an auction: twice the horizon has the same slopes at twice the money."""
    weight = (np.array([[0.0, 0.0, -0.1]]), np.array([0.2]))
    learned = NetworkRLB(HISTORY, SlopeNetwork((weight,), AUCTIONS, float(MONEY)), TABLE[:1])
    assert learned._slopes(2 * AUCTIONS, np.array([200, 400])) == pytest.approx(
        learned._slopes(AUCTIONS, np.array([100, 200]))
    )
