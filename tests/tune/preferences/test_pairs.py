"""Preference pairs worked by hand: every rule and switch, margins and weights."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from leadre.data.histories import AD
from leadre.data.moment import of_requests
from leadre.lm.prior import InventoryPrior
from leadre.tune.preferences import pairs
from leadre.tune.preferences.pairs import RULES, PairRules
from leadre.tune.preferences.values import ObjectValues

OFF = {"live_unbought": False, "higher_value": False, "on_policy": False}
PLAIN = PairRules(**OFF, negatives=1, value_ratio=2.0, margin=0.0, value_margin=0.0, similarity=False)
LIVE = [0, 1, 2, 3, 5, 6]


@pytest.fixture
def market(small, hand):
    """Request 0 acted on 1, 2 and 3 for 100, 40 and 300; request 1 on 5 without money; request 2 is a test request."""
    logs = hand(
        [(0, 10, AD, 1, 0)],
        [(0, 20, "train", [1, 2, 3]), (1, 20, "train", [5]), (1, 90, "test", [0])],
        live=LIVE,
        objects=len(small.codebook.object_ids),
    )
    logs = replace(logs, relevant_value_nanos=np.array([100, 40, 300, 0, 7], np.int64))
    live = InventoryPrior(logs, replace(small.codebook, object_ids=tuple(logs.objects["object_id"].to_list())))
    return logs, live


def mine_pairs(market, rules, *, requests=(0, 1), embeddings=None, seed=0, lists=None, impression_nanos_A=None):
    logs, live = market
    if embeddings is None:
        embeddings = np.eye(len(logs.objects), dtype=np.float32)
    ranked = {} if lists is None else pairs.ranked_objects(lists, logs)
    values = ObjectValues(logs, impression_nanos_A)
    return pairs.mine_pairs(of_requests(logs), values, live, embeddings, np.array(requests), rules, seed, ranked)


def lists_frame(*rows):
    columns = {"request": pl.Int32(), "view": pl.String(), "ads": pl.List(pl.Int32())}
    return pl.DataFrame(rows, schema=columns, orient="row")


def triples(mined):
    """(request, chosen, rejected) of each pair."""
    return list(zip(mined.request_P.tolist(), mined.chosen_P.tolist(), mined.rejected_P.tolist(), strict=True))


def test_higher_value(market):
    mined = mine_pairs(market, replace(PLAIN, higher_value=True))
    assert triples(mined) == [(0, 1, 2), (0, 3, 1), (0, 3, 2)]  # 100 over 40, 300 over 100, 300 over 40
    assert {RULES[rule] for rule in mined.rule_P} == {"higher_value"}
    assert mined.weight_P.tolist() == pytest.approx([3**-0.5] * 3)
    assert triples(mine_pairs(market, replace(PLAIN, higher_value=True, value_ratio=2.6))) == [(0, 3, 1), (0, 3, 2)]
    assert triples(mine_pairs(market, replace(PLAIN, higher_value=True, value_ratio=3.0))) == [(0, 3, 1), (0, 3, 2)]
    assert triples(mine_pairs(market, replace(PLAIN, higher_value=True, value_ratio=3.1))) == [(0, 3, 2)]


def test_live_unbought(market):
    mined = mine_pairs(market, replace(PLAIN, live_unbought=True, negatives=2))
    assert [(r, chosen) for r, chosen, _ in triples(mined)] == [
        (0, 1),
        (0, 1),
        (0, 2),
        (0, 2),
        (0, 3),
        (0, 3),
        (1, 5),
        (1, 5),
    ]
    for r, unbought in ((0, {0, 5, 6}), (1, {0, 1, 2, 3, 6})):
        for chosen in set(mined.chosen_P[mined.request_P == r].tolist()):
            rejected = mined.rejected_P[(mined.request_P == r) & (mined.chosen_P == chosen)].tolist()
            assert set(rejected) <= unbought and len(set(rejected)) == 2
    all_of_them = mine_pairs(market, replace(PLAIN, live_unbought=True, negatives=99), requests=[0])
    assert sorted(all_of_them.rejected_P.tolist()) == [0, 0, 0, 5, 5, 5, 6, 6, 6]
    assert mined.weight_P.tolist() == pytest.approx([6**-0.5] * 6 + [2**-0.5] * 2)


def test_draws_depend_on_seed_and_request(market):
    rules = replace(PLAIN, live_unbought=True)
    first = [triples(mine_pairs(market, rules, seed=seed)) for seed in range(20)]
    assert first[0] == triples(mine_pairs(market, rules, seed=0))
    assert len(set(map(tuple, first))) > 10
    assert triples(mine_pairs(market, rules, requests=[1])) == first[0][3:]


def test_identical_requests_draw_different_negatives(small, hand):
    requests = [(0, at, "train", [1]) for at in range(20, 32)]
    logs = hand([(0, 10, AD, 1, 0)], requests, live=LIVE, objects=len(small.codebook.object_ids))
    live = InventoryPrior(
        logs, replace(small.codebook, object_ids=tuple(logs.objects["object_id"].to_list())), prior=False
    )
    mined = mine_pairs((logs, live), replace(PLAIN, live_unbought=True), requests=range(12))
    assert len(mined) == 12 and len(set(mined.rejected_P.tolist())) > 2


def test_negatives_are_drawn_in_proportion_to_the_prior(market, monkeypatch):
    logs, live = market
    weights_O = np.ones(len(logs.objects))
    weights_O[[0, 5, 6]] = 7, 2, 1
    monkeypatch.setattr(live, "rates_O", weights_O)
    rules = replace(PLAIN, live_unbought=True)
    drawn = np.concatenate([mine_pairs(market, rules, requests=[0], seed=seed).rejected_P for seed in range(1000)])
    share = [float(np.mean(drawn == o)) for o in (0, 5, 6)]
    assert share == pytest.approx([0.7, 0.2, 0.1], abs=0.03)  # three standard errors are 0.025
    monkeypatch.setattr(live, "rates_O", None)  # a model without a prior
    drawn = np.concatenate([mine_pairs(market, rules, requests=[0], seed=seed).rejected_P for seed in range(1000)])
    assert [float(np.mean(drawn == o)) for o in (0, 5, 6)] == pytest.approx([1 / 3] * 3, abs=0.03)


def test_on_policy(market):
    lists = lists_frame((0, "all", [6, 2, 0, 5, 3]), (0, "new", [5]), (1, "all", [5, 6]), (2, "all", [6, 0]))
    rules = replace(PLAIN, on_policy=True, negatives=2)
    mined = mine_pairs(market, rules, requests=[0, 1, 2], lists=lists)
    # 1 is not listed; 2 ranks below 6 alone; request 1 has its conversion first, and request 2 is no training request
    assert triples(mined) == [(0, 1, 6), (0, 1, 0), (0, 2, 6), (0, 3, 6), (0, 3, 0)]
    assert {RULES[rule] for rule in mined.rule_P} == {"on_policy"}
    assert triples(mine_pairs(market, replace(rules, negatives=1), lists=lists)) == [(0, 1, 6), (0, 2, 6), (0, 3, 6)]
    assert triples(mine_pairs(market, rules)) == []


def test_ranked_objects_are_distinct(market):
    logs, _ = market
    shared = replace(logs, ad_object_A=np.where(np.arange(len(logs.ads)) == 7, 6, logs.ad_object_A))
    ranked = pairs.ranked_objects(lists_frame((0, "all", [6, 2, 7, 0]), (1, "new", [0])), shared)
    assert {r: objects.tolist() for r, objects in ranked.items()} == {0: [6, 2, 0]}


def test_each_rule_is_a_switch(market):
    lists = lists_frame((0, "all", [6, 1]), (1, "all", [6]))
    for mask in range(8):
        on = {rule: bool(mask >> bit & 1) for bit, rule in enumerate(RULES)}
        mined = mine_pairs(market, replace(PLAIN, **on), lists=lists)
        assert {RULES[rule] for rule in mined.rule_P} == {rule for rule, is_on in on.items() if is_on}
        assert mined.request_P.tolist() == sorted(mined.request_P.tolist())
        assert len(mined) == len(mined.margin_P) == len(mined.weight_P)


def test_margins_grow_with_value(market):
    """The typical conversion has the value 100: the median of 40, 100 and 300."""
    rules = replace(PLAIN, **dict.fromkeys(OFF, True), margin=0.5, value_margin=0.2)
    mined = mine_pairs(market, rules, lists=lists_frame((0, "all", [6])))
    margins = {
        (RULES[rule], chosen, rejected if RULES[rule] == "higher_value" else None): margin
        for rule, chosen, rejected, margin in zip(
            mined.rule_P, mined.chosen_P.tolist(), mined.rejected_P.tolist(), mined.margin_P.tolist(), strict=True
        )
    }
    factors = {("higher_value", 1, 2): 2.5, ("higher_value", 3, 1): 3, ("higher_value", 3, 2): 7.5}
    for rule in ("live_unbought", "on_policy"):
        factors |= {(rule, 1, None): 1, (rule, 2, None): 1, (rule, 3, None): 3}  # a lower value lowers no margin
    factors |= {("live_unbought", 5, None): 1}  # nor does an unknown one
    assert margins == pytest.approx({key: 0.5 + 0.2 * math.log(factor) for key, factor in factors.items()})


def test_by_ecpm_margins_compare_the_values_of_impressions(market):
    """Objects 1, 2 and 3 were bought for 100, 40 and 300, but an impression of 2 is worth most; 6 has no known bid."""
    logs, _ = market
    nanos_A = np.zeros(len(logs.ads), np.int64)
    nanos_A[[0, 1, 2, 3, 5]] = 50, 20, 80, 10, 20
    rules = replace(PLAIN, higher_value=True, value_margin=1.0)
    mined = mine_pairs(market, rules, requests=[0], impression_nanos_A=nanos_A)
    assert triples(mined) == [(0, 1, 3), (0, 2, 1), (0, 2, 3)]
    assert mined.margin_P.tolist() == pytest.approx([math.log(2), math.log(4), math.log(8)])
    assert mined.value_P.tolist() == pytest.approx([1, 4, 4])  # the median conversion is worth 20
    rules = replace(PLAIN, on_policy=True, negatives=2, value_margin=1.0)
    lists = lists_frame((0, "all", [0, 6]))
    mined = mine_pairs(market, rules, requests=[0], lists=lists, impression_nanos_A=nanos_A)
    margin = {pair[1:]: m for pair, m in zip(triples(mined), mined.margin_P.tolist(), strict=True)}
    # object 2 is worth more than 0; 1 and 3 are worth less, which lowers no margin; 6 is unknown
    assert margin == pytest.approx({(1, 0): 0, (1, 6): 0, (2, 0): math.log(1.6), (2, 6): 0, (3, 0): 0, (3, 6): 0})


def test_ecpm_of_an_object_is_that_of_its_best_live_ad(market):
    logs, _ = market
    nanos_A = np.full(len(logs.ads), 10)
    nanos_A[[1, 4, 6]] = 20, 900, 70  # ad 4 is not live
    shared = replace(logs, ad_object_A=np.where(np.isin(np.arange(len(logs.ads)), [4, 6]), 1, logs.ad_object_A))
    values = ObjectValues(shared, nanos_A)
    objects, nanos_N = values.acted_on(0)
    assert dict(zip(objects.tolist(), nanos_N.tolist(), strict=True)) == {1: 70, 2: 10, 3: 10}
    assert values.not_acted_on(0, np.array([0, 1, 4])).tolist() == [10, 70, 0]


def test_near_duplicates_weigh_less_and_duplicates_make_no_pair(market):
    logs, _ = market
    embeddings = np.zeros((len(logs.objects), 2), np.float32)
    embeddings[:, 1] = 1
    embeddings[[1, 2, 3]] = (3, 0), (0, -2), (0, 5)
    embeddings[6] = 0.6, 0.8
    rules = replace(PLAIN, on_policy=True, higher_value=True, similarity=True)
    mined = mine_pairs(market, rules, embeddings=embeddings, lists=lists_frame((0, "all", [6])), requests=[0])
    weight = {pair[1:]: weight for pair, weight in zip(triples(mined), mined.weight_P.tolist(), strict=True)}
    root = 3**-0.5
    assert weight[1, 6] == pytest.approx(0.4 * root)
    assert weight[2, 6] == pytest.approx(root)  # an opposite vector weighs no more than an orthogonal one
    assert weight[3, 6] == pytest.approx(0.2 * root)
    alike = np.ones((len(logs.objects), 2), np.float32)  # conversions differ in value even if their texts are equal
    by_value = mine_pairs(market, replace(rules, on_policy=False), embeddings=alike)
    assert by_value.weight_P.tolist() == pytest.approx([root] * 3)
    twins = mine_pairs(market, rules, embeddings=embeddings, lists=lists_frame((0, "all", [0])), requests=[0])
    assert (3, 0) not in {pair[1:] for pair in triples(twins)} and (1, 0) in {pair[1:] for pair in triples(twins)}
    plain = replace(rules, similarity=False)
    assert (0, 3, 0) in triples(mine_pairs(market, plain, embeddings=embeddings, lists=lists_frame((0, "all", [0]))))


def test_no_pairs(market):
    assert len(mine_pairs(market, replace(PLAIN, higher_value=True), requests=[1])) == 0
    assert len(mine_pairs(market, PLAIN)) == 0
    assert mine_pairs(market, PLAIN).rule_P.dtype == np.int8
