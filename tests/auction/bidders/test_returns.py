"""Targets of return and of cost: the dual by hand, the constraint on a market, and the corrector on planted clicks."""

from dataclasses import replace

import numpy as np
import pytest

from leadre.auction.bidders.contract import Seen
from leadre.auction.bidders.returns import Corrector, TargetReturn
from leadre.auction.simulate import bid_episodes

AUCTIONS = 8_000
WORTH = 2_000.0
PLANTED = Corrector(intercept=-1.6, slope=1.0, sensitivity=0.5)  # auctions won at low prices click less


def market():
    generator = np.random.default_rng(4)
    pctr_N = 0.004 * np.exp(generator.normal(0, 0.5, AUCTIONS))
    price_N = np.exp(generator.normal(2.5, 0.8, AUCTIONS))
    return pctr_N, price_N


def bidder_with(corrector=None, truthful=0):
    step = 5 / AUCTIONS**0.5
    return TargetReturn(WORTH, 300.0, 15.0, step, truthful, corrector=corrector or Corrector())


def test_steps_by_hand():
    bidder = TargetReturn(
        worth=1_000.0, cap=300.0, mean_price=4.0, step=0.1, rate=5.0, budget_step=0.1, budget_dual=1.0
    )
    assert bidder.bid(100, 10, 0.004) == pytest.approx(4.0 * (1 + 1) / (1 + 1))
    after = bidder.after(Seen(100, 10, 0.004, 4.0, 2.0))
    assert after.return_dual == pytest.approx(np.exp(-0.1 * (4 - 2) / 4))
    assert after.budget_dual == pytest.approx(1 - 0.1 * (1 - 2 / 5))
    lost = bidder.after(Seen(100, 10, 0.004, 4.0, None))
    assert (lost.return_dual, lost.budget_dual) == (1.0, pytest.approx(0.9))
    assert bidder.after(Seen(3.0, 10, 0.004, 3.0, None)).budget_dual == 1.0  # cut by the money left


def test_strict_start_bids_the_value_and_keeps_the_dual():
    bidder = bidder_with(truthful=2)
    for _ in range(2):
        assert bidder.bid(1e9, 10, 0.004) == pytest.approx(8.0)
        bidder = bidder.after(Seen(1e9, 10, 0.004, 8.0, 1.0))
        assert bidder.return_dual == 1.0
    assert bidder.bid(1e9, 10, 0.004) == pytest.approx(16.0)


def test_return_is_kept_and_buys_more_than_bids_of_the_value():
    pctr_N, price_N = market()
    value_N = WORTH * pctr_N
    _, won_N, _ = bid_episodes(bidder_with(), pctr_N, price_N, np.inf, AUCTIONS)
    assert 0.98 <= value_N[won_N].sum() / price_N[won_N].sum() <= 1.05
    assert value_N[won_N].sum() > 1.3 * value_N[value_N >= price_N].sum()


def test_strict_start_never_falls_below_the_target():
    pctr_N, price_N = market()
    slack_N = WORTH * pctr_N - price_N
    lowest = {}
    for truthful in (0, 3 * int(AUCTIONS**0.5)):
        _, won_N, _ = bid_episodes(bidder_with(truthful=truthful), pctr_N, price_N, np.inf, AUCTIONS)
        lowest[truthful] = np.cumsum(slack_N * won_N).min()
    assert lowest.pop(0) < 0 <= min(lowest.values())


def test_corrector_recovers_planted_weights():
    pctr_N, price_N = (np.tile(row, 10) for row in market())
    rate_N = np.array([PLANTED.rate(pctr, price) for pctr, price in zip(10 * pctr_N, price_N, strict=True)])
    click_N = (np.random.default_rng(0).random(len(rate_N)) < rate_N).astype(float)
    fitted = Corrector.fit(10 * pctr_N, price_N, click_N)
    assert fitted.intercept == pytest.approx(PLANTED.intercept, abs=0.15)
    assert (fitted.slope, fitted.sensitivity) == pytest.approx((PLANTED.slope, PLANTED.sensitivity), abs=0.06)


def test_corrected_bid_is_the_highest_price_that_its_win_is_worth():
    bidder = bidder_with(PLANTED)
    bid = bidder.bid(1e9, 10, 0.004)
    value = [2 * WORTH * PLANTED.rate(0.004, price) for price in (bid, bid * 1.001)]
    assert value[0] >= bid * (1 - 1e-6) and value[1] < bid * 1.001


def test_corrector_keeps_a_promise_that_the_prediction_breaks():
    """By the planted rates of the wins, so without the noise of clicks; the corrector sees clicks of earlier wins."""
    pctr_N, price_N = market()
    rate_N = np.array([PLANTED.rate(pctr, price) for pctr, price in zip(pctr_N, price_N, strict=True)])
    _, won_N, _ = bid_episodes(bidder_with(), pctr_N, price_N, np.inf, AUCTIONS)
    many = np.repeat(np.flatnonzero(won_N), 50)
    click_N = (np.random.default_rng(0).random(len(many)) < rate_N[many]).astype(float)
    fitted = Corrector.fit(pctr_N[many], price_N[many], click_N)
    kept = []
    for bidder in (bidder_with(), replace(bidder_with(), corrector=fitted)):
        _, won_N, _ = bid_episodes(bidder, pctr_N, price_N, np.inf, AUCTIONS)
        kept.append(WORTH * rate_N[won_N].sum() / price_N[won_N].sum())
    assert kept[0] < 0.9 and kept[1] == pytest.approx(1.0, abs=0.07)
