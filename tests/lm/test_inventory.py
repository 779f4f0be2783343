"""Beam search over a live inventory against a trie built from scratch of the same objects."""

import numpy as np
import pytest

from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearch, BeamSearcher
from leadre.semid.inventory import Inventory
from leadre.semid.trie import DEAD, build

WEIGHTED = {"weighted": True, "unweighted": False}


class Catalogue:
    """All objects of a backbone in an inventory whose row numbers are the object indices."""

    def __init__(self, backbone, seed, weighted):
        self.rng = np.random.default_rng(seed)
        self.layout = backbone.layout
        self.codes_OL = backbone.objects_OL.numpy() - np.array(backbone.layout.offsets[:-1])
        count = len(self.codes_OL)
        self.weights_O = self.rng.gamma(1.0, size=count) + 1e-3 if weighted else None
        base = count // 2
        self.inventory = Inventory(self.codes_OL[:base], self.layout.sizes, self.of(slice(base)))
        self.inventory.add(self.codes_OL[base:], self.of(slice(base, count)))

    def of(self, objects):
        return None if self.weights_O is None else self.weights_O[objects]

    def threads(self, mask, objects):
        """The same request over a mask whose rows are objects, and over a trie built from scratch."""
        fresh = build(self.codes_OL[objects], self.layout.sizes, self.of(objects))
        words = self.layout.words + self.layout.codes
        entries = np.append(self.rng.integers(0, self.layout.words, 4), words + self.rng.choice(len(self.codes_OL), 5))
        ids = self.rng.permutation(entries).astype(np.int32)
        every = np.arange(len(self.codes_OL))
        return [(ids, [BeamRequest(len(ids) - 1, mask, every), BeamRequest(len(ids) - 1, fresh, objects)])]


@pytest.mark.parametrize("weighted", WEIGHTED.values(), ids=WEIGHTED)
@pytest.mark.parametrize("width", [3, 30])
def test_results_are_those_of_a_fresh_trie(with_pointer, weighted, width):
    backbone, _ = with_pointer
    catalogue = Catalogue(backbone, width, weighted)
    inventory = catalogue.inventory
    every = np.arange(len(catalogue.codes_OL))
    live = np.ones(len(every), np.bool_)
    for turn in range(4):
        paused, resumed = (catalogue.rng.choice(every, 6, replace=False) for _ in range(2))
        inventory.pause(paused)
        inventory.resume(resumed)
        live[paused], live[resumed] = False, True
        if turn == 2:
            inventory.merge()
        allowed = catalogue.rng.choice(every, 20, replace=False)
        denied = catalogue.rng.choice(every, 8, replace=False)
        cases = [
            (inventory.live, live),
            (inventory.restrict(allowed), live & np.isin(every, allowed)),
            (inventory.restrict(denied=denied), live & ~np.isin(every, denied)),
            (inventory.restrict(allowed, denied), live & np.isin(every, allowed) & ~np.isin(every, denied)),
        ]
        for mask, shown in cases:
            objects = np.flatnonzero(shown)
            ((result, expected),) = BeamSearcher(backbone)(catalogue.threads(mask, objects), BeamPolicy(width))
            assert bool(len(result.rows)) == bool(len(objects))
            assert result.rows.tolist() == objects[expected.rows].tolist()
            np.testing.assert_allclose(result.log_p, expected.log_p, rtol=1e-5, atol=1e-6)
            assert shown[result.rows].all()


def test_an_ad_paused_between_two_levels_is_not_returned(with_pointer):
    backbone, _ = with_pointer
    catalogue = Catalogue(backbone, 0, weighted=False)
    mask = catalogue.inventory.live
    states = mask.roots(len(catalogue.codes_OL))
    for level in range(mask.depth):
        if level == mask.depth - 1:
            catalogue.inventory.pause(np.array([3, len(catalogue.codes_OL) - 1]))
        states = mask.step(states, catalogue.codes_OL[:, level], level)
    assert np.flatnonzero(states == DEAD).tolist() == [3, len(catalogue.codes_OL) - 1]


def test_ads_paused_during_a_search_are_not_in_its_results(with_pointer):
    backbone, _ = with_pointer
    catalogue = Catalogue(backbone, 1, weighted=True)
    every = np.arange(len(catalogue.codes_OL))
    ((ids, (request, _)),) = catalogue.threads(catalogue.inventory.live, every)
    search = BeamSearch(BeamSearcher(backbone), [(ids, [request])], BeamPolicy(12))
    search.prefill()
    (before,) = search.results([0])
    catalogue.inventory.pause(before.rows[:4])
    (after,) = search.results([0])
    assert len(after.rows) and not np.isin(after.rows, before.rows[:4]).any()
    catalogue.inventory.pause(every)
    (nothing,) = search.results([0])
    assert not len(nothing.rows)
    while search.open_QW.any():
        search.step()
    assert not len(search.results([0])[0].rows)
