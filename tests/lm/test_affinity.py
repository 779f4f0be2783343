"""What goes together, told from the log alone."""

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


def test_objects_of_the_same_users_go_together(pairs):
    made = affinities.fit(*pairs, seed=0)
    every = np.arange(8)
    assert made.scores(np.array([1]), every).argmax() == 2
    assert made.scores(np.array([4]), every).argmax() == 3
    assert made.scores(np.array([3, 3, 3]), every)[4] > made.scores(np.array([3]), every)[4]  # counts count
    assert not made.scores(np.zeros(0, np.int64), every).any()


def test_what_comes_after_training_is_not_read(pairs, hand, small):
    logs, codebook = pairs
    made = affinities.fit(logs, codebook, seed=0)
    assert not made.read_OP[0].any() and not made.live_OP[0].any()  # object 0 was met in the test weeks alone
    rows = np.arange(len(codebook.object_ids))
    scores = np.stack([made.scores(rows[logs.object_E[logs.at_us_E < 500]], rows)])
    assert np.isfinite(scores).all()


def test_a_fold_has_not_seen_its_users(pairs, hand, small):
    """User 0 alone acts on 6 and 7 together, again and again: no fit but that of other folds knows."""
    logs, codebook = pairs
    own = [(0, 100 + i, CONTENT, o, 0) for i, o in enumerate((6, 7))]
    events = [(1, 10, CONTENT, 3, 0), (1, 11, CONTENT, 4, 0), (2, 10, CONTENT, 1, 0), (2, 11, CONTENT, 2, 0), *own]
    logs = hand([*events, LATE], [(0, 500, "test", [])], objects=len(codebook.object_ids))
    others = affinities.held_out(logs, codebook, seed=0)
    knows = [bool(fit.read_OP[[6, 7]].any()) for fit in others]
    assert knows == [False, True, True, True]


def test_rows_are_those_of_the_codebook(pairs):
    logs, codebook = pairs
    order = np.random.default_rng(1).permutation(len(codebook.object_ids))
    mixed = replace(
        codebook, codes_OL=codebook.codes_OL[order], object_ids=tuple(codebook.object_ids[i] for i in order)
    )
    made, moved = affinities.fit(logs, codebook, seed=0), affinities.fit(logs, mixed, seed=0)
    products = made.read_OP @ made.live_OP.T
    np.testing.assert_allclose(moved.read_OP @ moved.live_OP.T, products[order][:, order], atol=1e-4)


def test_new_objects_say_nothing_and_the_others_stay(pairs, tmp_path):
    made = affinities.fit(*pairs, seed=0)
    made.save(tmp_path)
    loaded = affinities.load(tmp_path, len(made.read_OP) + 2)
    assert np.array_equal(loaded.read_OP[:-2], made.read_OP) and np.array_equal(loaded.live_OP[:-2], made.live_OP)
    assert not loaded.live_OP[-2:].any() and not loaded.read_OP[-2:].any()


def test_too_few_objects_say_nothing(small, hand):
    logs = hand([(0, 10, CONTENT, 1, 0), LATE], [(0, 500, "test", [])], objects=len(small.codebook.object_ids))
    codebook = replace(small.codebook, object_ids=tuple(logs.objects["object_id"].to_list()))
    assert not affinities.fit(logs, codebook, seed=0).live_OP.any()
