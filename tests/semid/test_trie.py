"""The trie against a set of paths held in plain Python."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.semid import trie as tries

CODES = np.array([[1, 0, 2], [0, 1, 1], [1, 0, 0], [1, 2, 0]])
SIZES = (2, 3, 4)
NO = -math.inf


def draw_paths(seed: int, rows: int, sizes: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    codes = np.unique(np.stack([rng.integers(0, size, rows) for size in sizes], axis=1), axis=0)
    return rng.permutation(codes)


def walk(trie: tries.Trie, path: np.ndarray) -> int:
    state = trie.roots(1)
    for level, code in enumerate(path):
        state = trie.step(state, np.array([code]), level)
    return int(state[0])


def test_flat_arrays_by_hand():
    trie = tries.build(CODES, SIZES)
    # depth 1: 0, 1 (nodes 1, 2); depth 2: 01, 10, 12 (nodes 3..5); leaves: 011, 100, 102, 120 (nodes 6..9)
    assert trie.level_starts.tolist() == [0, 1, 3, 6, 10]
    assert trie.child_offsets.tolist() == [0, 2, 3, 5, 6, 8, 9]  # the leaves have no children
    assert trie.child_codes.tolist() == [0, 1, 1, 0, 2, 1, 0, 2, 0]
    assert trie.leaf_row.tolist() == [1, 2, 0, 3]


def test_prior_step_and_rows_by_hand():
    trie = tries.build(CODES, SIZES)
    states = np.array([2, tries.DEAD, 1])
    assert trie.log_prior(states, 1).tolist() == [[0, NO, 0], [NO] * 3, [NO, 0, NO]]
    assert trie.step(states, np.array([2, 0, 0]), 1).tolist() == [5, tries.DEAD, tries.DEAD]
    assert trie.rows(np.array([8, tries.DEAD, 6])).tolist() == [0, -1, 1]


def test_a_code_outside_its_level_leads_nowhere():
    trie = tries.build(CODES, SIZES)
    assert trie.step(np.array([1, 1]), np.array([4, -1]), 1).tolist() == [tries.DEAD, tries.DEAD]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 60),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5).map(tuple),
)
def test_agrees_with_a_set_of_prefixes(seed, rows, sizes):
    codes = draw_paths(seed, rows, sizes)
    trie = tries.build(codes, sizes)
    live = {tuple(path[:length]) for path in codes.tolist() for length in range(len(sizes) + 1)}
    for row, path in enumerate(codes):
        state = trie.roots(1)
        for level, code in enumerate(path):
            mask = np.isfinite(trie.log_prior(state, level)[0])
            prefix = tuple(path[:level].tolist())
            assert mask.tolist() == [(*prefix, c) in live for c in range(sizes[level])]
            dead_ends = np.flatnonzero(~mask)
            steps = trie.step(np.repeat(state, len(dead_ends)), dead_ends, level)
            assert np.all(steps == tries.DEAD)
            state = trie.step(state, np.array([code]), level)
        assert trie.rows(state).tolist() == [row]


def test_row_order_changes_only_leaf_row():
    codes = draw_paths(1, 200, (8, 8, 8))
    shuffled = np.random.default_rng(2).permutation(len(codes))
    single = tries.build(codes, (8, 8, 8))
    other = tries.build(codes[shuffled], (8, 8, 8))
    assert np.array_equal(single.child_codes, other.child_codes)
    assert np.array_equal(single.child_offsets, other.child_offsets)
    assert np.array_equal(single.leaf_row, shuffled[other.leaf_row])


def test_sizes_beyond_63_bits_sort_the_same_way():
    codes = draw_paths(3, 300, (7, 7, 7, 7))
    small = tries.build(codes, (7, 7, 7, 7))
    huge = tries.build(codes, (2**20,) * 4)
    assert np.array_equal(small.leaf_row, huge.leaf_row)
    assert walk(huge, codes[5]) == walk(small, codes[5])


def test_path_priors_hold_the_target_and_its_siblings():
    trie = tries.build(CODES, SIZES)
    priors = tries.path_priors(trie, CODES[[0, 3]])
    assert [prior.shape for prior in priors] == [(2, 2), (2, 3), (2, 4)]
    assert priors[1].tolist() == [[0, NO, 0]] * 2
    assert priors[2].tolist() == [[0, NO, 0, NO], [0, NO, NO, NO]]


def test_rows_below_by_hand():
    trie = tries.build(CODES, SIZES)
    assert trie.rows_below(np.array([0, 1, 2, 4, 8, tries.DEAD])).tolist() == [4, 1, 3, 2, 1, 0]


def test_mass_by_hand():
    trie = tries.build(CODES, SIZES, np.array([1.0, 4.0, 2.0, 0.5]))
    # leaves in order 011, 100, 102, 120 weigh 4, 2, 1, 0.5
    expected = [7.5, 4, 3.5, 4, 3, 0.5, 4, 2, 1, 0.5]
    assert trie.mass.tolist() == pytest.approx(expected)
    assert trie.masses(np.array([2, tries.DEAD]), 1).tolist() == [[3, 0, 0.5], [0, 0, 0]]
    assert np.exp(trie.log_prior(np.array([2]), 1)[0]).tolist() == pytest.approx([3, 0, 0.5])


def test_zero_scores_give_every_row_its_share_of_the_weight():
    codes = draw_paths(4, 300, (6, 7, 8))
    weights = np.random.default_rng(5).gamma(0.3, size=len(codes)) + 1e-6
    trie = tries.build(codes, (6, 7, 8), weights)
    log_p = np.zeros(len(codes))
    for level, prior in enumerate(tries.path_priors(trie, codes)):
        log_p += prior[np.arange(len(codes)), codes[:, level]] - np.logaddexp.reduce(prior, axis=1)
    np.testing.assert_allclose(np.exp(log_p), weights / weights.sum(), rtol=1e-5)


def test_build_refuses_a_row_without_weight():
    with pytest.raises(AssertionError, match="without weight"):
        tries.build(CODES, SIZES, np.array([1.0, 0.0, 2.0, 0.5]))


def test_path_priors_refuse_a_target_that_is_not_live():
    with pytest.raises(AssertionError, match="1 of 2 targets are not in the trie"):
        tries.path_priors(tries.build(CODES, SIZES), np.array([[1, 0, 2], [0, 0, 0]]))


def test_build_refuses_a_path_twice_and_a_code_outside():
    with pytest.raises(AssertionError, match="2 rows share 1 paths"):
        tries.build(np.array([[1, 1], [1, 1]]), (2, 2))
    with pytest.raises(AssertionError, match="outside their level"):
        tries.build(np.array([[1, 2]]), (2, 2))


def test_codes_take_the_smallest_type_that_torch_knows():
    kinds = [tries.build(CODES, (size,) * 3).child_codes.dtype for size in (256, 257, 2**15, 2**15 + 1)]
    assert kinds == [np.uint8, np.int16, np.int16, np.int32]


def test_rows_may_have_numbers_of_their_own():
    trie = tries.build(CODES, SIZES, rows_N=np.array([70, 10, 90, 30]))
    assert trie.rows(np.array([6, 7, 8, 9, tries.DEAD])).tolist() == [10, 90, 70, 30, -1]


def test_switched_off_and_on_by_hand():
    trie = tries.build(CODES, SIZES, np.array([1.0, 4.0, 2.0, 0.5]))
    trie.set_live(CODES[[1, 2]], live=False)  # 011, alone below 0; 100, beside 102
    assert trie.rows_beneath.tolist() == [2, 0, 2, 0, 1, 1, 0, 0, 1, 1]
    assert trie.mass.tolist() == [1.5, 0, 1.5, 0, 1, 0.5, 0, 0, 1, 0.5]
    assert trie.step(trie.roots(2), np.array([0, 1]), 0).tolist() == [tries.DEAD, 2]
    assert trie.log_prior(trie.roots(1), 0).tolist() == [[NO, pytest.approx(math.log(1.5))]]
    assert trie.nodes(CODES[:2]).T.tolist() == [[0, 2, 4, 8], [0, 1, 3, 6]]  # live or not
    trie.set_live(CODES[[2]], live=True, weights_N=np.array([8.0]))
    assert trie.mass.tolist() == [9.5, 0, 9.5, 0, 9, 0.5, 0, 8, 1, 0.5]
    with pytest.raises(AssertionError, match="not in the trie"):
        trie.set_live(np.array([[0, 0, 0]]), live=False)


def test_empty_inventory():
    trie = tries.build(np.zeros((0, 3), dtype=np.int32), SIZES)
    assert np.all(trie.log_prior(trie.roots(2), 0) == NO)
    assert trie.step(trie.roots(2), np.array([0, 1]), 0).tolist() == [tries.DEAD, tries.DEAD]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 60),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5).map(tuple),
    weighted=st.booleans(),
)
def test_without_rows_and_with_other_weights_agrees_with_a_new_trie(seed, rows, sizes, weighted):
    codes = draw_paths(seed, rows, sizes)
    rng = np.random.default_rng(seed)
    gone = rng.choice(len(codes), rng.integers(0, len(codes) + 1), replace=False)
    weights = rng.random(len(codes)) + 0.1
    trie = tries.build(codes, sizes)
    whole = tries.weighed(trie, weights) if weighted else trie
    before = (whole.rows_beneath.copy(), whole.leaf_row.copy())
    fewer = tries.without(whole, gone)
    left = np.delete(codes, gone, axis=0)
    expected = tries.build(left, sizes, np.delete(weights, gone) if weighted else None)
    states = fewer.roots(len(codes))
    expected_states = expected.roots(len(codes))
    for level in range(len(sizes)):
        np.testing.assert_allclose(
            fewer.log_prior(states, level), expected.log_prior(expected_states, level), rtol=1e-5, atol=1e-6
        )
        states = fewer.step(states, codes[:, level], level)
        expected_states = expected.step(expected_states, codes[:, level], level)
        assert np.array_equal(fewer.rows_below(states), expected.rows_below(expected_states))
    assert np.array_equal(fewer.rows(states), expected.rows(expected_states))
    assert np.array_equal(whole.rows_beneath, before[0]) and np.array_equal(whole.leaf_row, before[1])
