"""Rates, fill, gaps and quantiles of the metric history, against hand-worked numbers; failed samples."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from leadre.clock import ManualClock
from leadre.errors import InputError
from leadre.serve.manage import history, views
from leadre.serve.manage.access import Ranker
from leadre.serve.manage.history import MAX_SAMPLES, SAMPLE_S, MetricRecorder, bucket, quantile
from leadre.units import US_PER_S

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
    for counts in (np.zeros(4), np.full(4, np.nan)):
        assert np.isnan(quantile(EDGES, counts, 0.5)) and np.isnan(bucket(EDGES, counts, 0.5)).all()


def test_bucket_has_the_edges_around_a_quantile():
    counts = np.array([2, 6, 6, 10], float)
    assert [bucket(EDGES, counts, q) for q in (0.2, 0.5, 0.9)] == [(0.0, 0.01), (0.01, 0.02), (0.05, np.inf)]


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
    assert metrics.increase("answers_total").tolist() == [40, 20, 0, 0, 0]
    assert metrics.since(5).increase("answers_total").tolist() == [0, 0, 0, 0, 0]
    assert metrics.since(10).increase("answers_total").tolist() == [20, 0, 0, 0, 0]
    series = views.series(metrics)
    assert series["traffic"] == [[100.0, 110.0, 115.0, 120.0], [None, 4.0, 4.0, 0.0], [None, 2.0, 4.0, 0.0]]
    assert series["fill"][1] == [None, 50.0, 100.0, None]  # no request in the last five seconds


def record(recorder, clock, totals, *counts, every_s=SAMPLE_S):
    """Take a sample for each number of bids in all."""
    for count in counts:
        clock.advance(every_s)
        totals |= bids(count)
        recorder.sample()


def test_interval_with_a_missing_sample_has_no_rate(recording):
    recorder, clock, totals = recording
    record(recorder, clock, totals, 10)
    record(recorder, clock, totals, 30, every_s=2 * SAMPLE_S)
    record(recorder, clock, totals, 40)
    metrics = recorder.read()
    assert metrics.increase("answers_total")[0] == 40, "the total is known"
    assert views.series(metrics)["traffic"] == [[100.0, 110.0, 130.0, 140.0], *[[None, 1.0, None, 1.0]] * 2]


def test_restart_of_the_counters_is_a_gap_and_no_negative_rate(recording):
    recorder, clock, totals = recording
    record(recorder, clock, totals, 50, 60, 5, 15)
    metrics = recorder.read()
    assert views.series(metrics)["traffic"][1] == [None, 5.0, 1.0, None, 1.0]
    assert metrics.increase("answers_total")[0] == 70


def test_samples_of_a_clock_that_was_set_back_are_left_out(recording):
    recorder, clock, totals = recording
    record(recorder, clock, totals, 10, 20)
    clock.advance(-15.0)
    record(recorder, clock, totals, 30)
    assert views.series(recorder.read())["traffic"][0] == [100.0, 110.0, 115.0]


def test_time_away_of_a_part_is_summed(recording):
    recorder, clock, totals = recording
    for is_away in (0, 1, 1, 0):
        totals["leadre_degraded", "part", "model"] = is_away
        record(recorder, clock, totals, 0)
    away_s = recorder.read().seconds_away()
    assert away_s.pop("model") == 2 * SAMPLE_S
    assert set(away_s) >= {"store", "writer", "tasks", "clock", "ranker"} and not any(away_s.values())


@pytest.mark.parametrize("fault", [KeyError("leadre"), ValueError("the file is cut"), RuntimeError("x"), MemoryError()])
def test_recorder_survives_and_counts_a_failed_sample(fault, capsys):
    """A damaged file may raise anything; the recorder takes the next sample."""
    clock = ManualClock(wall_us=100_000_000)
    faults = [fault, None, fault, fault, None]

    def read_totals():
        problem = faults.pop(0) if faults else None
        if problem:
            raise problem
        return bids(7)

    recorder = MetricRecorder(clock, read_totals)  # the first sample fails
    while faults:
        clock.advance(SAMPLE_S)
        recorder.sample()
    clock.advance(SAMPLE_S)
    metrics = recorder.read()
    assert metrics.at_s_T.tolist() == [110.0, 140.0, 150.0]
    assert (metrics.failures, metrics.failure) == (3, f"{type(fault).__name__}: {fault}")
    assert capsys.readouterr().err.count("metric samples failed") == 1, "one report a minute"


def test_history_without_any_sample_is_empty():
    recorder = MetricRecorder(ManualClock(wall_us=100_000_000), {}.__getitem__)
    metrics = recorder.read()
    assert metrics.seconds == 0 and metrics.failures == 2
    assert metrics.increase("answers_total").tolist() == [0] * 5
    assert views.series(metrics)["traffic"] == [[100.0], [None], [None]]


def test_number_of_samples_is_bounded(recording):
    recorder, clock, totals = recording
    record(recorder, clock, totals, *[0] * 2 * MAX_SAMPLES)
    clock.advance(1.0)
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


def test_ranker_shows_events_of_the_last_hour_by_slice_and_alarms(recording):
    recorder, clock, totals = recording
    totals |= {("leadre_expected_events_total", "slice", name): 1_000 for name in ("seen", "new")}
    totals |= {("leadre_observed_events_total", "slice", name): 1_000 for name in ("seen", "new")}
    recorder.sample()  # from here on: earlier events are of another hour
    clock.advance(SAMPLE_S)
    totals[("leadre_expected_events_total", "slice", "new")] += 30
    totals[("leadre_observed_events_total", "slice", "new")] += 20
    totals[("leadre_miscalibrated", "slice", "new")] = 1
    totals[("leadre_rankings_total", "outcome", "late")] = 3
    metrics = recorder.read()
    metrics = metrics.since(SAMPLE_S)
    backend = SimpleNamespace(ranker=lambda: Ranker(version="v", published_at_us=clock.now_us() - 90 * US_PER_S))
    view = views._ranker(backend, metrics, clock.now_us())
    assert (view["version"], view["age"], view["problem"]) == ("v", "1 min 30 s", "")
    (row,) = view["slices"]
    assert row == {"name": "new", "expected": "30.0", "observed": "20", "ratio": "1.50", "is_alarming": True}
    assert [(row["name"], row["count"]) for row in view["rankings"]] == [("late", "3")]

    def damaged():
        raise InputError("current.json: damaged")

    view = views._ranker(SimpleNamespace(ranker=damaged), metrics, clock.now_us())
    assert view["problem"] == "current.json: damaged" and view["slices"]
    totals[("leadre_miscalibrated", "slice", "new")] = 0
    (row,) = views._ranker(backend, recorder.read().since(SAMPLE_S), clock.now_us())["slices"]
    assert not row["is_alarming"]
