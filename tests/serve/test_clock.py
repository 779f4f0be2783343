"""The clocks of a machine are set while a bidder runs, and while it is off: real processes under shifted clocks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from leadre import database
from leadre.auction.budget import schema
from leadre.serve.events import event_log
from leadre.units import S_PER_DAY, S_PER_HOUR

from .bidder import Bidder, event_urls, until

NANOS = 2_000_000


class ShiftedBidder(Bidder):
    """A bidder of one worker, whose processes all read the clocks that `shift` sets."""

    def __init__(self, work, folder):
        self.clocks = folder / "clocks"
        shutil.copytree(Path(__file__).with_name("shifted"), self.clocks)
        self.shift(0)
        super().__init__(work, folder / "state", "--workers", "1", "--generate", "false")

    def shift(self, wall_s, boot_s=0, boot_id="-"):
        """Set wall time and boot time ahead by seconds; the ID of the boot holds for processes that start later."""
        new = self.clocks / "new"
        new.write_text(f"{wall_s} {boot_s} {boot_id}")
        new.rename(self.clocks / "shift")

    def environment(self):
        ours = super().environment()
        return ours | {"PYTHONPATH": os.pathsep.join([str(self.clocks), ours["PYTHONPATH"]])}

    def restart(self):
        self.stop()
        self.start()

    def run(self, *arguments):
        """The lines of `leadre serve clock` on this bidder's state."""
        command = [sys.executable, "-m", "leadre", "serve", "clock", "--state", str(self.state), *arguments]
        ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=self.environment(), timeout=120)
        assert ended.returncode == 0, ended.stderr
        return ended.stderr

    def doubt(self):
        """The reason that `/readyz` gives for a doubtful clock; "" for none."""
        state = self.http.get(f"{self.url}/readyz").json()
        assert bool(state["clock"]) == ("clock" in state["away"]) and (
            not state["clock"] or state["status"] == "degraded"
        )
        return state["clock"]

    def read(self, query):
        """The rows of a query of the ledger."""
        with closing(database.connect(self.state / "ledger.db", schema.MIGRATIONS, read_only=True)) as reader:
            return reader.execute(query).fetchall()

    def numbers(self):
        """The numbers of the records in the log."""
        return [entry.number for entry in event_log.read(self.state / "events")]

    def status_page(self):
        """The status page, as an operator sees it."""
        with httpx.Client(base_url=f"http://127.0.0.1:{self.manage_port}", follow_redirects=True) as browser:
            return browser.post("/status/login", data={"key": self.operator}).text


@pytest.fixture
def bidder(work, tmp_path):
    with ShiftedBidder(work, tmp_path) as running:
        yield running


@pytest.fixture
def bill(bidder):
    """A function that makes a campaign's bid for a user and returns the URL of its bill, for any number of calls."""
    _, ad_id = bidder.campaign(total_nanos=10**12, daily_nanos=10**11)
    bidder.list_for("u", ad_id)

    def url():
        bids = []
        until(lambda: bids or bids.extend(bidder.bids(user={"id": "u"})), "a bid", bidder.said)
        assert bids[0]["crid"] == ad_id
        return event_urls(bids[0])["bill"]

    return url


def is_billed(bidder, url):
    return bidder.http.get(url).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("days", [8, 99, -8])
def test_clock_that_is_set_and_set_back_charges_a_bill_once_and_forgets_nothing(bidder, bill, days):
    first = bill()
    assert is_billed(bidder, first)
    last = bidder.numbers()[-1]
    bidder.shift(days * S_PER_DAY)
    assert f"set {abs(days) * S_PER_DAY:,} s {'ahead' if days > 0 else 'back'}" in bidder.doubt()
    assert is_billed(bidder, first), "the token is valid all the same"
    bidder.restart()  # confirms nothing
    assert bidder.doubt() and bidder.manage("GET", "/clock")["doubt"] == "jump"
    assert is_billed(bidder, bill()), "bids go on"
    assert bidder.doubt() in bidder.status_page().replace("&#39;", "'")
    bidder.shift(0)
    until(lambda: not bidder.doubt(), "certain again", bidder.doubt)
    bidder.restart()
    assert bidder.doubt() == ""
    assert is_billed(bidder, first) and is_billed(bidder, bill())
    assert bidder.read("SELECT charged_nanos FROM budgets WHERE charged_nanos") == [(3 * NANOS,)]
    assert len(bidder.read("SELECT DISTINCT day FROM days WHERE charged_nanos")) == 1, "no other day was opened"
    assert bidder.numbers()[:last] == list(range(1, last + 1))


@pytest.mark.slow
@pytest.mark.parametrize("days", [8, -8])
def test_clock_that_is_set_and_set_back_leaves_frequency_caps(bidder, days):
    _, ad_id = bidder.campaign(cap_per_day=1)
    bidder.list_for("v", ad_id)

    def bids():
        return [bid for bid in bidder.bids(user={"id": "v"}) if bid["crid"] == ad_id]

    (only,) = bids()
    assert bidder.http.get(event_urls(only)["imp"]).status_code == 200
    for shift_s in (0, days * S_PER_DAY, 0):
        bidder.shift(shift_s)
        until(lambda shift_s=shift_s: bool(bidder.doubt()) == bool(shift_s), "seen", bidder.doubt)
        assert not any(bids() for _ in range(5)), "the user has seen it today"


@pytest.mark.slow
def test_operator_confirms_a_new_time_by_the_route_and_every_process_follows(bidder, bill):
    assert is_billed(bidder, bill())
    bidder.shift(8 * S_PER_DAY)
    advertiser = bidder.manage("POST", "/keys", {"name": "Ada", "advertiser_id": "acme"})["key"]
    for method, path in (("GET", "/clock"), ("POST", "/clock/confirm")):
        with pytest.raises(AssertionError, match="403"):
            bidder.manage(method, path, key=advertiser)
    assert bidder.doubt()
    (holder,) = [key for key in bidder.manage("GET", "/keys") if key["name"] == "the tests"]
    assert bidder.manage("POST", "/clock/confirm")["doubt"] == ""
    by = f"key {holder['key_id']} (the tests)"
    until(lambda: f"was confirmed by {by}\n" in bidder.said(), "reported", bidder.said)
    assert json.loads((bidder.state / "clock").read_bytes())["confirmed"]["by"] == by
    assert bidder.operator.partition(".")[2] not in bidder.said()
    until(lambda: not bidder.doubt(), "certain for the workers", bidder.doubt)
    until(lambda: bidder.manage("GET", "/clock")["doubt"] == "", "certain for the management process")
    assert is_billed(bidder, bill()), "by the new time"
    assert len(bidder.read("SELECT DISTINCT day FROM days WHERE charged_nanos")) == 2
    bidder.restart()
    assert bidder.doubt() == "", "the confirmation is stored"
    bidder.shift(0)  # the operator was wrong
    assert "back" in bidder.doubt()
    assert bidder.manage("POST", "/clock/confirm")["doubt"] == ""
    until(lambda: not bidder.doubt(), "certain for the workers", bidder.doubt)
    assert is_billed(bidder, bill()), "leases of days to come do not stop the bids of today"


@pytest.mark.slow
def test_gap_at_a_start_forgets_nothing_until_it_is_confirmed(bidder, bill):
    first = bill()
    assert is_billed(bidder, first)
    bidder.stop()
    numbers = bidder.numbers()
    known = bidder.read("SELECT count(*) FROM entries")
    bidder.shift(99 * S_PER_DAY, boot_id="another")
    bidder.start()
    assert f"off for {99 * 24:,}." in bidder.doubt()
    assert is_billed(bidder, bill()), "bids go on, by the machine's time"
    assert bidder.http.get(first).status_code == 403, "its token has expired"
    bidder.restart()
    assert bidder.doubt(), "a restart confirms nothing"
    assert bidder.numbers()[: len(numbers)] == numbers
    assert bidder.read("SELECT count(*) FROM entries")[0][0] == known[0][0] + 1
    assert "the bidder was off" in bidder.run() and bidder.doubt()
    assert "the time is certain" in bidder.run("--confirm", "true")
    until(lambda: not bidder.doubt(), "confirmed", bidder.doubt)
    until(lambda: bidder.read("SELECT count(*) FROM entries") == [(1,)], "the old event forgotten")
    until(lambda: not set(numbers) & set(bidder.numbers()), "the old records deleted")
    bidder.restart()
    assert bidder.doubt() == ""


@pytest.mark.slow
def test_restart_within_a_day_and_a_quick_reboot_need_no_confirmation(bidder, bill):
    bidder.stop()
    bidder.shift(20 * S_PER_HOUR, boot_s=20 * S_PER_HOUR)
    bidder.start()
    assert bidder.doubt() == "" and is_billed(bidder, bill())
    bidder.stop()
    bidder.shift(20 * S_PER_HOUR + 600, boot_id="another")
    bidder.start()
    assert bidder.doubt() == "" and is_billed(bidder, bill())
    bidder.stop()
    bidder.shift(44 * S_PER_HOUR, boot_id="third")
    assert "the bidder was off for" in bidder.run()
    assert "the time is certain" in bidder.run("--confirm", "true"), "a stopped bidder too"
    bidder.start()
    assert bidder.doubt() == ""
