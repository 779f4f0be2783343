"""Steps of fixed shapes against steps over open rows; on a GPU, captured and replayed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearch, BeamSearcher
from leadre.lm.runner import PackedRunner
from leadre.semid.trie import build

QUICK = settings(max_examples=20, deadline=None, derandomize=True)


@st.composite
def threads(draw, backbone):
    """Up to three threads with up to three requests each, over live sets of their own."""
    layout = backbone.layout
    count = len(backbone.objects_OL)
    first = layout.words + layout.codes
    drawn = []
    # half of the entries are objects, which the pointer may repeat
    entry = st.integers(0, first - 1) | st.integers(first, first + count - 1)
    for _ in range(draw(st.integers(1, 3))):
        ids = np.array(draw(st.lists(entry, min_size=1, max_size=10)), np.int32)
        beam_requests = []
        for end in sorted(draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=3))):
            objects = np.array(sorted(draw(st.sets(st.integers(0, count - 1), max_size=25))), np.int64)
            codes = backbone.objects_OL.cpu()[objects].numpy() - np.array(layout.offsets[:-1])
            seed = draw(st.none() | st.integers(0, 99))
            noise_T = np.random.default_rng(seed or 0).normal(size=len(ids)).astype(np.float32)
            pointer_bias_T = None if seed is None else noise_T
            mask = build(codes, layout.sizes)
            beam_requests.append(BeamRequest(end, mask, objects, pointer_bias_T=pointer_bias_T))
        drawn.append((ids, beam_requests))
    return drawn


def assert_equal_results(searchers, threads, policy, rtol=1e-6):
    fixed, plain = ([result for results in search(threads, policy) for result in results] for search in searchers)
    for result, expected in zip(fixed, plain, strict=True):
        assert result.rows.tolist() == expected.rows.tolist()
        np.testing.assert_allclose(result.log_p, expected.log_p, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", ["with_pointer", "without_pointer"])
def test_fixed_shapes_change_no_result(name, request):
    backbone, _ = request.getfixturevalue(name)
    searchers = BeamSearcher(backbone, graphs=True), BeamSearcher(backbone)

    @QUICK
    @given(threads(backbone), st.lists(st.integers(1, 6), min_size=3, max_size=3), st.integers(0, 3))
    def check(threads, widths, top):
        assert_equal_results(searchers, threads, BeamPolicy(tuple(widths), top=top))

    check()
    free = searchers[0].graphs._free
    assert all(len(steps) == 1 for steps in free.values())  # reused, and always released


def test_concurrent_searches_share_no_buffers(with_pointer):
    backbone, _ = with_pointer
    searcher = BeamSearcher(backbone, graphs=True)
    rng = np.random.default_rng(0)
    objects = np.arange(20)
    trie = build(backbone.objects_OL[objects].numpy() - np.array(backbone.layout.offsets[:-1]), backbone.layout.sizes)
    batches = [[(rng.integers(0, 300, 7).astype(np.int32), [BeamRequest(6, trie, objects)])] for _ in range(2)]
    both = [BeamSearch(searcher, threads, BeamPolicy(4)) for threads in batches]
    for search in both:
        search.prefill()
    while any(search.open_QW.any() for search in both):
        for search in both:
            if search.open_QW.any():
                search.step()
    for search, threads in zip(both, batches, strict=True):
        expected = BeamSearcher(backbone)(threads, BeamPolicy(4))[0][0]
        assert search.results([0])[0].rows.tolist() == expected.rows.tolist()
    dropped = BeamSearch(searcher, batches[0], BeamPolicy(4))
    dropped.prefill()
    dropped.close(0)
    assert sum(map(len, searcher.graphs._free.values())) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: a CPU captures no graph")
@pytest.mark.parametrize("pointer", [True, False])
def test_replayed_graph_gives_the_results_of_plain_steps(small, pointer):
    backbone = small.backbone(seed=3, pointer=pointer).to("cuda")
    runner = PackedRunner(backbone.body, torch.float32)
    captured = BeamSearcher(backbone, runner)
    plain = BeamSearcher(backbone, runner, graphs=False)
    assert captured.graphs is not None

    @QUICK
    @given(threads(backbone))
    def check(threads):
        assert_equal_results((captured, plain), threads, BeamPolicy(30), rtol=1e-3)

    check()
    assert all(set(step.graphs) == {1, 2} for steps in captured.graphs._free.values() for step in steps)
