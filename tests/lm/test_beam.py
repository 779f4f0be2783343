"""What a policy promises, against the ranking of all live rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    layout, count = backbone.layout, len(backbone.objects_OL)
    first = layout.words + layout.codes
    ids = draw(
        st.lists(st.integers(0, layout.words - 1) | st.integers(first, first + count - 1), min_size=1, max_size=9)
    )
    asks = []
    for end in sorted(draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=3))):
        objects = np.array(sorted(draw(st.sets(st.integers(0, count - 1), max_size=20))), np.int64)
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        weights = rng.uniform(0.1, 3, len(objects))
        asks.append(BeamRequest(end, trie_of(backbone, objects, weights), objects, rng.integers(0, 4, len(objects))))
    return [(np.array(ids, np.int32), asks)]


def by_hand(backbone, ask, answer, policy):
    """Rows from the best down while neither their first code nor their group is full."""
    kept = []
    for row in answer.rows.tolist():
        code, group = (backbone.objects_OL[ask.objects, 0].tolist(), ask.groups.tolist())
        alike = sum(code[other] == code[row] for other in kept), sum(group[other] == group[row] for other in kept)
        if alike[0] < (policy.per_code or WIDE) and alike[1] < (policy.per_group or WIDE) and len(kept) < policy.top:
            kept.append(row)
    return kept


def test_stopping_early_changes_no_result_and_saves_steps(with_pointer):
    backbone, _ = with_pointer
    searcher, saved = BeamSearcher(backbone), []

    def steps(threads, policy):
        search, count = BeamSearch(searcher, threads, policy), 0
        while search.open_QW.any():
            search.step()
            count += 1
        return count

    @QUICK
    @given(requests(backbone), st.integers(1, 6), st.integers(1, 4))
    def check(threads, width, top):
        whole, short = (searcher(threads, BeamPolicy(width, top=n))[0] for n in (0, top))
        for one, other in zip(whole, short, strict=True):
            assert other.complete and other.rows.tolist() == one.rows[:top].tolist()
            np.testing.assert_allclose(other.log_p, one.log_p[:top], rtol=1e-6)
        saved.append(steps(threads, BeamPolicy(width)) - steps(threads, BeamPolicy(width, top=top)))

    check()
    assert min(saved) == 0 < max(saved)


@pytest.mark.parametrize("limits", [{"per_code": 1}, {"per_group": 2}, {"per_code": 2, "per_group": 1}])
def test_limits_are_those_of_the_ranking_filtered_from_the_best_down(with_pointer, limits):
    backbone, _ = with_pointer
    searcher, cut = BeamSearcher(backbone), []

    @QUICK
    @given(requests(backbone), st.integers(1, 8))
    def check(threads, top):
        policy = BeamPolicy(WIDE, top=top, **limits)
        for ask, got, everything in zip(
            threads[0][1], searcher(threads, policy)[0], searcher(threads, BeamPolicy(WIDE))[0], strict=True
        ):
            assert got.rows.tolist() == by_hand(backbone, ask, everything, policy)
            cut.append(got.rows.tolist() != everything.rows[:top].tolist())

    check()
    assert any(cut)


@pytest.mark.parametrize("name", ["with_pointer", "without_pointer"])
def test_unmasked_scores_are_those_within_the_catalogue(name, request):
    backbone, _ = request.getfixturevalue(name)
    searcher, everything = BeamSearcher(backbone), np.arange(len(backbone.objects_OL))
    catalogue = trie_of(backbone, everything, np.linspace(0.5, 4, len(everything)))

    @QUICK
    @given(requests(backbone), st.integers(1, 5))
    def check(threads, width):
        ids, asks = threads[0]
        whole = searcher([(ids, [BeamRequest(ask.end, catalogue, everything) for ask in asks])], BeamPolicy(WIDE))[0]
        got = searcher(threads, BeamPolicy(width, catalogue=catalogue))[0]
        for ask, one, wide in zip(asks, got, whole, strict=True):
            wanted = dict(zip(wide.rows.tolist(), wide.log_p.tolist(), strict=True))
            objects = ask.objects[one.rows].tolist()
            np.testing.assert_allclose(one.unmasked, [wanted[o] for o in objects], rtol=1e-5, atol=1e-5)
        assert all(one.unmasked is None for one in searcher(threads, BeamPolicy(width))[0])

    check()


def test_an_answer_before_the_end_holds_live_rows_and_says_so(with_pointer):
    backbone, _ = with_pointer
    searcher, seen = BeamSearcher(backbone), []

    @QUICK
    @given(requests(backbone), st.integers(1, 5))
    def check(threads, width):
        search = BeamSearch(searcher, threads, BeamPolicy(width))
        while True:
            places = range(len(search.asks))
            for q, got in zip(places, search.answers(places), strict=True):
                rows = got.rows.tolist()
                assert len(set(rows)) == len(rows) <= width and set(rows) <= set(range(len(search.asks[q].objects)))
                assert got.complete == (not search.open_QW[q].any()) and bool(rows) == bool(len(search.asks[q].objects))
                assert np.all(np.diff(got.log_p) <= 0)
                seen.append(got.complete)
            if not search.open_QW.any():
                break
            search.step()
        for got, wanted in zip(search.answers(places), searcher(threads, BeamPolicy(width))[0], strict=True):
            assert got.rows.tolist() == wanted.rows.tolist()

    check()
    assert {True, False} == set(seen)


def test_descending_follows_the_prior():
    codes, weights = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]), np.array([1.0, 2.0, 4.0, 1.0])
    trie = build(codes, (2, 2, 2), weights)
    leaves, log_p = descend(trie, np.array([0]), 0)
    assert trie.rows(leaves).tolist() == [2]
    np.testing.assert_allclose(np.exp(log_p), [7 / 8 * 4 / 7], rtol=1e-6)
    node = trie.step(np.array([0, 0]), np.array([0, 1]), 0)
    leaves, log_p = descend(trie, node, 1)
    assert trie.rows(leaves).tolist() == [2, 3] and log_p[1] == 0  # the second had no choice


def test_labels_fill_up_in_the_order_of_the_results():
    labels = np.array([5, 5, 7, 5, 7, 8])
    assert diverse([(labels, 1)], 9) == [0, 2, 5] and diverse([(labels, 2)], 3) == [0, 1, 2]
    assert diverse([(labels, 2), (np.array([0, 1, 1, 1, 2, 2]), 1)], 9) == [0, 1, 4]
    assert diverse([(labels[:0], 1)], 3) == []


def test_a_policy_is_checked_against_the_levels():
    assert BeamPolicy(3).widths(2) == [3, 3] and BeamPolicy((4, 2)).widths(2) == [4, 2]
    for wrong in (BeamPolicy(0), BeamPolicy((1, 2, 3)), BeamPolicy((1, 0))):
        with pytest.raises(AssertionError, match="widths"):
            wrong.widths(2)
    assert BeamResult(np.zeros(0, np.int64), np.zeros(0, np.float32)).complete
