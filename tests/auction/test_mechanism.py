"""Mechanisms against hand-worked numbers, brute force and their laws."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.auction.mechanism import MECHANISMS, Bids, first_price, gsp, second_price, squashed, tie_keys, vcg

TRUTHFUL = {"second_price": second_price, "vcg": vcg}


def bids_of(bids, rates=None, reserves=None, power=1.0, ties=None):
    rate_K = np.ones(len(bids)) if rates is None else np.array(rates, float)
    return Bids(
        bid_nanos_K=np.array(bids, np.int64),
        rate_K=rate_K,
        weight_K=squashed(rate_K, power),
        reserve_nanos_K=np.zeros(len(bids), np.int64) if reserves is None else np.array(reserves, np.int64),
        tie_K=np.arange(len(bids), dtype=np.uint64) if ties is None else np.array(ties, np.uint64),
    )


@st.composite
def markets(draw, slots=4):
    """Up to six bidders with rates, a reserve each and an order of ties; up to ``slots`` slots; a squashing power."""
    count = draw(st.integers(0, 6))

    def lists(strategy):
        return st.lists(strategy, min_size=count, max_size=count)

    bids = bids_of(
        draw(lists(st.integers(0, 30).map(lambda units: units * 10**6))),
        draw(lists(st.sampled_from((0.001, 0.01, 0.2, 0.5, 1.0)))),
        draw(lists(st.sampled_from((0, 0, 10**5, 4 * 10**6)))),
        draw(st.sampled_from((0.0, 0.5, 1.0))),
        draw(st.permutations(range(count))),
    )
    effects = sorted(draw(st.lists(st.floats(0.05, 1.0), min_size=1, max_size=slots)), reverse=True)
    return bids, effects


def utility(mechanism, bids, effects, bidder, value_nanos, bid_nanos):
    """Expected nanos that a bidder gains with a bid, if an action is worth ``value_nanos`` to it."""
    changed = bids.bid_nanos_K.copy()
    changed[bidder] = bid_nanos
    return gain(mechanism(replaced(bids, changed), effects), bids, effects, bidder, value_nanos)


def replaced(bids, bid_nanos_K):
    return Bids(
        bid_nanos_K=bid_nanos_K,
        rate_K=bids.rate_K,
        weight_K=bids.weight_K,
        reserve_nanos_K=bids.reserve_nanos_K,
        tie_K=bids.tie_K,
    )


def impression_nanos(outcome, bids, effects):
    """[J] mean price of a response in each slot."""
    return outcome.action_nanos_J * bids.rate_K[outcome.winner_J] * np.array(effects)[: len(outcome.winner_J)]


def gain(outcome, bids, effects, bidder, value_nanos):
    slots = np.flatnonzero(outcome.winner_J == bidder)
    if not len(slots):
        return 0.0
    slot = int(slots[0])
    return float((value_nanos - outcome.action_nanos_J[slot]) * bids.rate_K[bidder] * effects[slot])


# Three bidders, two slots: scores 10 x .2 = 2, 30 x .05 = 1.5, 4 x .25 = 1 (units of a thousandth).
THREE = bids_of([10_000, 30_000, 4_000], [0.2, 0.05, 0.25])
EFFECTS = (1.0, 0.5)


@pytest.mark.parametrize(
    ("name", "winners", "action_nanos", "response_nanos"),
    [
        ("first_price", [0, 1], [10_000, 30_000], [2_000, 750]),
        ("second_price", [0], [7_500], [1_500]),  # 1,500 / .2
        ("gsp", [0, 1], [7_500, 20_000], [1_500, 500]),  # 1,500 / .2 and 1,000 / .05
        ("vcg", [0, 1], [6_250, 20_000], [1_250, 500]),  # (.5 x 1,500 + .5 x 1,000) / .2
    ],
)
def test_hand_worked_prices(name, winners, action_nanos, response_nanos):
    outcome = MECHANISMS[name](THREE, EFFECTS)
    assert outcome.winner_J.tolist() == winners
    assert outcome.action_nanos_J.tolist() == action_nanos
    assert impression_nanos(outcome, THREE, EFFECTS).tolist() == response_nanos


def test_squashing_inverts_its_own_weight():
    bids = bids_of([10_000, 25_000, 4_000], [0.25, 0.04, 0.09], power=0.5)  # scores 5,000, 5,000 and 1,200
    assert gsp(bids, (1.0, 0.5)).winner_J.tolist() == [0, 1]
    assert gsp(bids, (1.0, 0.5)).action_nanos_J.tolist() == [10_000, 6_000]  # 5,000 / .5 and 1,200 / .2
    by_bid = bids_of([10_000, 25_000, 4_000], [0.25, 0.04, 0.09], power=0.0)
    assert second_price(by_bid, (1.0,)).winner_J.tolist() == [1]


def test_reserve_is_compared_with_bid_times_rate_not_with_the_score():
    bids = bids_of([10_000, 9_000], [0.01, 0.5], reserves=[200, 200], power=0.0)
    outcome = second_price(bids, (1.0,))
    assert outcome.winner_J.tolist() == [1]
    assert outcome.action_nanos_J.tolist() == [400]  # 200 / .5; the dropped bid sets no price


@pytest.mark.parametrize("name", MECHANISMS)
def test_auction_without_bidders_has_no_winner(name):
    outcome = MECHANISMS[name](bids_of([]), (1.0, 0.5))
    assert outcome.winner_J.tolist() == outcome.action_nanos_J.tolist() == []


def test_bidder_alone_pays_its_reserve():
    for mechanism in (second_price, gsp, vcg):
        outcome = mechanism(bids_of([10_000], [0.5], reserves=[1_000]), (1.0, 0.5))
        assert outcome.action_nanos_J.tolist() == [2_000]


def test_bid_equal_to_its_reserve_wins():
    assert first_price(bids_of([10], reserves=[10]), (1.0,)).winner_J.tolist() == [0]
    assert first_price(bids_of([9], reserves=[10]), (1.0,)).winner_J.tolist() == []


def test_slot_effects_must_descend():
    with pytest.raises(AssertionError, match="descending"):
        gsp(THREE, (0.5, 1.0))


def brute_force_vcg(bids, effects):
    """[K] nanos per response: the welfare of the others without the bidder, minus theirs with it.

    Unfilled slots go to the seller, who values each seen impression at the common reserve.
    """
    score_K = bids.bid_nanos_K * bids.rate_K
    reserve = int(bids.reserve_nanos_K[0])
    seller = len(score_K)
    with_seller = np.append(score_K, reserve)

    def best(bidders):
        entries = [*bidders, *[seller] * len(effects)]
        options = {order[: len(effects)] for order in permutations(entries, len(effects))}
        return max(options, key=lambda order: welfare(order, without=None))

    def welfare(order, without):
        return sum(effect * with_seller[b] for effect, b in zip(effects, order, strict=True) if b != without)

    everyone = range(len(score_K))
    chosen = best(everyone)
    return {
        b: welfare(best([other for other in everyone if other != b]), b) - welfare(chosen, b)
        for b in chosen
        if b != seller
    }


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_vcg_charges_the_externality(data):
    count = data.draw(st.integers(1, 4))
    scores = data.draw(st.lists(st.integers(1, 40), min_size=count, max_size=count, unique=True))
    reserve = data.draw(st.sampled_from((0, *range(500_000, 20_000_000, 1_000_000))))  # equal to no score
    effects = sorted(data.draw(st.lists(st.floats(0.1, 1.0), min_size=1, max_size=3)), reverse=True)
    rates = data.draw(st.lists(st.sampled_from((0.25, 0.5, 1.0)), min_size=count, max_size=count))
    bids = bids_of([int(s * 10**6 / r) for s, r in zip(scores, rates, strict=True)], rates, [reserve] * count)
    outcome = vcg(bids, effects)
    paid = dict(zip(outcome.winner_J.tolist(), impression_nanos(outcome, bids, effects).tolist(), strict=True))
    expected = brute_force_vcg(bids, effects)
    assert paid.keys() == expected.keys()
    for bidder in paid:
        assert paid[bidder] == pytest.approx(expected[bidder], abs=4)


@given(markets())
@settings(deadline=None, max_examples=60)
def test_gsp_price_is_the_lowest_bid_that_keeps_the_slot(market):
    bids, effects = market
    outcome = gsp(bids, effects)
    for slot, winner in enumerate(outcome.winner_J.tolist()):
        price_nanos = int(outcome.action_nanos_J[slot])
        for bid_nanos, keeps in ((price_nanos + 1, True), (price_nanos - 2, False)):
            if not 0 <= bid_nanos <= bids.bid_nanos_K[winner]:
                continue
            changed = bids.bid_nanos_K.copy()
            changed[winner] = bid_nanos
            winners = gsp(replaced(bids, changed), effects).winner_J.tolist()
            assert (winners[slot : slot + 1] == [winner]) is keeps


@pytest.mark.parametrize("name", TRUTHFUL)
@given(markets(), st.data())
@settings(deadline=None, max_examples=60)
def test_truthful_mechanism_has_no_profitable_misreport(name, market, data):
    bids, effects = market
    if not len(bids.bid_nanos_K):
        return
    bidder = data.draw(st.integers(0, len(bids.bid_nanos_K) - 1))
    value_nanos = int(bids.bid_nanos_K[bidder])
    honest = utility(TRUTHFUL[name], bids, effects, bidder, value_nanos, value_nanos)
    for bid_nanos in range(0, 33 * 10**6, 10**6 // 2):
        assert utility(TRUTHFUL[name], bids, effects, bidder, value_nanos, bid_nanos) <= honest + 2


def test_gsp_has_a_profitable_misreport():
    bids = bids_of([10_000, 4_000, 2_000])
    assert utility(gsp, bids, (1.0, 0.9), 0, 10_000, 3_000) > utility(gsp, bids, (1.0, 0.9), 0, 10_000, 10_000)


@pytest.mark.parametrize("name", MECHANISMS)
@given(markets(), st.data())
@settings(deadline=None, max_examples=60)
def test_laws_of_every_mechanism(name, market, data):
    bids, effects = market
    mechanism = MECHANISMS[name]
    outcome = mechanism(bids, effects)
    slot_of = {winner: slot for slot, winner in enumerate(outcome.winner_J.tolist())}
    # individually rational, and no price below the reserve but by rounding
    assert (outcome.action_nanos_J <= bids.bid_nanos_K[outcome.winner_J]).all()
    least_J = bids.reserve_nanos_K[outcome.winner_J] / bids.rate_K[outcome.winner_J]
    assert (outcome.action_nanos_J >= np.floor(least_J)).all()
    assert len(outcome.winner_J) <= len(effects)
    if not len(bids.bid_nanos_K):
        return
    # monotone: a higher bid wins no lower slot
    bidder = data.draw(st.integers(0, len(bids.bid_nanos_K) - 1))
    raised = bids.bid_nanos_K.copy()
    raised[bidder] += data.draw(st.integers(1, 10**7))
    winners = mechanism(replaced(bids, raised), effects).winner_J.tolist()
    if bidder in slot_of:
        assert winners.index(bidder) <= slot_of[bidder]
    # a permutation of the bidders permutes the result
    order = np.array(data.draw(st.permutations(range(len(bids.bid_nanos_K)))))
    permuted = Bids(
        bid_nanos_K=bids.bid_nanos_K[order],
        rate_K=bids.rate_K[order],
        weight_K=bids.weight_K[order],
        reserve_nanos_K=bids.reserve_nanos_K[order],
        tie_K=bids.tie_K[order],
    )
    result = mechanism(permuted, effects)
    assert order[result.winner_J].tolist() == outcome.winner_J.tolist()
    assert result.action_nanos_J.tolist() == outcome.action_nanos_J.tolist()


@given(markets(slots=1))
@settings(deadline=None, max_examples=60)
def test_one_slot_is_a_second_price(market):
    bids, effects = market
    prices = [mechanism(bids, effects).action_nanos_J.tolist() for mechanism in (second_price, gsp)]
    assert prices[0] == prices[1]
    assert vcg(bids, effects).action_nanos_J.tolist() == pytest.approx(prices[0], abs=1)


@given(markets())
@settings(deadline=None, max_examples=60)
def test_gsp_takes_at_least_as_much_as_vcg(market):
    bids, effects = market
    assert (gsp(bids, effects).action_nanos_J >= vcg(bids, effects).action_nanos_J - 1).all()


def test_equal_bids_share_evenly_over_requests():
    names = [f"ad-{k}" for k in range(4)]
    wins = np.zeros(4)
    for request in range(2_000):
        bids = bids_of([5, 5, 5, 5], ties=tie_keys(f"request-{request}", names))
        outcome = second_price(bids, (1.0,))
        wins[outcome.winner_J[0]] += 1
    expected = 2_000 / 4
    assert ((wins - expected) ** 2 / expected).sum() < 16.3  # chi-square with 3 degrees of freedom, p = .001


def test_tie_keys_depend_on_request_and_name_alone():
    keys = tie_keys("r1", ["a", "b", "c"])
    assert tie_keys("r1", ["c", "a"]).tolist() == [keys[2], keys[0]]
    assert tie_keys("r2", ["a", "b", "c"]).tolist() != keys.tolist()
