"""A bidder with a full pipe as its stderr, which no process reads."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress

import pytest

from .bidder import Bidder, until

pytestmark = pytest.mark.slow


class Unread(Bidder):
    """The bidder writes its messages into a full pipe. ``said`` has none."""

    def spawn(self, command):
        self.reading, writing = os.pipe()
        os.set_blocking(writing, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 1024)
        os.set_blocking(writing, True)
        self._process = subprocess.Popen(command, stderr=writing, env=self.environment())
        os.close(writing)


def test_bidder_with_a_full_stderr_bids_and_stops(work, tmp_path):
    with Unread(work, tmp_path / "state", "--generate", "false") as bidder:
        _, ad_id = bidder.campaign()
        bidder.list_for("u", ad_id)
        for _ in range(300):  # each bad request is a line
            bidder.http.post(f"{bidder.url}/openrtb2/bid", content=b"{")
        assert bidder.bids(user={"id": "u"})
        for role in ("worker", "management", "writer"):
            bidder.kill(role)  # the supervisor reports it
        until(lambda: bidder.is_up(f"{bidder.url}/readyz"), "ready")
        until(lambda: bidder.away() == [], "whole")
        assert bidder.stop() == 0
        os.close(bidder.reading)
