"""Clocks that serving takes as an argument."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from leadre.clock import Clock, ManualClock, SystemClock, time_us
from leadre.errors import InputError


def test_manual_clock_moves_only_when_advanced():
    clock = ManualClock(wall_us=1_000_000, elapsed_s=2.0)
    assert (clock.now_us(), clock.monotonic_s()) == (1_000_000, 2.0)
    clock.advance(1.5)
    assert (clock.now_us(), clock.monotonic_s()) == (2_500_000, 3.5)


def test_system_clock_counts_microseconds_since_1970():
    clock: Clock = SystemClock()
    assert 1_600_000_000_000_000 < clock.now_us() < 10_000_000_000_000_000
    first_s = clock.monotonic_s()
    assert clock.monotonic_s() >= first_s


def test_boot_time_is_at_least_monotonic_time_and_its_boot_has_a_name():
    clock = SystemClock()
    monotonic_us = clock.monotonic_s() * 1e6
    assert clock.boot_us() >= monotonic_us - 1 and clock.boot_id() == SystemClock().boot_id() != ""


def test_times_are_utc_unless_they_have_an_offset():
    at_us = 1_772_353_800_000_000
    in_utc = datetime(2026, 3, 1, 8, 30, tzinfo=UTC)
    in_tokyo = in_utc.astimezone(timezone(timedelta(hours=9)))
    texts = ("2026-03-01T08:30:00Z", "2026-03-01T08:30", "2026-03-01T17:30:00+09:00")
    for value in (*texts, in_utc, in_tokyo, datetime(2026, 3, 1, 8, 30), at_us):
        assert time_us(value, "at") == at_us
    assert time_us("2026-03-01T08:30:00.000001Z", "at") == at_us + 1


@pytest.mark.parametrize("value", ["soon", "", 10**18, -1, 1.5, None, "1969-12-31"])
def test_other_times_are_refused_by_name(value):
    with pytest.raises(InputError, match=r"^--now .*must be an ISO time such as"):
        time_us(value, "--now")
