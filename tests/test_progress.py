"""Lines of progress on stderr."""

from __future__ import annotations

import io

from leadre import progress


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
