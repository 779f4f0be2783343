"""Beam search over a live inventory finds what it finds over a trie built anew of the same objects."""

import numpy as np
import pytest

from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearch, BeamSearcher
from leadre.semid.inventory import Inventory
from leadre.semid.trie import DEAD, build

WEIGHTED = {"weighted": True, "unweighted": False}


class Catalogue:
    """All objects of a backbone; rows of its inventory are objects, as each gets its row in the order of its number."""

    def __init__(self, backbone, seed, weighted):
        self.rng, self.layout = np.random.default_rng(seed), backbone.layout
        self.codes_OL = backbone.objects_OL.numpy() - np.array(backbone.layout.offsets[:-1])
        count, self.ids = len(self.codes_OL), np.zeros(0, np.int32)
        self.weights_O = self.rng.gamma(1.0, size=count) + 1e-3 if weighted else None
        base = count // 2
        self.inventory = Inventory(self.codes_OL[:base], self.layout.sizes, self.of(slice(base)))
        self.inventory.add(self.codes_OL[base:], self.of(slice(base, count)))

    def of(self, objects):
        return None if self.weights_O is None else self.weights_O[objects]

    def asks(self, mask, objects):
        """The same request over a mask whose rows are objects, and over a trie built anew."""
        fresh = build(self.codes_OL[objects], self.layout.sizes, self.of(objects))
        words = self.layout.words + self.layout.codes
        entries = np.append(self.rng.integers(0, self.layout.words, 4), words + self.rng.choice(len(self.codes_OL), 5))
        ids = self.rng.permutation(entries).astype(np.int32)
        every = np.arange(len(self.codes_OL))
        return [(ids, [BeamRequest(len(ids) - 1, mask, every), BeamRequest(len(ids) - 1, fresh, objects)])]


@pytest.mark.parametrize("weighted", WEIGHTED.values(), ids=WEIGHTED)
@pytest.mark.parametrize("width", [3, 30])
def test_beams_are_those_of_a_fresh_trie(with_pointer, weighted, width):
    backbone, _ = with_pointer
    made = Catalogue(backbone, width, weighted)
    inventory, every = made.inventory, np.arange(len(made.codes_OL))
    live = np.ones(len(every), np.bool_)
    for turn in range(4):
        paused, resumed = (made.rng.choice(every, 6, replace=False) for _ in range(2))
        inventory.pause(paused)
        inventory.resume(resumed)
        live[paused], live[resumed] = False, True
        if turn == 2:
            inventory.merge()
        allowed, denied = made.rng.choice(every, 20, replace=False), made.rng.choice(every, 8, replace=False)
        cases = [
            (inventory.live, live),
            (inventory.restrict(allowed), live & np.isin(every, allowed)),
            (inventory.restrict(denied=denied), live & ~np.isin(every, denied)),
            (inventory.restrict(allowed, denied), live & np.isin(every, allowed) & ~np.isin(every, denied)),
        ]
        for mask, shown in cases:
            objects = np.flatnonzero(shown)
            ((got, wanted),) = BeamSearcher(backbone)(made.asks(mask, objects), BeamPolicy(width))
            assert bool(len(got.rows)) == bool(len(objects))
            assert got.rows.tolist() == objects[wanted.rows].tolist()
            np.testing.assert_allclose(got.log_p, wanted.log_p, rtol=1e-5, atol=1e-6)
            assert shown[got.rows].all()


def test_an_ad_paused_between_two_levels_is_not_returned(with_pointer):
    backbone, _ = with_pointer
    made = Catalogue(backbone, 0, weighted=False)
    mask = made.inventory.live
    states = mask.roots(len(made.codes_OL))
    for level in range(mask.depth):
        if level == mask.depth - 1:
            made.inventory.pause(np.array([3, len(made.codes_OL) - 1]))
        states = mask.step(states, made.codes_OL[:, level], level)
    assert np.flatnonzero(states == DEAD).tolist() == [3, len(made.codes_OL) - 1]


def test_what_is_paused_under_a_search_is_not_in_its_answers(with_pointer):
    backbone, _ = with_pointer
    made = Catalogue(backbone, 1, weighted=True)
    every = np.arange(len(made.codes_OL))
    ((ids, (ask, _)),) = made.asks(made.inventory.live, every)
    search = BeamSearch(BeamSearcher(backbone), [(ids, [ask])], BeamPolicy(12))
    (before,) = search.answers([0])
    made.inventory.pause(before.rows[:4])
    (after,) = search.answers([0])
    assert len(after.rows) and not np.isin(after.rows, before.rows[:4]).any()
    made.inventory.pause(every)
    (nothing,) = search.answers([0])
    assert not len(nothing.rows)
    while search.open_QW.any():
        search.step()
    assert not len(search.answers([0])[0].rows)
