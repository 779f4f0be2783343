"""The counts network in a large inventory: who is near a history, and the scores of all others."""

import numpy as np
import pytest

from leadre.data.counts import features
from leadre.data.histories import TEST
from leadre.lm import counts_fit, nearby


@pytest.fixture(scope="module")
def network(small):
    return counts_fit.fit(small.logs, 0, 1).full


@pytest.fixture
def tiny(monkeypatch):
    """Limits so small that most of this market is far from any history."""
    for name, value in {"LARGE": 5, "NEIGHBOURS": 3, "HEADS": 1, "PROBES": 8}.items():
        monkeypatch.setattr(nearby, name, value)


def moments_of(small):
    return [small.moments[r] for r in small.logs.requests_of(TEST)[::7].tolist()]


def parts(network, moment):
    """(near objects, those of them that are probes alone) of a moment, from the parts of the network."""
    near = nearby.Nearby(tables=network.tables)
    user = network.tables.collaborative.user(moment.history)
    return near, *near.objects(moment, user, np.zeros(0, np.int64))


def test_own_objects_are_near(small, network, tiny):
    for moment in moments_of(small)[:12]:
        _, near, is_probe_N = parts(network, moment)
        live = moment.inventory.objects
        own = np.unique(moment.history.object_E)
        assert (np.diff(near) > 0).all() and np.isin(near, live).all() and len(near) < len(live)
        assert np.isin(own[np.isin(own, live)], near[~is_probe_N]).all()


def test_the_most_popular_objects_of_each_own_category_are_near(small, network, tiny):
    category_O = network.tables.group_GO[0]
    rate_O = network.tables.popularity_OP[:, 0]
    near_by = nearby.Nearby(tables=network.tables)
    is_live_O = np.random.default_rng(0).random(len(category_O)) < 0.7
    sizes = []
    for acted in np.arange(len(category_O)).reshape(-1, 4)[:10]:
        categories = np.unique(category_O[acted])
        members = [np.flatnonzero((category_O == category) & is_live_O) for category in categories if category]
        heads = [group[np.argmax(rate_O[group])] for group in members if len(group)]
        assert sorted(near_by._popular(acted, is_live_O).tolist()) == sorted(heads)
        sizes += map(len, members)
    assert {0, 1, 2} <= set(sizes)


def test_far_objects_have_the_shifted_score_of_a_user_without_a_history(small, network, tiny):
    shifts = []
    for moment in moments_of(small)[:12]:
        near_by, near, is_probe_N = parts(network, moment)
        live = moment.inventory.objects
        score_I = network.scores(moment)
        row_N = np.searchsorted(live, near)
        x_NF = features(
            moment,
            network.tables,
            near,
            user=network.tables.collaborative.user(moment.history),
            spread=near_by.spread,
        )
        np.testing.assert_allclose(score_I[row_N], network.forward(x_NF), atol=1e-5)
        base_I = network._base_O[live]
        shift_I = np.delete(score_I - base_I, row_N)
        assert np.ptp(shift_I) < 1e-4
        probes = row_N[is_probe_N]
        if len(probes):
            same = np.exp(score_I[probes]).sum() / np.exp(base_I[probes] + shift_I[0]).sum()
            assert same == pytest.approx(1, rel=1e-3)
            shifts.append(abs(shift_I[0]))
    assert max(shifts) > 0.01


def test_a_small_inventory_is_scored_whole(small, network):
    moment = moments_of(small)[0]
    whole = network.forward(features(moment, network.tables))
    assert np.array_equal(network.scores(moment), whole)


def test_everything_near_is_scored_as_a_whole_inventory_is(small, network, monkeypatch):
    """With limits above the size of this market only the spread of the factors differs."""
    monkeypatch.setattr(nearby, "HEADS", 10_000)
    moment = max(moments_of(small), key=lambda moment: len(np.unique(moment.history.object_E)))
    whole = network.scores(moment)
    monkeypatch.setattr(nearby, "LARGE", 5)
    assert np.corrcoef(whole, network.scores(moment))[0, 1] > 0.95


def test_scores_of_some_objects_are_those_among_all_of_a_large_inventory(small, network, tiny):
    moment = moments_of(small)[0]
    live = moment.inventory.objects
    assert np.array_equal(network.scores(moment, live[1::3]), network.scores(moment)[1::3])
