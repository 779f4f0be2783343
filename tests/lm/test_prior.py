"""The prior over live objects: tries, response rates, affinity, prices and the pointer's bias."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest

from leadre.data.counts import PSEUDO_ACTIONS
from leadre.data.histories import TEST, TRAIN
from leadre.data.prices import PSEUDO_PAYMENTS, object_prices
from leadre.lm import affinity as affinities
from leadre.lm.prior import AFFINITY, InventoryPrior, PriceExponents, response_rates


def test_trie_of_a_moment_holds_its_inventory(small):
    logs = small.logs
    live = small.live
    for r in range(0, len(logs.request_user_R), 37):
        trie, objects = live.all(small.moments[r])
        assert objects.tolist() == sorted(set(logs.ad_object_A[logs.inventory(r)].tolist()))
        assert sorted(trie.leaf_row.tolist()) == list(range(len(objects)))
        states = trie.roots(len(objects))
        for level in range(trie.depth):
            states = trie.step(states, live.codes_OL[objects][:, level], level)
        assert trie.rows(states).tolist() == list(range(len(objects)))


def test_new_leaves_out_objects_of_the_history(small):
    logs = small.logs
    live = small.live
    fewer = 0
    for r in range(len(logs.request_user_R)):
        had = set(logs.object_E[logs.history(r)].tolist())
        every = live.all(small.moments[r])[1]
        new = live.new(small.moments[r])[1]
        assert new.tolist() == [o for o in every.tolist() if o not in had]
        fewer += len(new) < len(every)
    assert fewer > 100


def test_codes_do_not_depend_on_the_order_of_the_codebook(small):
    order = np.random.default_rng(0).permutation(len(small.codebook.object_ids))
    mixed = replace(
        small.codebook,
        codes_OL=small.codebook.codes_OL[order],
        embeddings_OD=small.codebook.embeddings_OD[order],
        object_ids=tuple(small.codebook.object_ids[i] for i in order),
    )
    assert np.array_equal(InventoryPrior(small.logs, mixed).codes_OL, small.live.codes_OL)


@pytest.mark.parametrize("new_only", [False, True])
def test_response_rates_count_actions_per_live_request(small, new_only):
    logs = small.logs
    live = np.zeros(len(logs.objects))
    acted = np.zeros(len(logs.objects))
    for r in logs.requests_of(TRAIN).tolist():
        had = set(logs.object_E[logs.history(r)].tolist()) if new_only else set()
        for o in set(logs.ad_object_A[logs.inventory(r)].tolist()) - had:
            live[o] += 1
            acted[o] += o in logs.ad_object_A[logs.relevant(r)[0]]
    mean = acted.sum() / live.sum()
    rates = response_rates(logs, new_only=new_only)
    np.testing.assert_allclose(rates, (acted + PSEUDO_ACTIONS) / (live + PSEUDO_ACTIONS / mean))
    assert rates[live == 0].tolist() == pytest.approx([mean] * int((live == 0).sum()))
    assert acted.max() > acted.min() and (live == 0).any()


def test_affinity_weighs_objects_by_the_history(small):
    logs = small.logs
    live = InventoryPrior(small.logs, small.codebook, affinity=affinities.fit(small.logs, small.codebook, 0))
    informed = 0
    for r in logs.requests_of(TEST).tolist():
        for trie, objects in (live.all(small.moments[r]), live.new(small.moments[r])):
            history = live.rows_O[logs.object_E[logs.history(r)]]
            rates = live.rates_O[objects]
            weights = rates * np.exp(AFFINITY * live.affinity.scores(history, live.rows_O[objects]))
            is_live = trie.leaf_row >= 0
            mass = trie.mass[trie.level_starts[trie.depth] :]
            np.testing.assert_allclose(mass[is_live], weights[trie.leaf_row[is_live]], rtol=1e-6)
            assert is_live.sum() == len(objects) and not mass[~is_live].any()
            informed += len(history) > 0 and np.ptp(weights / rates) > 0.1
    assert informed > 10


def test_training_moments_use_a_fit_without_their_user(small):
    logs = small.logs
    codebook = small.codebook
    full = affinities.fit(logs, codebook, 0)
    others = affinities.held_out(logs, codebook, 0)
    plain = InventoryPrior(logs, codebook, affinity=full)
    live = InventoryPrior(logs, codebook, affinity=full, held_out=others)
    differ = 0
    for r in range(0, len(logs.request_user_R), 5):
        mass = live.all(small.moments[r])[0].mass
        if logs.request_split_R[r] == TRAIN:
            fold = int(logs.request_user_R[r]) % affinities.FOLDS
            assert np.array_equal(
                mass, InventoryPrior(logs, codebook, affinity=others[fold]).all(small.moments[r])[0].mass
            )
            differ += not np.allclose(mass, plain.all(small.moments[r])[0].mass)
        else:
            assert np.array_equal(mass, plain.all(small.moments[r])[0].mass)
    assert differ > 10


def test_price_exponent_weighs_objects_in_the_prior(small):
    logs = small.logs
    price_O = object_prices(logs)
    assert price_O.max() > 2 * price_O.min()
    worth_O = (price_O / np.median(price_O)) ** 0.5
    live = InventoryPrior(logs, small.codebook, money=PriceExponents(0.2, 0.5))
    r = int(logs.requests_of(TEST)[0])
    moment = small.moments[r]
    objects = moment.inventory.objects
    expected = small.live.weights(moment, objects) * worth_O[objects]
    np.testing.assert_allclose(live.weights(moment, objects), expected)
    plain = InventoryPrior(logs, small.codebook, prior=False, money=PriceExponents(0.2, 0.5))
    np.testing.assert_allclose(plain.weights(moment, objects), worth_O[objects])


def test_pointer_bias_is_the_price_that_the_user_usually_pays(small):
    logs = small.logs
    every = np.arange(-1, len(small.logs.objects))
    live = InventoryPrior(logs, small.codebook, money=PriceExponents(0.5, 0.2))
    log_price_O = np.log(object_prices(logs))
    assert small.live.pointer_bias(small.moments[0], every) is None
    differ = 0
    for r in range(0, len(logs.request_user_R), 7):
        paid: dict[int, list[float]] = {}
        for e in range(*logs.history(r).indices(len(logs.at_us_E))):
            if logs.value_nanos_E[e] > 0:
                paid.setdefault(int(logs.object_E[e]), []).append(np.log(logs.value_nanos_E[e] / 1e9))
        own_O = log_price_O.copy()
        for o, values in paid.items():
            own_O[o] = (sum(values) + PSEUDO_PAYMENTS * log_price_O[o]) / (len(values) + PSEUDO_PAYMENTS)
        expected = np.append(0, 0.5 * (own_O - np.median(log_price_O)))
        np.testing.assert_allclose(live.pointer_bias(small.moments[r], every), expected, rtol=1e-5, atol=1e-6)
        differ += bool(paid) and np.abs(own_O - log_price_O).max() > 0.1
    assert differ > 10


def test_trie_without_prior_is_not_weighted(small):
    trie, _ = InventoryPrior(small.logs, small.codebook, prior=False).all(small.moments[0])
    assert not trie.weighted
    assert small.live.all(small.moments[0])[0].weighted


def test_the_trie_of_an_inventory_is_kept_as_long_as_the_inventory(small):
    live = InventoryPrior(small.logs, small.codebook)
    moment = replace(small.moments[0], inventory=replace(small.moments[0].inventory))
    trie, _ = live.all(moment)
    assert live.all(moment)[0] is trie
    gone = weakref.ref(moment.inventory)
    del moment
    gc.collect()
    assert gone() is None


def test_scores_do_not_depend_on_how_many_objects_are_live(small):
    full = affinities.fit(small.logs, small.codebook, 0)
    every = np.arange(len(full.live_OP))
    rows = np.array([1, 2, 2, 5])
    one_by_one = [full.scores(rows, every[n : n + 1])[0] for n in every]
    np.testing.assert_allclose(full.scores(rows, every), one_by_one, rtol=1e-4, atol=1e-6)
