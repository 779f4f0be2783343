"""Inputs against a naive reading of the log, and values that training has not seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest

from leadre.data import counts
from leadre.data.histories import AD, TRAIN, VALID, train_end_us
from leadre.data.moment import history_of, of_requests
from leadre.errors import InputError
from leadre.rank import inputs, rows, score
from leadre.rank import spec as specs
from leadre.rank.models.registry import RANKERS
from leadre.rank.spec import SequenceSpec
from leadre.units import US_PER_DAY


@pytest.fixture
def moment(market):
    """A training request with a long history."""
    moments = of_requests(market.logs)
    return max((moments[int(r)] for r in market.requests), key=lambda m: len(m.history))


def test_candidates_are_aligned_with_their_features(market, moment):
    ads = moment.inventory.ads[::-2]  # any order
    tables = market.popularity.at(moment.at_us)
    request = inputs.inputs(moment, ads, market.spec, market.known, tables)
    features = counts.features(moment, tables)
    for row, ad in enumerate(ads):
        obj = market.logs.ad_object_A[ad]
        place = np.flatnonzero(moment.inventory.objects == obj)[0]
        np.testing.assert_array_equal(request.number_CF[row], features[place])
        np.testing.assert_array_equal(request.field_CK[row], market.known.field_OK[obj])
        assert request.content_C[row] == obj + 1
        assert request.is_new_C[row] == (obj not in moment.history.object_E)


def test_events_and_objects_of_a_domain_are_positions_oldest_first(market, moment):
    history = moment.history
    own = [e for e in range(len(history)) if history.domain_E[e] == AD]
    events = inputs.positions(
        history, SequenceSpec(name="x", domain="ad", is_distinct=False, length=5), moment.at_us, market.known.field_OK
    )
    assert (events.content_T - 1).tolist() == history.object_E[own[-5:]].tolist()
    objects = inputs.positions(
        history, SequenceSpec(name="x", domain="ad", is_distinct=True, length=4), moment.at_us, market.known.field_OK
    )
    last: dict[int, int] = {}
    count: dict[int, int] = {}
    for e in own:
        last[int(history.object_E[e])] = e
        count[int(history.object_E[e])] = count.get(int(history.object_E[e]), 0) + 1
    newest = sorted(last, key=last.get)[-4:]
    assert (objects.content_T - 1).tolist() == newest
    np.testing.assert_allclose(objects.count_T, np.log1p([count[o] for o in newest]), rtol=1e-6)
    gaps = inputs.gap_rows(moment.at_us - history.at_us_E[[last[o] for o in newest]])
    assert objects.gap_T.tolist() == gaps.tolist()


def test_gaps_rise_with_time_and_leave_row_0_to_the_candidate():
    hours = np.array([0, 1, 5, 24, 24 * 7, 24 * 365, 24 * 365 * 30]) * (US_PER_DAY // 24)
    gaps = inputs.gap_rows(hours)
    assert (np.diff(gaps) > 0).all() and gaps[0] == 1 and gaps[-1] < inputs.GAP_ROWS
    assert inputs.gap_rows(np.array([-5])).tolist() == [1]


def test_values_that_training_has_not_seen_have_row_0(market, moment):
    assert market.known.field_OK[0, 0] == 0, "object 0 was left out of the vocabulary"
    assert market.known.user_row("age", "no such age") == 0 == market.known.user_row("age", None)
    numeric = inputs.Vocabulary(field_OK=np.zeros((1, 0), np.int32), profile={"income": (10.0, 20.0)})
    values = [None, float("nan"), "x", 5, 10, 25]
    assert [numeric.user_row("income", value) for value in values] == [0, 0, 0, 1, 2, 3]
    stranger = dataclasses.replace(moment, profile={}, placement=-1)
    request = inputs.inputs(
        stranger, moment.inventory.ads, market.spec, market.known, market.popularity.at(moment.at_us)
    )
    assert request.user_P[: len(market.spec.profile) + 1].tolist() == [0] * (len(market.spec.profile) + 1)


def test_profile_column_may_have_the_name_of_another_feature(market):
    words = pl.Series([f"value {number}" for number in range(len(market.logs.users))])
    users = market.logs.users.with_columns(brand=words, hour=words, object=words)
    logs = dataclasses.replace(market.logs, users=users)
    codes = np.zeros((len(logs.objects), 0), np.int32)
    known, fields, tables = inputs.vocabulary(logs, np.ones(len(logs.objects), np.bool_), codes)
    spec = dataclasses.replace(market.spec, fields=fields, profile=tuple(known.profile), tables=tables)
    spec.check()
    ranker = RANKERS["dcnv2"].init(spec, np.random.default_rng(0))
    assert len(ranker["table.brand"]) == known.field_OK[:, fields.index("brand")].max() + 1
    assert len(ranker["table.hour"]) == 25
    last = [known.user_row(name, words[len(words) - 1]) for name in ("brand", "hour", "object")]
    widths = [len(ranker[f"table.{table}"]) for table in spec.user_tables[: len(spec.profile)]]
    assert max(last) < min(widths[-3:])


def test_hours_and_weekdays_are_those_of_the_calendar(market, moment):
    friday_us = 20_000 * US_PER_DAY + 13 * (US_PER_DAY // 24)  # 2024-10-04, 13:00
    request = inputs.inputs(
        dataclasses.replace(moment, at_us=friday_us, history=history_of([], 0)),
        moment.inventory.ads,
        market.spec,
        market.known,
        market.popularity.at(moment.at_us),
    )
    assert request.user_P[-2:].tolist() == [5, 14]  # rows from 1: Friday, the hour from 13:00


def test_fresh_tables_end_at_the_last_whole_week_and_frozen_ones_at_the_first_request(market):
    logs = market.logs
    requests = logs.requests_of(VALID)
    from_us = train_end_us(logs)
    late_us = int(logs.request_at_us_R[requests].max())
    for is_fresh in (False, True):
        scores = market.popularity.at(int(logs.request_at_us_R[market.requests].max())).collaborative
        tables = rows.Popularity(logs, scores, from_us, is_fresh=is_fresh).at(late_us)
        weeks = (late_us - from_us) // (7 * US_PER_DAY)
        assert tables.before_us == from_us + (weeks * 7 * US_PER_DAY if is_fresh else 0) <= late_us


def test_sampling_keeps_positives_and_a_share_of_the_others(market):
    def sample(negatives, requests=market.requests):
        return list(
            rows.examples(
                market.logs,
                requests,
                market.logs.inventory,
                market.spec,
                market.known,
                market.popularity,
                negatives=negatives,
                seed=9,
            )
        )

    every = sample(1.0)
    sampled = sample(0.3)
    positives = [sum(row.label_CH.sum() for row in part) for part in (every, sampled)]
    negatives = [sum((~row.label_CH).sum() for row in part) for part in (every, sampled)]
    assert positives[0] == positives[1] > 0
    assert negatives[1] / negatives[0] == pytest.approx(0.3, abs=0.03)
    again = {row.request: row.ads.tolist() for row in sample(0.3, market.requests[::3])}
    assert again == {row.request: row.ads.tolist() for row in sampled if row.request in again}


def test_spec_survives_the_disk_and_refuses_what_it_does_not_know(market, tmp_path):
    market.spec.save(tmp_path)
    assert specs.load(tmp_path) == market.spec
    text = (tmp_path / specs.FILE).read_text()
    for damaged, message in (
        (text.replace('"own_slow"', '"no_such"'), "numbers has 'no_such'"),
        (text.replace('"live"', '"nowhere"'), "train the ranker again"),
        (text[:-40], "train the ranker again"),
    ):
        (tmp_path / specs.FILE).write_text(damaged)
        with pytest.raises(InputError, match=message):
            specs.load(tmp_path)
    for tables in ({**market.spec.tables, "object": specs.MAX_ROWS + 1}, {}):
        with pytest.raises(InputError, match=r"the table of 'object' has [\d,]+ rows"):
            dataclasses.replace(market.spec, tables=tables).check()
    for widths in ({"object": 0}, {"nowhere": 4}):
        with pytest.raises(InputError, match=r"the table of '\w+' has \d columns; a table of object, "):
            dataclasses.replace(market.spec, widths=widths).check()
    with pytest.raises(InputError, match="a share above 0"):
        dataclasses.replace(market.spec, negatives=0.0).check()


def test_numbers_of_profiles_that_are_not_finite_are_missing(market):
    half = len(market.logs.users) // 2
    income = pl.Series([float("nan"), None, -float("inf"), *[float("inf")] * (half - 3), *range(half)])
    assert half == 20
    logs = dataclasses.replace(market.logs, users=market.logs.users.with_columns(income=income))
    known, _, tables = inputs.vocabulary(
        logs, np.ones(len(logs.objects), np.bool_), np.zeros((len(logs.objects), 0), np.int32)
    )
    assert np.isfinite(known.profile["income"]).all() and len(known.profile["income"]) == inputs.PROFILE_BINS - 1
    assert [known.user_row("income", value) for value in (*income[:4], 0.0)] == [0, 0, 0, 0, 1]
    assert tables["profile.income"] == 1 + inputs.PROFILE_BINS


def test_period_without_a_request_is_refused(market):
    with pytest.raises(InputError, match="no train request is between 100% and 100% of their time; take a longer part"):
        rows.period(market.logs, TRAIN, 1 - 1e-15, 1)


def test_rows_are_the_last_requests_of_each_user(market):
    """A user with a million requests is no million rows, and other users have as many as before."""
    every = rows.period(market.logs, TRAIN, 0.5, 1)
    user_R = market.logs.request_user_R[every]
    last = rows.period(market.logs, TRAIN, 0.5, 1, visits=3)
    expected = [every[user_R == user][-3:] for user in np.unique(user_R)]
    assert last.tolist() == np.concatenate(expected).tolist()
    assert len(last) < len(every) and {1, 2, 3} >= set(map(len, expected))
    assert rows.period(market.logs, TRAIN, 0.5, 1, visits=len(every)).tolist() == every.tolist()


def test_scores_of_requests_without_a_candidate_are_refused():
    with pytest.raises(InputError, match="no request to be scored has a candidate"):
        score.stacked(iter([]))
