"""Signals to the processes beside the writer, under load: bids go on, and each acknowledged event is booked once.

`test_writer_killed` does the same with the writer, step by step.
"""

from __future__ import annotations

import os
import signal
import threading

import httpx
import pytest

from ..bidder import Bidder, bid_request, event_urls, until

pytestmark = pytest.mark.slow
ROLES = ("worker 1", "management", "tables", "model")
TIMEOUT_S = 3.0  # of one request: a stopped worker may have accepted its connection
BIDS = 5  # that must arrive while a process is away


class Load(threading.Thread):
    """One client: a bid, its impression, the next bid. Each request opens a connection, which any worker may accept."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.stopped = threading.Event()
        self.bids = 0
        self.acknowledged: list[str] = []
        self.unknown: list[str] = []  # impressions without an acknowledgement; some may be booked

    def run(self) -> None:
        while not self.stopped.is_set():
            try:
                answer = httpx.post(f"{self._url}/openrtb2/bid", json=bid_request(user={"id": "u"}), timeout=TIMEOUT_S)
            except httpx.TransportError:
                continue
            for bid in answer.json()["seatbid"][0]["bid"] if answer.status_code == 200 else ():
                self.bids += 1
                self.post(event_urls(bid)["imp"])

    def post(self, url: str) -> None:
        """Send an impression."""
        try:
            is_acknowledged = httpx.get(url, timeout=TIMEOUT_S).status_code == 200
        except httpx.TransportError:
            is_acknowledged = False
        (self.acknowledged if is_acknowledged else self.unknown).append(url)


@pytest.fixture(scope="module")
def bidder(work, tmp_path_factory):
    with Bidder(work, tmp_path_factory.mktemp("signals") / "state", "--workers", "2") as running:
        yield running


def test_each_process_is_killed_terminated_and_stopped_under_load(bidder):
    campaign_id, ad_id = bidder.campaign()
    bidder.list_for("u", ad_id)
    load = Load(bidder.url)
    load.start()

    def bids_go_on():
        enough = load.bids + BIDS
        until(lambda: load.bids >= enough, "bids", bidder.said)

    try:
        bids_go_on()
        for role in ROLES:
            for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP):
                until(lambda role=role: len(bidder.pids(role)) == 1, f"one {role}", bidder.said)
                (pid,) = bidder.pids(role)
                os.kill(pid, number)
                bids_go_on()
                if number is signal.SIGSTOP:
                    os.kill(pid, signal.SIGCONT)
                else:
                    until(lambda role=role, pid=pid: pid not in bidder.pids(role), f"the end of {role}", bidder.said)
        bids_go_on()
    finally:
        load.stopped.set()
        load.join()
    until(lambda: bidder.away() == [], "whole", bidder.said)
    until(lambda: bidder.is_up(f"http://127.0.0.1:{bidder.manage_port}/health"), "managed", bidder.said)
    sent = {*load.acknowledged, *load.unknown}
    for url in sent:
        assert bidder.http.get(url).status_code == 200
    assert bidder.report(campaign_id)["impressions"] == len(sent) > 0
    restarts = [line for line in bidder.said().splitlines() if line.endswith("and restarts")]
    assert len(restarts) == 2 * len(ROLES), "no other process has ended"
    assert "Traceback" not in bidder.said()
