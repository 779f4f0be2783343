"""Promises of serving, tested on the processes that users run: two workers, writer and management, no mocks."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
import socket
import statistics
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from leadre.serve.events import event_log
from leadre.serve.events.records import EventRecord, RequestRecord
from leadre.serve.processes import erasures, renewals

from .bidder import PAGE, bid_request, bids_in, click_id, event_urls, until, worker_of
from .protocol.test_openrtb_mutated import mutated

pytestmark = pytest.mark.slow


def test_paused_ad_is_in_no_bid_of_any_worker(bidder):
    _, first = bidder.campaign(bid_nanos=9_000_000)
    _, second = bidder.campaign()
    bidder.list_for("pause-user", first, second)

    def shown():
        """The ads of both workers' bids."""
        ads = {}
        while len(ads) < 2:
            (bid,) = bidder.fresh(user={"id": "pause-user"})
            ads[worker_of(bid)] = bid["crid"]
        return set(ads.values())

    bidder.manage("POST", f"/ads/{first}/pause")
    until(lambda: shown() == {second}, "paused")
    for _ in range(5):
        assert shown() == {second}
    bidder.manage("POST", f"/ads/{first}/resume")
    until(lambda: shown() == {first}, "resumed")
    bidder.manage("POST", f"/campaigns/{first.removeprefix('ad-')}/pause")
    until(lambda: shown() == {second}, "paused")
    assert shown() == {second}


def test_workers_read_pauses_and_erasures_twice_within_the_promised_second():
    assert renewals.CATALOGUE_S <= 0.5
    assert renewals.CATALOGUE_S <= erasures.PROPAGATE_S / 2


def test_frequency_cap_holds_over_connections_imps_and_a_restart(bidder):
    _, ad_id = bidder.campaign(cap_per_day=3)
    bidder.list_for("capped", ad_id)
    imps = [{"id": str(n), "banner": {"w": 300, "h": 250}} for n in range(2)]

    def count(connections, requests):
        with ThreadPoolExecutor(connections) as threads:
            responses = [threads.submit(bidder.fresh, user={"id": "capped"}, imp=imps) for _ in range(requests)]
            bids = [bid for response in responses for bid in response.result()]
        assert all(bid["crid"] == ad_id for bid in bids)
        return len(bids)

    assert count(16, 48) == 3
    assert bidder.stop() == 0
    bidder.start()
    assert count(16, 16) == 0
    answer = bidder.ask(user={"id": "capped"}, test=1, imp=imps)
    assert len(bids_in(answer)) == 1, "two imps never show the same ad"
    others = bidder.bids(user={"id": "another"}, imp=imps)
    assert len({bid["crid"] for bid in others}) == 2


def test_events_count_once_though_repeated_and_though_processes_are_killed(bidder):
    """Each event is sent one to five times, in random order, until acknowledged; writer and workers are killed."""
    campaign_id, ad_id = bidder.campaign(bid_nanos=3_000_000)
    bidder.list_for("events", ad_id)
    rng = random.Random(0)
    deliveries = []
    truth = Counter()
    for n in range(60):
        (bid,) = bidder.bids(user={"id": "events"})
        assert bid["crid"] == ad_id
        urls = event_urls(bid)
        events = {"imp": urls["imp"], "bill": urls["bill"]}
        events |= {"click": urls["click"]} if n % 3 == 0 else {}
        if n % 6 == 0:
            landing_url = bidder.http.get(urls["click"]).headers["location"]
            events["conv"] = f"{bidder.url}/e/conv?t={click_id(landing_url)}&value_nanos=5"
        truth.update(list(events))
        deliveries += [(kind, url) for kind, url in events.items() for _ in range(rng.randint(1, 5))]
    rng.shuffle(deliveries)

    def deliver(delivery):
        kind, url = delivery
        while True:
            try:
                status = bidder.http.request("POST" if kind == "conv" else "GET", url).status_code
            except httpx.TransportError:  # accepted and perhaps logged, but not acknowledged
                status = 503
            if status in (200, 204, 302):
                return
            assert status == 503, (kind, status)
            time.sleep(0.05)

    with ThreadPoolExecutor(8) as threads:
        third = len(deliveries) // 3
        for start, dies in ((0, "writer"), (third, "worker"), (2 * third, "writer")):
            futures = [threads.submit(deliver, delivery) for delivery in deliveries[start : start + third + 3]]
            bidder.kill(dies)
            for future in futures:
                future.result()
    # A click is redirected even if the writer is away, and may be missing from the log: send all again.
    until(lambda: "writer" not in bidder.away(), "the writer is back")
    for delivery in deliveries:
        deliver(delivery)
    report = bidder.report(campaign_id)  # includes the events acknowledged just now
    assert report == {
        "impressions": truth["imp"],
        "clicks": truth["click"],
        "conversions": truth["conv"],
        "charged_nanos": truth["bill"] * 3_000_000,
    }
    assert report == recount(bidder.state / "events", campaign_id)


def recount(log, campaign_id):
    """The report of a campaign, from the raw events alone."""
    kinds = {"imp": "impressions", "click": "clicks", "conv": "conversions"}
    counts = dict.fromkeys([*kinds.values(), "charged_nanos"], 0)
    for entry in event_log.read(log):
        if isinstance(entry.record, EventRecord) and entry.record.outcome.campaign_id == campaign_id:
            outcome = entry.record.outcome
            counts["charged_nanos"] += outcome.charge_nanos
            if outcome.kind in kinds:
                counts[kinds[outcome.kind]] += 1
    return counts


def surrogates(user_id):
    """The ID and its common encodings and hashes."""
    yield user_id.encode()
    yield base64.b64encode(user_id.encode()).rstrip(b"=")
    for name in ("md5", "sha1", "sha256", "blake2b"):
        digest = hashlib.new(name, user_id.encode())
        yield from (digest.digest(), digest.hexdigest().encode())


def holding(folder, user_id):
    """Names of files that contain a user ID, except the list of erased users."""
    names = []
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "erased":
            data = path.read_bytes()
            names += [path.name for form in surrogates(user_id) if form in data][:1]
    return names


def test_erased_user_is_in_no_file_though_requests_continue(bidder):
    user_id = "find-me-and-erase-me"
    _, ad_id = bidder.campaign(cap_per_day=1000)
    bidder.list_for(user_id, ad_id)
    urls = [event_urls(bid) for _ in range(20) for bid in bidder.bids(user={"id": user_id})]
    for event in urls[:10]:
        assert bidder.http.get(event["imp"]).status_code == 200
        assert bidder.http.get(event["click"]).status_code == 302
    until(lambda: len(holding(bidder.state, user_id)) >= 4, "log, lists, profiles and caps hold the user")
    exported = bidder.manage("GET", "/users", user_id=user_id)
    assert exported["profile"] and exported["list"] and exported["events"]
    is_over = threading.Event()

    def browse():
        while not is_over.is_set():
            bidder.bids(user={"id": user_id})

    with ThreadPoolExecutor(2) as threads:
        browsing = [threads.submit(browse) for _ in range(2)]
        bidder.manage("DELETE", "/users", user_id=user_id)
        for event in urls[10:]:  # these tokens still name the user
            bidder.http.get(event["imp"])
            bidder.http.get(event["click"])
        time.sleep(1.0)
        is_over.set()
        for future in browsing:
            future.result()
    time.sleep(0.5)  # workers send their last records
    assert holding(bidder.state, user_id) == []
    assert bidder.manage("GET", "/users", user_id=user_id) == {"profile": None, "list": None, "events": []}
    assert bidder.bids(user={"id": user_id})[0]["crid"] != ad_id, "the erased user is unknown"


ROUTES = {  # (method, path) -> the credential that it requires
    ("POST", "/openrtb2/auction"): "a registered origin",
    ("POST", "/openrtb2/bid"): None,
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
    ("GET", "/metrics"): "operator",
    ("POST", "/v1/recommend"): "operator",
    ("GET", "/v1/explain/any"): "operator",
    ("GET", "/e/imp"): "a token",
    ("POST", "/e/conv"): "a token",
    ("POST", "/v1/conversions"): "operator",
    ("GET", "/e/nothing"): "no such route",
    ("GET", "/"): None,
    ("HEAD", "/"): None,
    ("GET", "/docs"): "no such route",
    ("GET", "/campaigns"): "no such route",
    ("DELETE", "/openrtb2/bid"): "no such route",
}


def test_each_route_requires_its_credential(bidder):
    created = {
        name: bidder.manage("POST", "/keys", {"name": name} | account)
        for name, account in (("revoked", {}), ("advertiser", {"advertiser_id": "acme"}))
    }
    bidder.manage("DELETE", f"/keys/{created['revoked']['about']['key_id']}")
    keys = {name: f"Bearer {key['key']}" for name, key in created.items()}
    keys |= {"operator": f"Bearer {bidder.operator}", "cut": f"Bearer {bidder.operator[:-1]}", "none": ""}
    keys |= {"basic": f"Basic {bidder.operator}", "odd": "Bearer \xff\xfe.", "long": "Bearer " + "x" * 8000}
    content = {"/v1/recommend": {"count": 1}, "/openrtb2/auction": bid_request(), "/openrtb2/bid": bid_request()}
    for (method, path), credential in ROUTES.items():
        for holder, key in keys.items():
            headers = {"authorization": key.encode("latin-1")} if key else {}
            status = bidder.http.request(method, bidder.url + path, json=content.get(path), headers=headers).status_code
            if credential == "operator" and holder != "operator":
                expected = (403,) if holder == "advertiser" else (401,)  # its key lacks the scope
            else:
                by_credential = {"a token": (403,), "a registered origin": (403,), "no such route": (404,)}
                expected = by_credential.get(str(credential), (200, 204))
                expected = {"/v1/explain/any": (404,), "/v1/conversions": (400,)}.get(path, expected)
            assert status in expected, (method, path, holder)


def test_request_is_explained_with_its_candidates(bidder):
    request = bid_request(user={"id": "why"})
    (bid,) = bids_in(bidder.http.post(f"{bidder.url}/openrtb2/bid", json=request))
    headers = {"authorization": f"Bearer {bidder.operator}"}
    url = f"{bidder.url}/v1/explain/{request['id']}"
    until(lambda: bidder.http.get(url, headers=headers).status_code == 200, "logged")
    response = bidder.http.get(url, headers=headers)
    winner, *others = response.json()["candidates"]
    assert response.json()["bids"][0]["ad_id"] == bid["crid"] == winner["ad_id"]
    assert winner["title"] and winner["verdicts"] == {"1": "bid"} and winner["price_cpm"] == bid["price"]
    assert {candidate["verdicts"]["1"] for candidate in others} <= {"outranked", "no budget", "ineligible"}
    assert all(candidate["title"] and candidate["price_nanos"] for candidate in others) and others
    assert "\n  " in response.text, "for people"


def test_cors_headers_are_sent_to_registered_origins_on_the_auction_route_only(bidder):
    bidder.manage("PUT", "/origins", {"origins": ["https://news.example", PAGE]})

    def allowed(path, origin, method="POST"):
        answer = bidder.http.request(method, bidder.url + path, json=bid_request(), headers={"origin": origin})
        names = ("access-control-allow-origin", "access-control-allow-credentials")
        return tuple(answer.headers.get(name) for name in names)

    good = ("https://news.example", "true")
    until(lambda: allowed("/openrtb2/auction", "https://news.example") == good, "origins read by the workers")
    assert allowed("/openrtb2/auction", "https://news.example", "OPTIONS") == good
    for origin in ("https://evil.example", "https://news.example.evil.example", "http://news.example", "null", ""):
        assert allowed("/openrtb2/auction", origin) == (None, None), origin
    for path in ("/openrtb2/bid", "/v1/recommend", "/readyz", "/metrics", "/e/imp", "/"):
        assert allowed(path, "https://news.example") == (None, None), path


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_bad_requests_cost_little_and_good_requests_between_them_get_bids(bidder, count):
    """Costs are processor time of the workers, as a ratio to the cost of a good request."""
    rng = random.Random(1)
    pids = bidder.pids("worker")
    _, ad_id = bidder.campaign(cap_per_day=100_000)
    odd_users = [{"id": "x" * 401}, {"id": "a\x00b"}, {"buyeruid": "é" * 300}]
    for user in odd_users:
        bidder.list_for("bad", ad_id)
        assert bidder.ask(user=user).status_code in (200, 204)

    def own_s():
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9 for pid in pids)

    def resident():
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
        return pages * 4096

    statuses = Counter()
    worst_s = 0.0
    good_s = []
    at_first = 0
    for n in range(count):
        if n == count // 10:
            at_first = resident()
        is_good = n % 10 == 0
        body = json.dumps(bid_request(user={"id": f"good-{n}"})).encode() if is_good else mutated(rng)
        route = rng.choice(["auction", "bid"])
        began_s = own_s()
        answer = bidder.http.post(f"{bidder.url}/openrtb2/{route}", content=body, headers={"origin": PAGE})
        cost_s = own_s() - began_s
        worst_s = max(worst_s, cost_s)
        statuses[answer.status_code] += 1
        if is_good:
            good_s.append(cost_s)
            assert len(bids_in(answer)) == 1
        elif answer.status_code == 400:
            assert answer.content == b""
    assert set(statuses) <= {200, 204, 400} and statuses[400] > count * 0.1
    assert worst_s < 100 * statistics.median(good_s)
    assert resident() - at_first < 20e6
    assert bidder.pids("worker") == pids, "no worker died"


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content-encoding": "gzip"}, b"\x1f\x8b no", 400),
        ({"content-encoding": "gzip"}, gzip.compress(b" " * 300_000), 400),
        ({"content-encoding": "gzip"}, gzip.compress(json.dumps(bid_request()).encode()), 200),
        ({"content-type": "text/plain"}, json.dumps(bid_request()).encode(), 200),
        ({}, b" " * 300_000, 400),
        ({}, b"", 400),
    ],
)
def test_body_is_unpacked_or_refused(bidder, headers, body, status):
    assert bidder.http.post(f"{bidder.url}/openrtb2/bid", content=body, headers=headers).status_code == status


@pytest.mark.parametrize("route", ["bid", "auction"])
def test_pretty_response_is_the_same_bid_in_several_lines(bidder, route):
    url = f"{bidder.url}/openrtb2/{route}"
    page = {"origin": PAGE}
    plain, off, pretty = (
        bidder.http.post(f"{url}{query}", json=bid_request(user={"id": "reads"}), headers=page)
        for query in ("", "?pretty=0", "?other=a&pretty=1")
    )
    assert pretty.text.count("\n") > 10 and "\n" not in plain.text + off.text
    (bid,) = bids_in(pretty)
    assert bid.keys() == bids_in(plain)[0].keys() and bid["adm"].startswith("<div ")
    refused = bid_request(user={"id": "reads"}, regs={"gdpr": 1})  # without any consent
    no_bid = bidder.http.post(f"{url}?pretty=1", json=refused, headers=page)
    assert (no_bid.status_code, no_bid.json()) == (200, {"id": refused["id"], "nbr": 505})
    bad = bidder.http.post(f"{url}?pretty", json={"id": "r"}, headers=page)
    assert (bad.status_code, bad.json()) == (400, {"error": "imp: is missing"})
    assert bidder.http.post(url, json={"id": "r"}, headers=page).content == b""


def test_requests_in_progress_at_sigterm_are_answered_and_logged(bidder):
    """Their last byte arrives after SIGTERM; the log has every request that got a response."""
    bodies = [json.dumps(bid_request(id=f"draining-{n}")).encode() for n in range(8)]
    connections = []
    for body in bodies:
        connection = socket.create_connection(("127.0.0.1", bidder.port))
        head = f"POST /openrtb2/bid HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[:-1])
        connections.append(connection)
    acknowledged = [f"before-{n}" for n in range(20)]
    for name in acknowledged:
        assert bidder.ask(id=name).status_code == 200
    bidder.terminate()
    time.sleep(0.3)
    for connection, body in zip(connections, bodies, strict=True):
        connection.sendall(body[-1:])
        with connection, connection.makefile("rb") as answer:
            assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
    assert bidder.stop() == 0
    records = [
        entry.record for entry in event_log.read(bidder.state / "events") if isinstance(entry.record, RequestRecord)
    ]
    logged = Counter(record.caller_request_id for record in records)
    assert all(logged[bidder.logged_id(name)] == 1 for name in [*acknowledged, *(f"draining-{n}" for n in range(8))])
    bidder.start()
