"""A publisher's page in a real browser: what Prebid.js makes of our answers, and what comes back of them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from leadre.serve import consent, openrtb
from leadre.types import Ad, Bid, Outcome, Request

pytestmark = pytest.mark.slow

CLIENT = Path(__file__).parents[2] / "clients" / "prebid"
OLDEST_NODE = (20, 11)
# What npm says where there is no registry; any other failure is a fault.
NO_REGISTRY = ("ENOTFOUND", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "EAI_AGAIN", "ENETUNREACH", "ERR_SOCKET_TIMEOUT")
VENDOR_ID = 1
PRICE_NANOS = 2_345_678
PLACES = {"home-top": (728, 90), "home-side": (300, 250)}

PERSONAL = Ad(
    ad_id="a1",
    object_id="o1",
    campaign_id="c1",
    advertiser_id="v1",
    title="Broad beans, hardy to -12 °C",
    landing_url="https://seeds.example/broad-beans?from=leadre&sort=price#sizes",
    adomain="seeds.example",
)
CONTEXTUAL = Ad(
    ad_id="a2",
    object_id="o2",
    campaign_id="c2",
    advertiser_id="v2",
    title="Fleece by the metre",
    landing_url="http://fleece.example/by-the-metre",
    adomain="fleece.example",
)

Bidder = tuple[str, Callable[[], list[Outcome]]]  # base URL, and the events that have arrived
Visit = Callable[[str], dict[str, Any]]  # scenario -> what drive.mjs prints


@pytest.fixture(scope="module")
def bidder() -> Iterator[Bidder]:
    """A bidder for ``VENDOR_ID`` that offers PERSONAL or CONTEXTUAL at PRICE_NANOS, whichever it may."""
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.base_url, lambda: list(server.outcomes)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def visit(bidder: Bidder, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """Each scenario is driven once. The sources are copied, so that npm's files stay out of the repository."""
    folder = tmp_path_factory.mktemp("client") / "prebid"
    shutil.copytree(CLIENT, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    (folder / "node_modules").symlink_to(installed() / "node_modules")
    run("node", "build.mjs", at=folder)

    @functools.cache
    def driven(scenario: str) -> dict[str, Any]:
        flags = ("--bidder", bidder[0], "--scenario", scenario, "--vendor", str(VENDOR_ID), "--user", "u1")
        return json.loads(run("node", "drive.mjs", *flags, at=folder))

    return driven


def installed() -> Path:
    """The folder with node_modules of the lock file. Skips where node or the registry is missing."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    version = run("node", "--version", at=CLIENT).strip().removeprefix("v")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_NODE:
        pytest.skip(f"node {version} is older than {'.'.join(map(str, OLDEST_NODE))}")
    cache = Path(os.environ.get("LEADRE_NODE", "~/.cache/leadre")).expanduser()
    folder = cache / f"prebid-{hashlib.sha256((CLIENT / 'package-lock.json').read_bytes()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=cache))
    try:
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(CLIENT / name, part)
        done = subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"],
            cwd=part,
            capture_output=True,
            text=True,
        )
        if done.returncode and any(sign in done.stderr for sign in NO_REGISTRY):
            pytest.skip(f"npm reaches no registry: {done.stderr.strip().splitlines()[0]}")
        assert done.returncode == 0, done.stderr
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def run(*command: str, at: Path) -> str:
    done = subprocess.run(command, cwd=at, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class StandIn(ThreadingHTTPServer):
    """The two routes that a page calls, with tokens that are bid IDs and nothing that is durable."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self.server_port}"
        self.bids: dict[str, tuple[Bid, Ad]] = {}
        self.outcomes: list[Outcome] = []

    def answer(self, body: bytes) -> bytes:
        request = openrtb.read(body)
        may = consent.permissions(request.signals, vendor_id=VENDOR_ID, when_absent=False)
        ad = PERSONAL if may.personalise and request.user_id == "u1" else CONTEXTUAL if may.contextual else None
        return openrtb.write(request, self.offers(request, ad) if ad else [], seat="leadre", fills_macros=True)

    def offers(self, request: Request, ad: Ad) -> list[openrtb.Rendered]:
        rendered = []
        for imp in request.imps:
            if imp.floor_nanos > PRICE_NANOS:
                continue
            bid = Bid(
                bid_id=f"b{len(self.bids)}",
                imp_id=imp.imp_id,
                ad_id=ad.ad_id,
                campaign_id=ad.campaign_id,
                advertiser_id=ad.advertiser_id,
                price_nanos=PRICE_NANOS,
                currency="USD",
                size=imp.sizes[0],
                source="contextual",
                propensity=1.0,
            )
            self.bids[bid.bid_id] = bid, ad
            url = {kind: f"{self.base_url}/e/{kind}?t={bid.bid_id}" for kind in ("win", "bill", "imp", "click")}
            pixel = f'<img src="{url["imp"]}" width="1" height="1" alt="">'
            rendered.append(
                openrtb.Rendered(
                    bid=bid,
                    adm=f'<a href="{url["click"]}" target="_blank">{ad.title}</a>{pixel}',
                    nurl=url["win"] + "&price=${AUCTION_PRICE}",
                    burl=url["bill"] + "&price=${AUCTION_PRICE}",
                    adomain=(ad.adomain,),
                )
            )
        return rendered

    def record(self, kind: str, query: dict[str, list[str]]) -> Ad:
        bid, ad = self.bids[query["t"][0]]
        self.outcomes.append(
            Outcome(
                kind=kind,
                at_us=0,
                bid_id=bid.bid_id,
                request_id="",
                ad_id=bid.ad_id,
                campaign_id=bid.campaign_id,
                price_nanos=openrtb.paid_nanos(query["price"][0]) or 0 if "price" in query else 0,
            )
        )
        return ad


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_POST(self) -> None:
        body = self.server.answer(self.rfile.read(int(self.headers["content-length"])))
        cors = {"Access-Control-Allow-Origin": self.headers["origin"], "Access-Control-Allow-Credentials": "true"}
        self.reply(200, {**cors, "Content-Type": "application/json"}, body)

    def do_GET(self) -> None:
        kind = urlsplit(self.path).path.removeprefix("/e/")
        ad = self.server.record(kind, parse_qs(urlsplit(self.path).query))
        if kind == "click":
            self.reply(302, {"Location": ad.landing_url})
        elif kind == "imp":
            self.reply(200, {"Content-Type": "image/svg+xml"}, b'<svg xmlns="http://www.w3.org/2000/svg"/>')
        else:
            self.reply(204, {})

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def assert_clean(page: dict[str, Any]) -> None:
    assert page["consoleErrors"] == [] == page["prebidErrors"]
    assert [auction["status"] for auction in page["auctions"]] == [200]
    assert [event for event in page["events"] if event["status"] >= 400] == []


def assert_shows(page: dict[str, Any], ad: Ad) -> None:
    assert_clean(page)
    assert {bid["code"]: (bid["width"], bid["height"]) for bid in page["bids"]} == PLACES
    assert {bid["creativeId"] for bid in page["bids"]} == {ad.ad_id}
    assert {banner["slot"] for banner in page["rendered"]} == set(PLACES)
    assert all(ad.title in banner["text"] for banner in page["rendered"])


def assert_shows_nothing(page: dict[str, Any]) -> None:
    assert_clean(page)
    assert page["bids"] == [] == page["rendered"]
    assert page["events"] == []
    assert page["landed"] is None


@pytest.mark.parametrize("scenario", ["all", "absent"])
def test_a_banner_fills_each_place(visit: Visit, scenario: str) -> None:
    page = visit(scenario)
    assert_shows(page, PERSONAL)
    assert {(bid["bidderCode"], bid["cpm"], bid["currency"]) for bid in page["bids"]} == {("leadre", 2.345678, "USD")}
    assert all(bid["advertiserDomains"] == [PERSONAL.adomain] for bid in page["bids"])


def test_the_browser_is_let_in_by_name(visit: Visit) -> None:
    (auction,) = visit("all")["auctions"]
    assert auction["cors"]["access-control-allow-origin"] == "http://garden.example"
    assert auction["cors"]["access-control-allow-credentials"] == "true"


def test_each_bid_is_won_shown_and_billed_once_at_its_price(visit: Visit, bidder: Bidder) -> None:
    page = visit("all")
    bids = {bid["seatBidId"] for bid in page["bids"]}
    arrived = [event for event in bidder[1]() if event.bid_id in bids and event.kind != "click"]
    assert Counter((event.bid_id, event.kind) for event in arrived) == {
        (bid, kind): 1 for bid in bids for kind in ("win", "imp", "bill")
    }
    assert {event.price_nanos for event in arrived if event.kind in ("win", "bill")} == {PRICE_NANOS}
    assert not [event["url"] for event in page["events"] if "AUCTION_" in event["url"]], "a macro was left unfilled"


def test_a_click_ends_at_the_landing_page(visit: Visit, bidder: Bidder) -> None:
    page = visit("all")
    assert page["landed"] == PERSONAL.landing_url
    bids = {bid["seatBidId"] for bid in page["bids"]}
    assert [event.kind for event in bidder[1]() if event.bid_id in bids].count("click") == 1


def test_a_floor_that_nobody_pays_leaves_no_trace(visit: Visit) -> None:
    assert_shows_nothing(visit("floor"))


def test_purpose_2_alone_shows_what_suits_the_page(visit: Visit) -> None:
    assert_shows(visit("contextual"), CONTEXTUAL)


def test_refused_shows_nothing(visit: Visit) -> None:
    assert_shows_nothing(visit("refused"))
