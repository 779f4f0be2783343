"""Rates, fill and quantiles of the metric history, against hand-worked numbers."""

from __future__ import annotations

import numpy as np
import pytest

from leadre.clock import ManualClock
from leadre.serve.manage import history, views
from leadre.serve.manage.history import MAX_SAMPLES, MetricRecorder, quantile

EDGES = (0.01, 0.02, 0.05)


@pytest.mark.parametrize(
    ("cumulative", "q", "value"),
    [
        ([4, 4, 4, 4], 0.5, 0.005),  # rank 2 of 4 in the first bucket
        ([2, 6, 6, 6], 0.5, 0.0125),  # rank 1 of 4 in the second bucket
        ([0, 0, 10, 10], 1.0, 0.05),
        ([1, 1, 1, 100], 0.99, 0.05),  # above the last edge
    ],
)
def test_quantile_interpolates_within_its_bucket(cumulative, q, value):
    assert quantile(EDGES, np.array(cumulative, float), q) == pytest.approx(value)


def test_quantile_of_empty_histogram_is_nan():
    assert np.isnan(quantile(EDGES, np.zeros(4), 0.5))


@pytest.fixture
def recording():
    """(recorder, its clock, the totals that it samples)."""
    clock = ManualClock(wall_us=100_000_000)
    totals = {}
    return MetricRecorder(clock, lambda: totals), clock, totals


def bids(count, no_bids=0):
    return {("leadre_answers_total", "outcome", "bid"): count, ("leadre_answers_total", "outcome", "no_bid"): no_bids}


def test_rates_and_fill_are_computed_between_samples(recording):
    recorder, clock, totals = recording
    for seconds, counts in ((10, bids(20, 20)), (5, bids(40, 20))):
        clock.advance(seconds)
        totals |= counts
        recorder.sample()
    clock.advance(5)
    metrics = recorder.read()
    assert metrics.seconds == 20
    assert metrics.increase("answers_total").tolist() == [40, 20, 0, 0]
    assert metrics.since(5).increase("answers_total").tolist() == [0, 0, 0, 0]
    assert metrics.since(10).increase("answers_total").tolist() == [20, 0, 0, 0]
    series = views.series(metrics)
    assert series["traffic"] == [[110.0, 115.0, 120.0], [4.0, 4.0, 0.0], [2.0, 4.0, 0.0]]
    assert series["fill"][1] == [50.0, 100.0, None]  # no request in the last five seconds


def test_number_of_samples_is_bounded(recording):
    recorder, _, _ = recording
    for _ in range(2 * MAX_SAMPLES):
        recorder.sample()
    assert len(recorder.read().at_s_T) == MAX_SAMPLES + 1


def test_columns_match_names_of_exported_metrics():
    """A misspelt column would be zero for ever, without an error."""
    from leadre import telemetry

    telemetry.ANSWERS.labels("bid", "shed").inc(3)
    telemetry.BIDS.labels("generated").inc(4)
    telemetry.NO_BIDS.labels("below_floor").inc(5)
    telemetry.GENERATIONS.labels("late").inc(6)
    telemetry.ANSWER_S.labels("bid").observe(0.07)
    telemetry.LIST_AGE_S.observe(1e6)
    telemetry.DEGRADED.labels("model").set(1)
    totals = telemetry.totals()
    counted = {column for column in history.COLUMNS if totals.get(column)}
    expected = {"leadre_answers_total": "shed", "leadre_bids_total": "generated", "leadre_no_bids_total": "below_floor"}
    expected |= {"leadre_generations_total": "late", "leadre_degraded": "model", "leadre_answer_seconds_bucket": "0.08"}
    expected |= {"leadre_list_age_seconds_bucket": "2.592e+06"}
    assert set(expected.items()) <= {(name, value) for name, _, value in counted}
