"""Features of (user, object) pairs against hand-worked numbers, and the rule that they read no future."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from leadre.data import collaborative, counts, world
from leadre.data.histories import AD, CONTENT, of_tables, train_end_us
from leadre.data.moment import of_requests
from leadre.units import US_PER_DAY

DAY = US_PER_DAY


def no_collaborative(objects):
    return collaborative.Collaborative(
        factors_OD=np.zeros((objects, 2), np.float32),
        regularisation=1.0,
        alpha=1.0,
        similarity_OO=sparse.csr_matrix((objects, objects), dtype=np.float32),
    )


def tables_of(logs, before_us):
    return counts.fit(logs, before_us, no_collaborative(len(logs.objects)))


def table(moment, tables):
    """{name: values by live object}"""
    x_IF = counts.features(moment, tables)
    assert x_IF.dtype == np.float32 and x_IF.shape == (len(moment.inventory.objects), len(counts.NAMES))
    return dict(zip(counts.NAMES, x_IF.T, strict=True))


@pytest.fixture
def shop(hand):
    """User 0 buys object 0 on days 0, 10 and 40, object 1 on day 40. The request is on day 50. 0 and 1 are tea."""
    events = [
        *((0, 0 * DAY, CONTENT, 0, 0), (0, 10 * DAY, AD, 0, 0), (0, 40 * DAY, CONTENT, 0, 0)),
        *((0, 40 * DAY, CONTENT, 1, 0), (1, 45 * DAY, CONTENT, 2, 0)),
    ]
    logs = hand(events, [(0, 50 * DAY, "test", [0]), (1, 45 * DAY, "test", [2])], objects=4)
    paths = [["drink", "tea"], ["drink", "tea"], ["drink", "milk"], None]
    objects = logs.objects.with_columns(
        category_path=pl.Series(paths, dtype=pl.List(pl.String)), brand=pl.Series(["x", None, "x", None])
    )
    return dataclasses.replace(logs, objects=objects)


@pytest.fixture(scope="module")
def market():
    return of_tables(world.read(seed=5, users=30, ads=30, contents=8), "conversion")


def test_own_counts_decay_by_visit(shop):
    x = table(of_requests(shop)[0], tables_of(shop, 50 * DAY))
    # three visits; object 0 is in all of them, 2, 1 and 0 visits before the last
    assert x["own"].tolist() == pytest.approx(np.log1p([3, 1, 0, 0]))
    assert x["own_slow"][0] == pytest.approx(np.log1p(0.985**2 + 0.985 + 1), rel=1e-6)
    assert x["own_fast"][0] == pytest.approx(np.log1p(0.9**2 + 0.9 + 1), rel=1e-6)
    assert x["own_recent"].tolist() == pytest.approx(np.log1p([1, 1, 0, 0]))  # 28 days before day 50
    assert x["own_ads"].tolist() == pytest.approx(np.log1p([1, 0, 0, 0]))


def test_time_since_and_due(shop):
    x = table(of_requests(shop)[0], tables_of(shop, 50 * DAY))
    assert x["visits_since"].tolist() == pytest.approx(np.log1p([0, 0, 3, 3]))
    assert x["days_since"].tolist() == pytest.approx(np.log1p([10, 10, 50, 50]))  # never had: since the first event
    assert x["due"].tolist() == pytest.approx([np.log1p(10) - np.log1p(20), 0, 0, 0])  # gaps of 10 and 30 days


def test_group_counts_and_objects_without_a_group(shop):
    x = table(of_requests(shop)[0], tables_of(shop, 50 * DAY))
    tea = np.log1p(0.985**2 + 0.985 + 2)
    assert x["category_slow"].tolist() == pytest.approx([tea, tea, 0, 0], rel=1e-6)
    assert x["parent_slow"].tolist() == pytest.approx([tea, tea, tea, 0], rel=1e-6)
    assert x["brand_slow"].tolist() == pytest.approx(
        np.log1p([0.985**2 + 0.985 + 1, 0, 0.985**2 + 0.985 + 1, 0]), rel=1e-6
    )
    assert x["category_objects"].tolist() == pytest.approx(np.log1p([2, 2, 0, 0]))
    assert x["category_days_since"].tolist() == pytest.approx(np.log1p([10, 10, 50, 50]))


def test_popularity_counts_requests_before_the_cutoff_only(hand):
    requests = [(user, day * DAY, "train", []) for user, day in [(0, 1), (0, 2), (0, 40), (1, 3)]]
    events = [(0, 1 * DAY, AD, 0, 0), (0, 2 * DAY, AD, 0, 0), (0, 40 * DAY, AD, 1, 0), (1, 3 * DAY, CONTENT, 0, 0)]
    logs = hand(events, [*requests, (1, 60 * DAY, "test", [])], objects=3, live=[0, 1])
    logs = dataclasses.replace(logs, request_E=np.array([0, 1, 2, -1], np.int32))
    assert counts.exposures(logs, 0, 40 * DAY).tolist() == [3, 3, 0]
    assert counts.actions(logs, 0, 40 * DAY).tolist() == [2, 0, 0]
    popular = dict(zip(counts.POPULARITY, counts.popularity(logs, 40 * DAY).T, strict=True))
    mean = 2 / 6
    assert popular["rate"].tolist() == pytest.approx(np.log([4 / 9, 2 / 9, mean]))
    assert popular["rate_first"][0] == pytest.approx(np.log((1 + 2) / (3 + 2 * 6)))  # of two actions one is the first
    assert popular["buyers"].tolist() == pytest.approx(np.log1p([2, 0, 0]))
    late = dict(zip(counts.POPULARITY, counts.popularity(logs, 50 * DAY).T, strict=True))
    assert late["events_recent"].tolist() == pytest.approx(np.log1p([0, 1, 0]))
    assert late["rate_recent"][1] == pytest.approx(np.log((1 + 2) / (1 + 2 / 0.5)))


def test_an_object_with_two_live_ads_is_exposed_once(hand):
    logs = hand([(0, 1, AD, 0, 0)], [(0, 1, "train", []), (0, 9, "test", [])], objects=2)
    logs = dataclasses.replace(logs, ad_object_A=np.array([0, 0], np.int32))
    assert counts.exposures(logs, 0, 5).tolist() == [1, 0]


def test_collaborative_scores_are_those_of_the_channels(market):
    from leadre.data.collaborative_fit import fit as fitted
    from leadre.generate.channels import als, itemknn

    cf = fitted(market, train_end_us(market), 0, 1)
    moments = list(of_requests(market).at(market.requests_of(2)[:20]))
    by_als = list(als.fit(market, 0, 1).score(moments))
    by_knn = list(itemknn.fit(market, 0, 1).score(moments))
    for m, moment in enumerate(moments):
        scores = cf.scores(cf.user(moment.history), moment.inventory.ad_object.astype(np.int64))
        np.testing.assert_allclose(scores[:, 0], by_als[m], atol=1e-4)
        np.testing.assert_allclose(scores[:, 1], by_knn[m], rtol=1e-3, atol=1e-4)


def test_factors_of_a_history_solve_its_normal_equations(market):
    rng = np.random.default_rng(0)
    objects = len(market.objects)
    fit = dataclasses.replace(no_collaborative(objects), factors_OD=rng.normal(size=(objects, 128)).astype(np.float32))
    moments = [moment for moment in of_requests(market) if len(moment.history)][::30]
    assert len(moments) > 3
    for moment in moments:
        acted, count = np.unique(moment.history.object_E, return_counts=True)
        own = fit.factors_OD[acted].astype(np.float64)
        confidence = fit.alpha * np.log1p(count)
        normal = fit.gram_DD + (own * (confidence - 1)[:, None]).T @ own
        expected = np.linalg.solve(normal, own.T @ confidence)
        np.testing.assert_allclose(fit.user(moment.history).factors_D, expected, atol=1e-5)


def test_rows_of_some_objects_are_those_among_all(market):
    from leadre.data.collaborative_fit import fit as fitted

    cf = fitted(market, train_end_us(market), 0, 1)
    tables = counts.fit(market, train_end_us(market), cf)
    for moment in of_requests(market).at(market.requests_of(2)[:20]):
        live = moment.inventory.objects
        rows = np.arange(len(live))[:: len(live) // 3]
        every = counts.features(moment, tables)
        np.testing.assert_array_equal(counts.features(moment, tables, live[rows]), every[rows])
        shared = {"user": cf.user(moment.history), "spread": collaborative.spread_of(cf.factors_OD, live)}
        np.testing.assert_allclose(counts.features(moment, tables, live[rows], **shared), every[rows], atol=2e-5)


def test_scores_that_are_equal_for_all_objects_are_standardised_to_zero(shop):
    tables = tables_of(shop, 50 * DAY)
    moment = of_requests(shop)[0]
    live = moment.inventory.objects
    spread = collaborative.spread_of(tables.collaborative.factors_OD, live)
    x = counts.features(moment, tables, live, spread=spread)
    assert not x[:, [counts.NAMES.index(name) for name in counts.COLLABORATIVE]].any()
    assert not collaborative.spread_of(tables.collaborative.factors_OD, live[:0]).mean_D.any()


def test_prices_are_relative_to_the_users_own(hand):
    unit = 10**9
    events = [(0, 1, CONTENT, 0, 2 * unit), (0, 2, CONTENT, 1, 8 * unit), (1, 1, CONTENT, 0, 4 * unit)]
    logs = hand(events, [(0, 10, "test", [])], objects=2)
    x = table(of_requests(logs)[0], tables_of(logs, 5))
    assert x["price"][1] - x["price"][0] == pytest.approx(np.log(8 / 3))
    own = (np.log(2) + 0.5 * np.log(3)) / 1.5  # half a payment at the usual price
    assert x["own_price_over_price"].tolist() == pytest.approx([own - np.log(3), 0.0], abs=1e-6)
    assert x["price_over_usual"].tolist() == pytest.approx(np.log([3, 8]) - (own + np.log(8)) / 2, abs=1e-6)


def test_logs_without_categories_brands_and_prices_give_zeros(hand):
    logs = hand([(0, 1, CONTENT, 0, 0)], [(0, 9, "test", [])], objects=3)
    x = table(of_requests(logs)[0], tables_of(logs, 5))
    for name in (*counts.GROUPED, *counts.PRICE, "category_objects"):
        assert not x[name].any(), name


def test_a_user_without_a_history_has_finite_features(hand):
    logs = hand([(1, 1, CONTENT, 0, 0)], [(0, 9, "test", [])], objects=3)
    x_IF = counts.features(of_requests(logs)[0], tables_of(logs, 5))
    assert np.isfinite(x_IF).all()


def test_tables_read_nothing_at_or_after_their_cutoff(market):
    before_us = train_end_us(market)
    late_E = market.at_us_E >= before_us
    changed = dataclasses.replace(
        market,
        object_E=np.where(late_E, (market.object_E + 1) % len(market.objects), market.object_E).astype(np.int32),
        value_nanos_E=np.where(late_E, 10**12, market.value_nanos_E),
    )
    want = tables_of(market, before_us)
    got = tables_of(changed, before_us)
    np.testing.assert_array_equal(got.popularity_OP, want.popularity_OP)
    np.testing.assert_array_equal(got.log_price_O, want.log_price_O)


def test_features_read_nothing_at_or_after_the_moment(market):
    tables = tables_of(market, train_end_us(market))
    for r in market.requests_of(2)[::9].tolist():
        end = market.history_end(r)
        objects = market.object_E.copy()
        objects[end:] = (objects[end:] + 1) % len(market.objects)
        changed = dataclasses.replace(market, object_E=objects)
        want = counts.features(of_requests(market)[r], tables)
        np.testing.assert_array_equal(counts.features(of_requests(changed)[r], tables), want)


def test_tables_survive_the_disk(market, tmp_path):
    tables = tables_of(market, train_end_us(market))
    tables.save(tmp_path)
    moment = of_requests(market)[int(market.requests_of(2)[0])]
    again = counts.load(tmp_path)
    assert again.before_us == tables.before_us
    np.testing.assert_array_equal(counts.features(moment, again), counts.features(moment, tables))
