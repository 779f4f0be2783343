"""Measures against numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre import metrics

# two requests: hits at ranks 1 and 3 of 3 relevant; a hit at rank 2 of 1 relevant
HIT = np.array([[True, False, True, False], [False, True, False, False]])
RELEVANT = np.array([3, 1])


def test_recall_is_capped_by_k_and_by_the_relevant_ads():
    assert metrics.recall_at(HIT, RELEVANT, 1).tolist() == [1.0, 0.0]
    assert metrics.recall_at(HIT, RELEVANT, 2).tolist() == [0.5, 1.0]
    np.testing.assert_allclose(metrics.recall_at(HIT, RELEVANT, 4), [2 / 3, 1.0])
    np.testing.assert_allclose(metrics.recall_at(HIT, RELEVANT, 10), [2 / 3, 1.0])  # the lists end at 4


def test_ndcg_by_hand():
    third = 1 / np.log2(4)
    ideal = 1 + 1 / np.log2(3) + third
    np.testing.assert_allclose(metrics.ndcg_at(HIT, RELEVANT, 4), [(1 + third) / ideal, 1 / np.log2(3)])
    np.testing.assert_allclose(metrics.ndcg_at(HIT, RELEVANT, 10), [(1 + third) / ideal, 1 / np.log2(3)])
    np.testing.assert_allclose(metrics.ndcg_at(HIT, RELEVANT, 1), [1.0, 0.0])


def test_a_request_without_a_relevant_ad_is_refused():
    with pytest.raises(AssertionError, match="no recall"):
        metrics.recall_at(HIT, np.array([3, 0]), 10)


def test_value_and_its_ratio_of_sums():
    value = np.array([[5, 0, 7, 0], [0, 2, 0, 0]])
    caught = metrics.value_at(value, 2)
    assert caught.tolist() == [5, 2]
    # a mean over requests would be (5 / 20 + 2 / 2) / 2; the ratio of sums is 7 / 22
    assert metrics.ratio(caught, np.array([20, 2]), np.array([0, 1]), 2).mean == pytest.approx(7 / 22)


def test_ratio_sums_by_user_and_is_zero_without_a_denominator():
    measure = metrics.ratio(np.array([1.0, 0.5, 0.25]), np.ones(3), np.array([1, 1, 0]), 2)
    assert measure.numerator_U.tolist() == [0.25, 1.5] and measure.denominator_U.tolist() == [1.0, 2.0]
    assert measure.mean == pytest.approx(1.75 / 3)
    assert metrics.ratio(np.zeros(1), np.zeros(1), np.zeros(1, dtype=int), 1).mean == 0.0


def test_coverage_counts_shown_ads_once_and_ignores_empty_ranks():
    ads = np.array([[4, 2, -1], [2, 7, 9]])
    assert metrics.coverage_at(ads, np.array([2, 4, 7, 9]), 2) == 0.75
    assert metrics.coverage_at(ads, np.array([2, 4, 7, 9]), 3) == 1.0
    with pytest.raises(AssertionError, match="live nowhere"):
        metrics.coverage_at(ads, np.array([2, 4]), 3)


def test_bootstrap_is_near_the_normal_interval_and_repeats():
    rng = np.random.default_rng(0)
    scores = rng.random(900)
    measure = metrics.ratio(scores, np.ones(900), np.arange(900), 900)
    values = metrics.bootstrap([measure], resamples=2000, seed=1)
    cell = metrics.interval(measure.mean, values[:, 0])
    half = 1.96 * scores.std() / 30
    assert cell["lo"] == pytest.approx(measure.mean - half, abs=0.15 * half)
    assert cell["hi"] == pytest.approx(measure.mean + half, abs=0.15 * half)
    assert (metrics.bootstrap([measure], resamples=2000, seed=1) == values).all()
    assert (metrics.bootstrap([measure], resamples=2000, seed=2) != values).any()


def test_bootstrap_in_blocks_equals_one_block(monkeypatch):
    measure = metrics.ratio(np.random.default_rng(0).random(50), np.ones(50), np.arange(50), 50)
    whole = metrics.bootstrap([measure], resamples=33, seed=4)
    monkeypatch.setattr(metrics, "BLOCK_CELLS", 400)
    np.testing.assert_allclose(metrics.bootstrap([measure], resamples=33, seed=4), whole)


def test_users_are_resampled_not_requests():
    """100 requests of 2 users with constant scores: the resampled means are those of 2 users."""
    measure = metrics.ratio(np.repeat([0.0, 1.0], 50), np.ones(100), np.repeat([0, 1], 50), 2)
    values = metrics.bootstrap([measure], resamples=400, seed=0)[:, 0]
    assert set(values.tolist()) == {0.0, 0.5, 1.0}


def test_a_paired_difference_is_narrower_than_its_parts():
    rng = np.random.default_rng(5)
    hard = rng.random(400)
    ours = metrics.ratio(hard, np.ones(400), np.arange(400), 400)
    rival = metrics.ratio(hard - 0.01, np.ones(400), np.arange(400), 400)
    values = metrics.bootstrap([ours, rival], resamples=500, seed=0)
    diff = metrics.interval(rival.mean - ours.mean, values[:, 1] - values[:, 0])
    assert diff["mean"] == pytest.approx(-0.01) and diff["hi"] == pytest.approx(-0.01)
    assert not metrics.is_tie(diff)
    own = metrics.interval(rival.mean, values[:, 1])
    assert own["lo"] < ours.mean < own["hi"]  # unpaired, the two could not be told apart
    assert metrics.is_tie({"mean": 0.1, "lo": -0.1, "hi": 0.3})


def test_ties_are_broken_by_the_key():
    scores = np.array([1.0, 3.0, 1.0, 3.0, 0.0], dtype=np.float32)
    assert metrics.top_places(scores, np.array([4, 3, 0, 1, 2]), 4).tolist() == [3, 1, 2, 0]
    assert metrics.top_places(scores, np.array([0, 1, 4, 3, 2]), 9).tolist() == [1, 3, 0, 2, 4]


def test_reciprocal_rank_fusion_by_hand():
    items, score = metrics.reciprocal_rank_fusion([np.array([7, 8, 9]), np.array([9, 7])])
    assert items.tolist() == [7, 9, 8]
    np.testing.assert_allclose(score, [1 / 61 + 1 / 62, 1 / 63 + 1 / 61, 1 / 62])
    assert metrics.reciprocal_rank_fusion([np.array([3, 1]), np.array([], dtype=int)])[0].tolist() == [3, 1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(1, 25), st.integers(0, 5))
def test_measures_are_between_0_and_1_and_1_for_a_perfect_list(hits, k, missed):
    row = np.array([hits])
    relevant = np.array([max(sum(hits) + missed, 1)])
    for measure in (metrics.recall_at, metrics.ndcg_at):
        assert 0.0 <= measure(row, relevant, k)[0] <= 1.0 + 1e-12
    perfect = np.arange(20)[None] < relevant[0]
    if relevant[0] <= 20:
        np.testing.assert_allclose(metrics.recall_at(perfect, relevant, min(k, 20)), 1.0)
        np.testing.assert_allclose(metrics.ndcg_at(perfect, relevant, min(k, 20)), 1.0)
