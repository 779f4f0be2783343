"""Figures of the status page: small numbers keep digits, large numbers keep their length, only zero is zero."""

from __future__ import annotations

import math

import pytest

from leadre.serve.manage import figures


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00042, "0.00042"),
        (0.04, "0.040"),
        (1.234, "1.23"),
        (45.67, "45.7"),
        (226.6, "227"),
        (1_234_567.8, "1,234,568"),
        (math.nan, figures.NO_VALUE),
        (math.inf, figures.NO_VALUE),
    ],
)
def test_figure_has_about_three_digits(value, text):
    assert figures.figure(value) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 9, "0 %"),
        (9, 9, "100 %"),
        (1, 3, "33.3 %"),
        (3, 70_000, "0.0043 %"),
        (1, 10**9, "< 0.0001 %"),
        (10**9 - 1, 10**9, "> 99.9999 %"),
        (6_999, 7_000, "99.986 %"),
        (103, 100, "103.0 %"),
        (1, 0, figures.NO_VALUE),
    ],
)
def test_percent_is_zero_or_hundred_only_if_exact(part, whole, text):
    assert figures.percent(part, whole) == text


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (2_000_000, "0.002"),
        (2_345_678, "0.00235"),
        (500_000_000, "0.50"),
        (2_500_000_000, "2.50"),
        (1_234_567_890_120_000_000, "1,234,567,890.12"),
    ],
)
def test_small_amount_of_money_is_not_rounded_to_zero(nanos, text):
    assert figures.amount(nanos) == text
    assert figures.money(nanos, "USD") == f"{text} USD"


@pytest.mark.parametrize(
    ("low_s", "high_s", "text"),
    [
        (0, 60, "below 1 min"),
        (600, 3600, "10 min to 1 h"),
        (2_592_000, math.inf, "above 30 d"),
        (math.nan, math.nan, figures.NO_VALUE),
    ],
)
def test_age_is_a_range_and_not_a_point_within_it(low_s, high_s, text):
    assert figures.time_range(low_s, high_s) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (0.3, "< 1 s"), (61, "1 min 1 s"), (90_061, "1 d 1 h"), (-5, "0 s")]
)
def test_duration_has_two_units(seconds, text):
    assert figures.duration(seconds) == text
