"""`leadre serve rotate` on a running bidder, under events: none is lost, and new bids have tokens of the new key."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

import httpx
import pytest

from .bidder import bid_request, bids_in, event_urls, until

pytestmark = pytest.mark.slow

ROTATIONS = 4
EVENTS = ("imp", "bill", "click")


class Traffic(threading.Thread):
    """Bids and their events over connections of their own, until `stop`. Each bid's events arrive a few bids later."""

    def __init__(self, url: str, ad_id: str, user_id: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._request = {"user": {"id": user_id}}
        self._ad_id = ad_id
        self._stopped = threading.Event()
        self.statuses: list[tuple[str, int]] = []
        self.bids: list[dict] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with httpx.Client(timeout=60.0) as client:
                while not self._stopped.is_set():
                    self._step(client)
                for bid in self.bids[-3:]:
                    self._post(client, bid)
        except Exception as error:  # the test shows it
            self.error = error

    def _step(self, client: httpx.Client) -> None:
        answer = client.post(f"{self._url}/openrtb2/bid", json=bid_request(**self._request))
        self.bids += [bid for bid in bids_in(answer) if bid["crid"] == self._ad_id]
        if len(self.bids) > 3:
            self._post(client, self.bids[-4])

    def _post(self, client: httpx.Client, bid: dict) -> None:
        urls = event_urls(bid)
        self.statuses += [(kind, client.get(urls[kind]).status_code) for kind in EVENTS]

    def stop(self) -> None:
        self._stopped.set()
        self.join(120.0)
        assert not self.is_alive() and self.error is None, self.error


def rotate(bidder, *flags):
    command = [sys.executable, "-m", "leadre", "serve", "rotate", "--state", str(bidder.state), *flags]
    done = subprocess.run(command, env=bidder.environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


def version_of(url):
    return int(re.search(r"[?&]t=(\d+)\.", url)[1])


def test_no_event_is_lost_under_rotations(bidder):
    campaign_id, ad_id = bidder.campaign(bid_nanos=2_000_000)
    bidder.list_for("rotating", ad_id)
    clients = [Traffic(bidder.url, ad_id, "rotating") for _ in range(2)]
    for client in clients:
        client.start()
    for number in range(ROTATIONS):
        bids = sum(len(client.bids) for client in clients)
        until(lambda bids=bids: sum(len(client.bids) for client in clients) >= bids + 10, "bids between two rotations")
        said = rotate(bidder)
        assert f"tokens of key {number + 2} " in said
    newest = ROTATIONS + 1
    until(lambda: all(version_of(client.bids[-1]["burl"]) == newest for client in clients), "the newest key")
    for client in clients:
        client.stop()
    statuses = {status for client in clients for _, status in client.statuses}
    assert statuses <= {200, 204, 302}, statuses
    bids = [bid for client in clients for bid in client.bids]
    versions = {version_of(bid["burl"]) for bid in bids}
    assert {1, newest} <= versions
    until(lambda: bidder.report(campaign_id)["clicks"] == len(bids), "counted", lambda: bidder.report(campaign_id))
    report = bidder.report(campaign_id)
    assert report["impressions"] == len(bids)
    (entry, *_) = [
        entry for entry in bidder.manage("GET", "/audit", limit="1000")["items"] if entry["kind"] == "token keys"
    ]
    assert (entry["before"], entry["after"], entry["by"]) == ([1], [1, 2], "command")


def test_retired_keys_are_refused_at_once_and_new_bids_are_paid(bidder):
    _, ad_id = bidder.campaign(bid_nanos=2_000_000)
    bidder.list_for("retired", ad_id)
    (old,) = bidder.bids(user={"id": "retired"})
    assert "still read: none" in rotate(bidder, "--retire", "true")
    until(lambda: bidder.http.get(event_urls(old)["bill"]).status_code == 403, "refused by every worker")
    newest = max(int(line.split()[0]) for line in (bidder.state / "token.keys").read_text().splitlines())

    def is_paid():
        bids = bidder.fresh(user={"id": "retired"})
        urls = event_urls(bids[0]) if bids else {"bill": "?t=0."}
        return version_of(urls["bill"]) == newest and bidder.http.get(urls["bill"]).status_code in (200, 204)

    until(is_paid, "a bid with a token of the new key")
    assert os.stat(bidder.state / "token.keys").st_mode & 0o077 == 0
