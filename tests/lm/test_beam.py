"""Beam policies against the ranking of all live rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.errors import InputError
from leadre.lm.beam import BeamPolicy, BeamRequest, BeamResult, descend, diverse
from leadre.lm.decode import BeamSearch, BeamSearcher
from leadre.semid.trie import build

QUICK = settings(max_examples=25, deadline=None, derandomize=True)
WIDE = 64


def trie_of(backbone, objects, weights=None):
    codes = backbone.objects_OL[objects].numpy() - np.array(backbone.layout.offsets[:-1])
    return build(codes, backbone.layout.sizes, weights)


@st.composite
def requests(draw, backbone):
    """A prompt with objects in it, and up to three requests with live sets, weights and groups of their own."""
    layout = backbone.layout
    count = len(backbone.objects_OL)
    first = layout.words + layout.codes
    ids = draw(
        st.lists(st.integers(0, layout.words - 1) | st.integers(first, first + count - 1), min_size=1, max_size=9)
    )
    beam_requests = []
    for end in sorted(draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=3))):
        objects = np.array(sorted(draw(st.sets(st.integers(0, count - 1), max_size=20))), np.int64)
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        weights = rng.uniform(0.1, 3, len(objects))
        beam_requests.append(
            BeamRequest(end, trie_of(backbone, objects, weights), objects, rng.integers(0, 4, len(objects)))
        )
    return [(np.array(ids, np.int32), beam_requests)]


def filtered_ranking(backbone, request, ranking, policy):
    """Rows from the best down while neither their first code nor their group is full."""
    kept = []
    for row in ranking.rows.tolist():
        code = backbone.objects_OL[request.objects, 0].tolist()
        group = request.groups.tolist()
        of_code = sum(code[other] == code[row] for other in kept)
        of_group = sum(group[other] == group[row] for other in kept)
        if of_code < (policy.per_code or WIDE) and of_group < (policy.per_group or WIDE) and len(kept) < policy.top:
            kept.append(row)
    return kept


def test_early_stop_changes_no_result_and_saves_steps(with_pointer):
    backbone, _ = with_pointer
    searcher = BeamSearcher(backbone)
    saved = []

    def steps(threads, policy):
        search = BeamSearch(searcher, threads, policy)
        search.prefill()
        count = 0
        while search.open_QW.any():
            search.step()
            count += 1
        return count

    @QUICK
    @given(requests(backbone), st.integers(1, 6), st.integers(1, 4))
    def check(threads, width, top):
        whole, short = (searcher(threads, BeamPolicy(width, top=n))[0] for n in (0, top))
        for full, cut in zip(whole, short, strict=True):
            assert cut.complete and cut.rows.tolist() == full.rows[:top].tolist()
            np.testing.assert_allclose(cut.log_p, full.log_p[:top], rtol=1e-6)
        saved.append(steps(threads, BeamPolicy(width)) - steps(threads, BeamPolicy(width, top=top)))

    check()
    objects = np.arange(len(backbone.objects_OL))
    for n in range(20):  # few of the drawn requests can end early; these have one likely object among many
        weights = np.where(objects == n, 1e6, 1.0)
        threads = [(np.arange(4, dtype=np.int32), [BeamRequest(3, trie_of(backbone, objects, weights), objects)])]
        saved.append(steps(threads, BeamPolicy(6)) - steps(threads, BeamPolicy(6, top=1)))
    assert min(saved) == 0 < max(saved)


@pytest.mark.parametrize("limits", [{"per_code": 1}, {"per_group": 2}, {"per_code": 2, "per_group": 1}])
def test_limits_filter_the_full_ranking_from_the_best_down(with_pointer, limits):
    backbone, _ = with_pointer
    searcher = BeamSearcher(backbone)
    cut = []

    @QUICK
    @given(requests(backbone), st.integers(1, 8))
    def check(threads, top):
        policy = BeamPolicy(WIDE, top=top, **limits)
        for request, result, everything in zip(
            threads[0][1], searcher(threads, policy)[0], searcher(threads, BeamPolicy(WIDE))[0], strict=True
        ):
            assert result.rows.tolist() == filtered_ranking(backbone, request, everything, policy)
            cut.append(result.rows.tolist() != everything.rows[:top].tolist())

    check()
    assert any(cut)


@pytest.mark.parametrize("name", ["with_pointer", "without_pointer"])
def test_unmasked_log_p_is_that_within_the_catalogue(name, request):
    backbone, _ = request.getfixturevalue(name)
    searcher = BeamSearcher(backbone)
    everything = np.arange(len(backbone.objects_OL))
    catalogue = trie_of(backbone, everything, np.linspace(0.5, 4, len(everything)))

    @QUICK
    @given(requests(backbone), st.integers(1, 5))
    def check(threads, width):
        ids, beam_requests = threads[0]
        whole = searcher(
            [(ids, [BeamRequest(request.end, catalogue, everything) for request in beam_requests])], BeamPolicy(WIDE)
        )[0]
        results = searcher(threads, BeamPolicy(width, catalogue=catalogue))[0]
        for request, result, wide in zip(beam_requests, results, whole, strict=True):
            expected = dict(zip(wide.rows.tolist(), wide.log_p.tolist(), strict=True))
            objects = request.objects[result.rows].tolist()
            np.testing.assert_allclose(result.unmasked, [expected[o] for o in objects], rtol=1e-5, atol=1e-5)
        assert all(result.unmasked is None for result in searcher(threads, BeamPolicy(width))[0])

    check()


def test_results_before_the_end_are_live_and_marked_incomplete(with_pointer):
    backbone, _ = with_pointer
    searcher = BeamSearcher(backbone)
    seen = []

    @QUICK
    @given(requests(backbone), st.integers(1, 5))
    def check(threads, width):
        search = BeamSearch(searcher, threads, BeamPolicy(width))
        search.prefill()
        while True:
            indices = range(len(search.requests))
            for q, result in zip(indices, search.results(indices), strict=True):
                rows = result.rows.tolist()
                assert len(set(rows)) == len(rows) <= width and set(rows) <= set(range(len(search.requests[q].objects)))
                assert result.complete == (not search.open_QW[q].any())
                assert bool(rows) == bool(len(search.requests[q].objects))
                assert np.all(np.diff(result.log_p) <= 0)
                seen.append(result.complete)
            if not search.open_QW.any():
                break
            search.step()
        for result, expected in zip(search.results(indices), searcher(threads, BeamPolicy(width))[0], strict=True):
            assert result.rows.tolist() == expected.rows.tolist()

    check()
    assert {True, False} == set(seen)


def test_descent_follows_the_prior():
    codes = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])
    trie = build(codes, (2, 2, 2), np.array([1.0, 2.0, 4.0, 1.0]))
    leaves, log_p = descend(trie, np.array([0]), 0)
    assert trie.rows(leaves).tolist() == [2]
    np.testing.assert_allclose(np.exp(log_p), [7 / 8 * 4 / 7], rtol=1e-6)
    node = trie.step(np.array([0, 0]), np.array([0, 1]), 0)
    leaves, log_p = descend(trie, node, 1)
    assert trie.rows(leaves).tolist() == [2, 3] and log_p[1] == 0  # one row is below the second state


def test_limits_keep_the_first_results_of_each_label():
    labels = np.array([5, 5, 7, 5, 7, 8])
    assert diverse([(labels, 1)], 9) == [0, 2, 5] and diverse([(labels, 2)], 3) == [0, 1, 2]
    assert diverse([(labels, 2), (np.array([0, 1, 1, 1, 2, 2]), 1)], 9) == [0, 1, 4]
    assert diverse([(labels[:0], 1)], 3) == []


def test_policy_widths_must_match_the_levels():
    assert BeamPolicy(3).widths(2) == [3, 3] and BeamPolicy((4, 2)).widths(2) == [4, 2]
    for policy in (BeamPolicy(0), BeamPolicy((1, 2, 3)), BeamPolicy((1, 0))):
        with pytest.raises(InputError, match="widths"):
            policy.widths(2)
    assert BeamResult(np.zeros(0, np.int64), np.zeros(0, np.float32)).complete
