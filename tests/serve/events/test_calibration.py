"""The alarm of rates: expected against observed events, over a window of events."""

from __future__ import annotations

import numpy as np
import pytest

from leadre.serve.events.calibration import MIN_EVENTS, RANGE, WINDOW, CalibrationWatch, Sums

from ..conftest import make_token


def fed(p, rate, impressions, seed=0):
    """Sums after impressions with the probability ``p`` and events at a true rate."""
    sums = Sums()
    for has_event in np.random.default_rng(seed).random(impressions) < rate:
        sums.add_impression(p)
        if has_event:
            sums.add_event()
    return sums


@pytest.mark.parametrize("seed", range(5))
def test_right_rates_raise_no_alarm_and_wrong_ones_do(seed):
    assert not fed(0.02, 0.02, 50_000, seed).is_alarming
    assert fed(0.02, 0.012, 50_000, seed).is_alarming
    assert fed(0.02, 0.033, 50_000, seed).is_alarming


def test_few_events_raise_no_alarm():
    sums = Sums()
    while sums.expected < MIN_EVENTS:
        assert not sums.is_alarming
        sums.add_impression(0.5)
    assert sums.is_alarming


def test_the_window_forgets_events_and_not_time():
    sums = fed(0.1, 0.0, 30_000)
    assert sums.expected == pytest.approx(WINDOW, rel=0.3) and sums.is_alarming
    for number in range(200_000):
        sums.add_impression(0.1)
        if number % 10 == 0:
            sums.add_event()
    assert not sums.is_alarming
    assert RANGE[0] < sums.expected / sums.observed < RANGE[1]


def test_rates_of_zero_with_events_alarm():
    assert fed(0.0, 0.5, 2 * int(MIN_EVENTS) + 100).is_alarming


def test_events_of_other_kinds_tests_and_bids_without_a_rate_are_not_summed():
    watch = CalibrationWatch()
    rate = {"rate_nano": 20_000_000, "rate_event": "click", "rate_slice": "new"}
    watch.add("imp", make_token(1, 1, charge_type="cpc", **rate))
    for kind in ("conv", "view", "bill", "win"):
        watch.add(kind, make_token(1, 1, charge_type="cpc", **rate))
    watch.add("click", make_token(1, 1, charge_type="cpc", is_test=True, **rate))
    watch.add("click", make_token(1, 1, charge_type="cpc", may_measure=False, **rate))
    watch.add("click", make_token(1, 1, charge_type="cpc"))
    assert dict(watch.sums) == {("cpc", "new"): Sums(expected=0.02, observed=0.0)}
    watch.add("click", make_token(1, 1, charge_type="cpc", **rate))
    assert watch.sums["cpc", "new"] == Sums(expected=0.02, observed=1.0)
