"""Cold start, prices and re-ranking on hand-written logs."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from leadre.data import prices
from leadre.data.histories import AD, CONTENT, TEST
from leadre.evaluate.retrieval import measure as retrieval
from leadre.evaluate.retrieval import rerank, slices


@pytest.fixture
def logs(hand):
    """Objects 0 to 5: five conversions, four, content events only, none, none, hidden until training ends."""
    early = [(0, day, AD, 0, 20) for day in range(5)] + [(1, day, AD, 1, 10 * day) for day in range(4)]
    early += [(1, 9, CONTENT, 2, 500)] * 6
    late = [(0, 20, AD, o, 7) for o in (0, 1, 5)] + [(1, 20, AD, 4, 7)]
    requests = [(0, 3, "train", [0]), (0, 20, "test", [0, 1, 5]), (1, 20, "test", [4])]
    logs = hand([(*event[:4], event[4] * 10**9) for event in early + late], requests, objects=6)
    listed = pl.Series("price_nanos", [1, 1, 1, 90 * 10**9, None, None], dtype=pl.Int64)
    hidden = pl.Series("hidden", [False] * 5 + [True])
    return replace(logs, ads=logs.ads.with_columns(listed), objects=logs.objects.with_columns(hidden))


def test_price_is_training_mean_else_catalogue_price_else_median(logs):
    # object 1: a value of 0 is ignored, (10 + 20 + 30) / 3; known prices are 20, 20, 500, 90, so their median is 55
    assert prices.training_prices(logs).tolist() == [20, 20, 500, 90, 55, 55]


def test_slices_match_hand_computed_values(logs):
    masks = slices.object_masks(logs)
    assert masks["cold"].tolist() == [False] * 5 + [True]
    assert masks["few"].tolist() == [False, True, True, True, True, False]
    everything = retrieval.build_view(logs, logs.requests_of(TEST), "all")
    (_, cold), (_, few) = slices.slice_views(logs, [everything])
    assert [ads.tolist() for ads in cold.relevant] == [[5]] and cold.users == 1
    assert [ads.tolist() for ads in few.relevant] == [[1], [4]] and few.user_V.tolist() == [0, 1]
    lists = {"x": np.array([[5, 0], [0, 4]], np.int32)}
    assert slices.slice_lists(everything, cold, lists)["x"].tolist() == [[5, 0]]
    table = retrieval.compare(few, slices.slice_lists(everything, few, lists), ours="x", resamples=10, seed=0)
    assert table["x"]["recall@10"]["mean"] == 0.5
    assert table["x"]["value@10"]["mean"] == pytest.approx(((55 + 20) / 2 + (20 + 55) / 2) / 2)


def test_cold_slice_of_new_leaves_out_repeats_since_the_launch(hand):
    """User 0 buys the hidden object 5 twice after its launch, user 1 once: `cold-new` has the two first purchases."""
    early = [(user, 3, AD, 0, 0) for user in (0, 1)]
    late = [(0, 20, AD, 5, 10), (0, 30, AD, 5, 10), (1, 30, AD, 5, 10)]
    requests = [(0, 3, "train", [0]), (0, 20, "test", [5]), (0, 30, "test", [5]), (1, 30, "test", [5])]
    logs = hand(early + late, requests, objects=6)
    logs = replace(logs, objects=logs.objects.with_columns(pl.Series("hidden", [False] * 5 + [True])))
    views = [retrieval.build_view(logs, logs.requests_of(TEST), name) for name in retrieval.VIEWS]
    parts = slices.slice_views(logs, views)
    assert [(view.name, part.name) for view, part in parts] == [("all", "cold"), ("new", "cold-new")]
    (_, cold), (new, cold_new) = parts
    assert len(cold.requests_V) == 3 and len(cold_new.requests_V) == 2
    assert cold.requests_V[1] not in cold_new.requests_V  # the repeat
    lists = np.array([[5, 0], [0, 1]], np.int32)
    assert slices.slice_lists(new, cold_new, {"x": lists})["x"].tolist() == lists.tolist()
    assert {part.name for _, part in parts} < set(slices.SLICES)


def test_weight_reorders_lists_and_weight_zero_does_not():
    ads = np.array([3, 1, 2, 0], np.int32)
    scores = np.log([0.4, 0.3, 0.2, 0.1])
    lists = {"all": {7: (ads, scores)}}
    price_A = np.array([8.0, 1.0, 2.0, 1.0])
    assert rerank.reorder(lists, price_A, {"all": 0.0})["all"][7].tolist() == [3, 1, 2, 0]
    # p x price is .4, .3, .4, .8: equal values keep their order
    assert rerank.reorder(lists, price_A, {"all": 1.0})["all"][7].tolist() == [0, 3, 2, 1]


def test_best_weight_has_most_gmv_within_two_percent_of_recall():
    assert rerank.best_index([(0.50, 0.3), (0.495, 0.4), (0.49, 0.4), (0.489, 0.9)]) == 1
    assert rerank.best_index([(0.50, 0.3), (0.6, 0.2)]) == 0
    assert rerank.best_index([(0.0, 0.0)] * 3) == 0
