"""Views, lists and comparisons on a hand-written log."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from leadre.data import histories
from leadre.data.tables import always_live
from leadre.errors import ArtifactError
from leadre.evaluate.retrieval import measure as retrieval
from leadre.evaluate.retrieval.measure import (
    build_view,
    checked_lists,
    compare,
    eligible,
    fuse_with_counts,
    measure,
    rank,
    tabulate,
    tie_key,
)

T0 = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def logs():
    """Ads a0..a5; a0 and a1 show one object. Ann converts a0 in training, a1 and a4 in the test, later a4 again."""
    visits = [  # day, user, converted {ad: nanos}, split
        (0, "ann", {"a0": 100}, "train"),
        (1, "bob", {"a2": 100}, "train"),
        (5, "bob", {"a2": 100}, "valid"),
        (9, "ann", {"a1": 30, "a4": 70}, "test"),
        (10, "ann", {"a4": 5}, "test"),
        (10, "bob", {"a5": 0}, "test"),
    ]
    requests = []
    events = []
    for number, (day, user, bought, split) in enumerate(visits):
        at = T0 + timedelta(days=day)
        request = f"r{number}"
        requests.append((request, user, at, "top", "live", split))
        for ad, nanos in bought.items():
            events.append((user, at, "ad", ad, "conversion", nanos, "top", request))
    ads = pl.DataFrame({"ad_id": [f"a{i}" for i in range(6)], "object_id": ["o0", "o0", "o2", "o3", "o4", "o5"]})
    ads = ads.with_columns(title="ad_id", brand=pl.lit(""), description=pl.lit(""), category_path=pl.lit(["x"]))
    contents = ads.head(0).select(content_id="ad_id", title="title", category_path="category_path")
    contents = contents.with_columns(brand=pl.lit(""), description=pl.lit(""))
    columns = ["user_id", "at", "domain", "item_id", "action", "value_nanos", "placement_id", "request_id"]
    return histories.build(
        ads=ads,
        contents=contents,
        users=pl.DataFrame({"user_id": ["ann", "bob"]}),
        events=pl.DataFrame(events, schema=columns, orient="row"),
        requests=pl.DataFrame(
            requests, schema=["request_id", "user_id", "at", "placement_id", "inventory_id", "split"], orient="row"
        ),
        inventories=always_live(pl.DataFrame({"inventory_id": ["live"] * 6, "ad_id": ads["ad_id"]})),
        positive="conversion",
    )


@pytest.fixture(scope="module")
def tests(logs):
    return logs.requests_of(histories.TEST)  # ann day 9, ann day 10, bob day 10


class Fixed:
    """A channel with one score for each ad."""

    def __init__(self, scores):
        self.scores = np.array(scores, dtype=np.float32)

    def score(self, moments):
        for moment in moments:
            yield self.scores[moment.inventory.ads]


def test_view_new_counts_first_conversions_of_objects(logs, tests):
    everything = build_view(logs, tests, "all")
    new = build_view(logs, tests, "new")
    assert [ads.tolist() for ads in everything.relevant] == [[1, 4], [4], [5]]
    # a1 shows a0's object, which ann converted before; a4 is not new on day 10, so that visit drops out
    assert new.requests_V.tolist() == [tests[0], tests[2]]
    assert [ads.tolist() for ads in new.relevant] == [[4], [5]]
    assert [v.tolist() for v in new.value_nanos] == [[70], [0]]
    assert everything.user_V.tolist() == [0, 0, 1] and everything.live_ads.tolist() == [0, 1, 2, 3, 4, 5]


def test_lists_of_new_leave_out_objects_in_the_history(logs, tests):
    assert eligible(logs, int(tests[0]), "new").tolist() == [False, False, True, True, True, True]
    assert eligible(logs, int(tests[1]), "new").tolist() == [False, False, True, True, False, True]
    views = [build_view(logs, tests, name) for name in retrieval.VIEWS]
    lists = tabulate(rank(logs, Fixed([6, 5, 4, 3, 2, 1]), views, key_A=tie_key(logs, 0), length=5), views, length=5)
    assert lists["all"].tolist() == [[0, 1, 2, 3, 4]] * 3
    assert lists["new"].tolist() == [[2, 3, 4, 5, -1], [0, 1, 3, 4, 5]]


def test_equal_scores_are_ordered_by_seed(logs, tests):
    views = [build_view(logs, tests, "all")]
    orders = set()
    for seed in range(8):
        key = tie_key(logs, seed)
        lists = tabulate(rank(logs, Fixed([1] * 6), views, key_A=key), views)["all"][:, :6]
        assert (lists == lists[0]).all(), "one order for all requests"
        assert lists[0].tolist() == np.argsort(key).tolist()
        orders.add(tuple(lists[0].tolist()))
    assert len(orders) == 8


def test_measures_match_hand_computed_values(logs, tests):
    v = build_view(logs, tests, "all")
    measures = measure(v, np.array([[4, 0, -1], [0, 4, -1], [0, 1, 2]], dtype=np.int32))
    assert measures["recall@10"].mean == pytest.approx((1 / 2 + 1 + 0) / 3)
    ideal = 1 + 1 / np.log2(3)
    assert measures["ndcg@10"].mean == pytest.approx((1 / ideal + 1 / np.log2(3) + 0) / 3)
    assert measures["gmv@10"].mean == pytest.approx((70 + 5) / (100 + 5 + 0))
    assert measures["recall@10"].numerator_U.tolist() == [1.5, 0.0]


def test_compare_returns_the_documented_shape(logs, tests):
    v = build_view(logs, tests, "all")
    right = np.array([[1, 4], [4, 0], [5, 0]], dtype=np.int32)
    wrong = np.array([[3, 0], [3, 0], [3, 2]], dtype=np.int32)
    table = compare(v, {"leadre": right, "rival": wrong, "same": right}, ours="leadre", resamples=50, seed=0)
    assert set(table["leadre"]) == set(retrieval.metrics_of(20))
    assert set(table["leadre"]["recall@10"]) == {"mean", "lo", "hi"}
    assert table["rival"]["recall@10"]["diff"] == {"mean": -1.0, "lo": -1.0, "hi": -1.0}
    assert table["same"]["gmv@10"]["diff"] == {"mean": 0.0, "lo": 0.0, "hi": 0.0}
    assert table["rival"]["coverage@10"] == {"mean": pytest.approx(3 / 6)}


def frame(rows):
    return pl.DataFrame(rows, schema={"request": pl.Int32, "view": pl.String, "ads": pl.List(pl.Int32)}, orient="row")


@pytest.mark.parametrize(
    ("view_name", "ads", "why"),
    [("all", [1, 1], "twice"), ("all", [1, 9], "not live"), ("new", [0], "new to the user"), ("new", None, "no list")],
)
def test_incomparable_lists_are_refused(logs, tests, view_name, ads, why):
    v = build_view(logs, tests[:1], view_name)
    rows = [] if ads is None else [(int(tests[0]), view_name, ads)]
    with pytest.raises(ArtifactError, match=why):
        checked_lists(frame(rows), logs, [v], source="work/x/generate")


def test_fusion_adds_own_counts_in_all_and_nothing_in_new(logs, tests):
    views = [build_view(logs, tests[:1], name) for name in retrieval.VIEWS]
    r = int(tests[0])
    lists = {"all": {r: np.array([3, 2], dtype=np.int32)}, "new": {r: np.array([3, 2], dtype=np.int32)}}
    fused = tabulate(fuse_with_counts(logs, lists, views, key_A=tie_key(logs, 0)), views)
    # ann's a0 and a1 (one object) have counts; the tie key orders them
    assert set(fused["all"][0, :4].tolist()) == {0, 1, 2, 3} and fused["all"][0, 0] == 3
    assert fused["new"][0].tolist()[:3] == [3, 2, -1]
