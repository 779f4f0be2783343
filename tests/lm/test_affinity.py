"""Item-item affinity, fitted to hand-affinity logs."""

from dataclasses import replace

import numpy as np
import pytest

from leadre.data.histories import CONTENT
from leadre.lm import affinity as affinities

LATE = (0, 1000, CONTENT, 0, 0)


@pytest.fixture
def pairs(small, hand, monkeypatch):
    """(logs, codebook): eight objects; even users act on 1 and 2, odd ones on 3 and 4, some also on others."""
    monkeypatch.setattr(affinities, "PENALTY", 1.0)
    rng = np.random.default_rng(0)
    events = []
    for user in range(30):
        pair = (1, 2) if user % 2 == 0 else (3, 4)
        events += [(user, 10 + i, CONTENT, o, 0) for i, o in enumerate((*pair, int(rng.integers(5, 8))))]
    logs = hand([*events, LATE], [(0, 500, "test", [])], objects=len(small.codebook.object_ids))
    return logs, replace(small.codebook, object_ids=tuple(logs.objects["object_id"].to_list()))


def test_objects_of_the_same_users_have_affinity(pairs):
    affinity = affinities.fit(*pairs, seed=0)
    every = np.arange(8)
    assert affinity.scores(np.array([1]), every).argmax() == 2
    assert affinity.scores(np.array([4]), every).argmax() == 3
    assert affinity.scores(np.array([3, 3, 3]), every)[4] > affinity.scores(np.array([3]), every)[4]  # counts count
    assert not affinity.scores(np.zeros(0, np.int64), every).any()


def test_events_after_training_are_not_read(pairs, hand, small):
    logs, codebook = pairs
    affinity = affinities.fit(logs, codebook, seed=0)
    assert (
        not affinity.read_OP[0].any() and not affinity.live_OP[0].any()
    )  # object 0 has events in the test weeks alone
    rows = np.arange(len(codebook.object_ids))
    scores = np.stack([affinity.scores(rows[logs.object_E[logs.at_us_E < 500]], rows)])
    assert np.isfinite(scores).all()


def test_fold_is_fitted_without_its_users(pairs, hand, small):
    """Only user 0 acts on 6 and 7: the fit that excludes their fold has no weights for them."""
    logs, codebook = pairs
    own = [(0, 100 + i, CONTENT, o, 0) for i, o in enumerate((6, 7))]
    events = [(1, 10, CONTENT, 3, 0), (1, 11, CONTENT, 4, 0), (2, 10, CONTENT, 1, 0), (2, 11, CONTENT, 2, 0), *own]
    logs = hand([*events, LATE], [(0, 500, "test", [])], objects=len(codebook.object_ids))
    others = affinities.held_out(logs, codebook, seed=0)
    has_weights = [bool(fit.read_OP[[6, 7]].any()) for fit in others]
    assert has_weights == [False, True, True, True]


def test_rows_follow_the_codebook(pairs):
    logs, codebook = pairs
    order = np.random.default_rng(1).permutation(len(codebook.object_ids))
    mixed = replace(
        codebook, codes_OL=codebook.codes_OL[order], object_ids=tuple(codebook.object_ids[i] for i in order)
    )
    affinity = affinities.fit(logs, codebook, seed=0)
    moved = affinities.fit(logs, mixed, seed=0)
    products = affinity.read_OP @ affinity.live_OP.T
    np.testing.assert_allclose(moved.read_OP @ moved.live_OP.T, products[order][:, order], atol=1e-4)


def test_new_objects_have_zero_rows_and_others_keep_theirs(pairs, tmp_path):
    affinity = affinities.fit(*pairs, seed=0)
    affinity.save(tmp_path)
    loaded = affinities.load(tmp_path, len(affinity.read_OP) + 2)
    assert np.array_equal(loaded.read_OP[:-2], affinity.read_OP) and np.array_equal(
        loaded.live_OP[:-2], affinity.live_OP
    )
    assert not loaded.live_OP[-2:].any() and not loaded.read_OP[-2:].any()


def test_too_few_objects_give_zero_affinity(small, hand):
    logs = hand([(0, 10, CONTENT, 1, 0), LATE], [(0, 500, "test", [])], objects=len(small.codebook.object_ids))
    codebook = replace(small.codebook, object_ids=tuple(logs.objects["object_id"].to_list()))
    assert not affinities.fit(logs, codebook, seed=0).live_OP.any()
