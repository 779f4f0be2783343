"""Clocks that serving takes as an argument."""

from __future__ import annotations

from leadre.clock import Clock, ManualClock, SystemClock


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
