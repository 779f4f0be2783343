"""Progress in a log: the first line before any work, an early estimate, then a line every eight seconds."""

from __future__ import annotations

import io
import threading

import pytest

from leadre import progress


@pytest.fixture
def now_s(monkeypatch):
    """A list whose only item is the monotonic time that `progress` reads."""
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    return clock


def test_log_has_an_estimate_soon_after_the_first_items_and_then_every_eight_seconds(now_s, capsys):
    with progress.track("users", 1000, done=100) as advance:
        for seconds, count in ((1.0, 10), (4.0, 40), (9.0, 100), (11.9, 100), (12.0, 150), (19.0, 500)):
            now_s[0] = 100.0 + seconds
            advance(count, "fast")
    assert capsys.readouterr().err.splitlines() == [
        "users: 900 to do",
        "users: 150 of 1,000, 4 s, about 1 min 8 s left, fast",
        "users: 500 of 1,000, 12 s, about 15 s left, fast",
        "users: 900 done in 19.0 s, fast",
    ]


def test_log_shows_life_but_no_estimate_while_nothing_is_done(now_s, capsys):
    with progress.track("users", 1000) as advance:
        for seconds in (3.0, 9.0, 11.0):
            now_s[0] = 100.0 + seconds
            advance(0)
    assert capsys.readouterr().err.splitlines()[1:-1] == ["users: 0 of 1,000, 9 s"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (168.6, "2 min 49 s"), (3600, "1 h 0 min"), (-3, "0 s")]
)
def test_duration_has_its_two_largest_units(seconds, text):
    assert progress.duration(seconds) == text


def test_long_call_without_lines_shows_life(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SILENCE_S", 0.0)
    monkeypatch.setattr(progress, "LOOK_EVERY_S", 0.001)
    text = ""
    with progress.alive("data: running"):
        while not text:
            text = capsys.readouterr().err
    assert text.startswith("data: running, nothing new for ")
    assert all(thread.name != "alive" for thread in threading.enumerate())


class Closed(io.StringIO):
    """A pipe whose reader has ended."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def test_line_without_a_reader_is_dropped(monkeypatch):
    """A bidder outlives the terminal or log collector that started it."""
    monkeypatch.setattr(progress, "console", type(progress.console)(file=Closed()))
    progress.say("one")
    progress.say("two")
    assert progress.console.quiet
