"""The step in fixed shapes against the step over open rows; on a GPU, captured and replayed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearch, BeamSearcher
from leadre.lm.runner import Packed
from leadre.semid.trie import build

QUICK = settings(max_examples=20, deadline=None, derandomize=True)


@st.composite
def threads(draw, backbone):
    """Up to three threads with up to three requests each, over live sets of their own."""
    layout, count, made = backbone.layout, len(backbone.objects_OL), []
    first = layout.words + layout.codes
    entry = st.integers(0, first - 1) | st.integers(
        first, first + count - 1
    )  # as many objects, to be repeated, as else
    for _ in range(draw(st.integers(1, 3))):
        ids = np.array(draw(st.lists(entry, min_size=1, max_size=10)), np.int32)
        asks = []
        for end in sorted(draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=3))):
            objects = np.array(sorted(draw(st.sets(st.integers(0, count - 1), max_size=25))), np.int64)
            codes = backbone.objects_OL.cpu()[objects].numpy() - np.array(layout.offsets[:-1])
            seed = draw(st.none() | st.integers(0, 99))
            log_worth_T = None if seed is None else np.random.default_rng(seed).normal(size=len(ids)).astype(np.float32)
            asks.append(BeamRequest(end, build(codes, layout.sizes), objects, log_worth_T=log_worth_T))
        made.append((ids, asks))
    return made


def agree(searchers, asked, policy, rtol=1e-6):
    one, other = ([answer for answers in search(asked, policy) for answer in answers] for search in searchers)
    for got, wanted in zip(one, other, strict=True):
        assert got.rows.tolist() == wanted.rows.tolist()
        np.testing.assert_allclose(got.log_p, wanted.log_p, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", ["with_pointer", "without_pointer"])
def test_fixed_shapes_change_no_answer(name, request):
    backbone, _ = request.getfixturevalue(name)
    searchers = BeamSearcher(backbone, graphs=True), BeamSearcher(backbone)

    @QUICK
    @given(threads(backbone), st.lists(st.integers(1, 6), min_size=3, max_size=3), st.integers(0, 3))
    def check(asked, widths, top):
        agree(searchers, asked, BeamPolicy(tuple(widths), top=top))

    check()
    free = searchers[0].graphs._free
    assert all(len(buckets) == 1 for buckets in free.values())  # used again, and always given back


def test_two_searches_at_a_time_do_not_meet(with_pointer):
    backbone, _ = with_pointer
    searcher, rng = BeamSearcher(backbone, graphs=True), np.random.default_rng(0)
    objects = np.arange(20)
    trie = build(backbone.objects_OL[objects].numpy() - np.array(backbone.layout.offsets[:-1]), backbone.layout.sizes)
    asked = [[(rng.integers(0, 300, 7).astype(np.int32), [BeamRequest(6, trie, objects)])] for _ in range(2)]
    both = [BeamSearch(searcher, each, BeamPolicy(4)) for each in asked]
    while any(search.open_QW.any() for search in both):
        for search in both:
            if search.open_QW.any():
                search.step()
    for search, each in zip(both, asked, strict=True):
        wanted = BeamSearcher(backbone)(each, BeamPolicy(4))[0][0]
        assert search.answers([0])[0].rows.tolist() == wanted.rows.tolist()
    dropped = BeamSearch(searcher, asked[0], BeamPolicy(4))
    dropped.close(0)
    assert sum(map(len, searcher.graphs._free.values())) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU: there is nothing to capture without one")
@pytest.mark.parametrize("pointer", [True, False])
def test_a_replayed_graph_gives_the_answers_of_the_host(small, pointer):
    backbone = small.backbone(seed=3, pointer=pointer).to("cuda")
    runner = Packed(backbone.body, torch.float32)
    captured, plain = BeamSearcher(backbone, runner), BeamSearcher(backbone, runner, graphs=False)
    assert captured.graphs is not None

    @QUICK
    @given(threads(backbone))
    def check(asked):
        agree((captured, plain), asked, BeamPolicy(30), rtol=1e-3)

    check()
    assert all(set(each.graphs) == {1, 2} for buckets in captured.graphs._free.values() for each in buckets)
