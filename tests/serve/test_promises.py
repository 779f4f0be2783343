"""What serving promises, asked of the processes that users run: two workers, writer and management, no mocks."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from leadre.serve.events import event_log
from leadre.serve.events.records import EventRecord, RequestRecord

from .bidder import bid_request, bids_in, event_urls, until, worker_of
from .protocol.test_openrtb_mutated import mutated

pytestmark = pytest.mark.slow


def test_an_ad_that_is_paused_is_in_no_bid_of_any_worker_a_second_later(bidder):
    (_, first), (_, second) = bidder.campaign(bid_nanos=9_000_000), bidder.campaign()
    bidder.list_for("pause-user", first, second)

    def shown():
        """Worker -> ad, once both have bid."""
        found = {}
        while len(found) < 2:
            (bid,) = bidder.fresh(user={"id": "pause-user"})
            found[worker_of(bid)] = bid["crid"]
        return set(found.values())

    bidder.manage("POST", f"/ads/{first}/pause")
    time.sleep(1.0)
    for _ in range(5):
        assert shown() == {second}
    bidder.manage("POST", f"/ads/{first}/resume")
    until(lambda: shown() == {first}, "resumed", within_s=5)
    bidder.manage("POST", f"/campaigns/{first.removeprefix('ad-')}/pause")
    time.sleep(1.0)
    assert shown() == {second}


def test_a_cap_holds_over_all_connections_places_and_a_restart(bidder):
    _, ad_id = bidder.campaign(cap_per_day=3)
    bidder.list_for("capped", ad_id)
    places = [{"id": str(n), "banner": {"w": 300, "h": 250}} for n in range(2)]

    def count(connections, each):
        with ThreadPoolExecutor(connections) as threads:
            asked = [threads.submit(bidder.fresh, user={"id": "capped"}, imp=places) for _ in range(each)]
            bids = [bid for one in asked for bid in one.result()]
        assert all(bid["crid"] == ad_id for bid in bids)
        return len(bids)

    assert count(16, 48) == 3
    assert bidder.stop() == 0
    bidder.start()
    assert count(16, 16) == 0
    answer = bidder.ask(user={"id": "capped"}, test=1, imp=places)
    assert len(bids_in(answer)) == 1, "two places never show the same ad"
    stranger = bidder.bids(user={"id": "another"}, imp=places)
    assert len({bid["crid"] for bid in stranger}) == 2


def test_events_count_once_however_often_they_come_and_whoever_dies(bidder):
    """Each is delivered one to five times, in any order, until it is acknowledged; writer and workers are killed."""
    campaign_id, ad_id = bidder.campaign(bid_nanos=3_000_000)
    bidder.list_for("events", ad_id)
    rng = random.Random(0)
    deliveries, truth = [], Counter()
    for n in range(60):
        (bid,) = bidder.bids(user={"id": "events"})
        assert bid["crid"] == ad_id
        urls = event_urls(bid)
        conversion = urls["click"].replace("/e/click", "/e/conv") + f"&event_id=order-{n}&value_nanos=5"
        happened = {"imp": urls["imp"], "bill": urls["bill"]}
        happened |= {"click": urls["click"]} if n % 3 == 0 else {}
        happened |= {"conv": conversion} if n % 6 == 0 else {}
        truth.update(list(happened))
        deliveries += [(kind, url) for kind, url in happened.items() for _ in range(rng.randint(1, 5))]
    rng.shuffle(deliveries)

    def deliver(each):
        kind, url = each
        while True:
            try:
                status = bidder.http.request("POST" if kind == "conv" else "GET", url).status_code
            except httpx.TransportError:  # accepted, perhaps written down, and never acknowledged
                status = 503
            if status in (200, 204, 302):
                return
            assert status == 503, (kind, status)
            time.sleep(0.05)

    with ThreadPoolExecutor(8) as threads:
        third = len(deliveries) // 3
        for start, dies in ((0, "writer"), (third, "worker"), (2 * third, "writer")):
            under_way = [threads.submit(deliver, each) for each in deliveries[start : start + third + 3]]
            bidder.kill(dies)
            for each in under_way:
                each.result()
    # a click that no disk could take is sent on all the same, and may be missing; send those again
    until(lambda: "writer" not in bidder.away(), "the writer is back")
    for each in deliveries:
        deliver(each)
    told = bidder.report(campaign_id)  # fresh: of what was acknowledged just now
    assert told == {
        "impressions": truth["imp"],
        "clicks": truth["click"],
        "conversions": truth["conv"],
        "charged_nanos": truth["bill"] * 3_000_000,
    }
    assert told == recount(bidder.state / "events", campaign_id)


def recount(log, campaign_id):
    """The report of a campaign, from the raw events alone."""
    kinds = {"imp": "impressions", "click": "clicks", "conv": "conversions"}
    counts = dict.fromkeys([*kinds.values(), "charged_nanos"], 0)
    for entry in event_log.read(log):
        if isinstance(entry.record, EventRecord) and entry.record.outcome.campaign_id == campaign_id:
            done = entry.record.outcome
            counts["charged_nanos"] += done.charge_nanos
            if done.kind in kinds:
                counts[kinds[done.kind]] += 1
    return counts


def surrogates(user_id):
    """The ID and what is commonly made of one."""
    yield user_id.encode()
    yield base64.b64encode(user_id.encode()).rstrip(b"=")
    for name in ("md5", "sha1", "sha256", "blake2b"):
        digest = hashlib.new(name, user_id.encode())
        yield from (digest.digest(), digest.hexdigest().encode())


def holding(folder, user_id):
    """The files of a folder that hold a user, the list of who was erased excepted."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "erased":
            data = path.read_bytes()
            found += [path.name for sign in surrogates(user_id) if sign in data][:1]
    return found


def test_an_erased_user_is_nowhere_while_they_go_on_browsing(bidder):
    user_id = "find-me-and-erase-me"
    _, ad_id = bidder.campaign(cap_per_day=1000)
    bidder.list_for(user_id, ad_id)
    urls = [event_urls(bid) for _ in range(20) for bid in bidder.bids(user={"id": user_id})]
    for each in urls[:10]:
        assert bidder.http.get(each["imp"]).status_code == 200
        assert bidder.http.get(each["click"]).status_code == 302
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
        for each in urls[10:]:  # tokens that are about still name the user
            bidder.http.get(each["imp"])
            bidder.http.get(each["click"])
        time.sleep(1.0)
        is_over.set()
        for each in browsing:
            each.result()
    time.sleep(0.5)  # the last records are written down
    assert holding(bidder.state, user_id) == []
    assert bidder.manage("GET", "/users", user_id=user_id) == {"profile": None, "list": None, "events": []}
    assert bidder.bids(user={"id": user_id})[0]["crid"] != ad_id, "a stranger gets what strangers get"


ROUTES = {  # what opens them: None = nothing is asked
    ("POST", "/openrtb2/auction"): None,
    ("POST", "/openrtb2/bid"): None,
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
    ("GET", "/metrics"): "operator",
    ("POST", "/v1/recommend"): "operator",
    ("GET", "/v1/explain/any"): "operator",
    ("GET", "/e/imp"): "a token",
    ("POST", "/e/conv"): "a token",
    ("GET", "/e/nothing"): "nowhere",
    ("GET", "/"): "nowhere",
    ("GET", "/campaigns"): "nowhere",
    ("DELETE", "/openrtb2/bid"): "nowhere",
}


def test_each_route_opens_to_its_key_alone(bidder):
    made = {
        name: bidder.manage("POST", "/keys", {"name": name} | account)
        for name, account in (("revoked", {}), ("advertiser", {"advertiser_id": "acme"}))
    }
    bidder.manage("DELETE", f"/keys/{made['revoked']['about']['key_id']}")
    keys = {name: f"Bearer {each['key']}" for name, each in made.items()}
    keys |= {"operator": f"Bearer {bidder.operator}", "cut": f"Bearer {bidder.operator[:-1]}", "none": ""}
    keys |= {"basic": f"Basic {bidder.operator}", "odd": "Bearer \xff\xfe.", "long": "Bearer " + "x" * 8000}
    content = {"/v1/recommend": {"count": 1}, "/openrtb2/auction": bid_request(), "/openrtb2/bid": bid_request()}
    for (method, path), opens in ROUTES.items():
        for holder, key in keys.items():
            headers = {"authorization": key.encode("latin-1")} if key else {}
            status = bidder.http.request(method, bidder.url + path, json=content.get(path), headers=headers).status_code
            if opens == "operator" and holder != "operator":
                wanted = (401,)
            else:
                wanted = {"a token": (403,), "nowhere": (404,)}.get(str(opens), (200, 204))
                wanted = (404,) if path.startswith("/v1/explain") else wanted
            assert status in wanted, (method, path, holder)


def test_a_request_can_be_explained(bidder):
    asked = bid_request(user={"id": "why"})
    (bid,) = bids_in(bidder.http.post(f"{bidder.url}/openrtb2/bid", json=asked))
    headers = {"authorization": f"Bearer {bidder.operator}"}
    url = f"{bidder.url}/v1/explain/{asked['id']}"
    until(lambda: bidder.http.get(url, headers=headers).status_code == 200, "written down", within_s=5)
    told = bidder.http.get(url, headers=headers).json()
    assert told["bids"][0]["ad_id"] == bid["crid"] == told["candidates"][told["verdicts"]["1"].index("bid")]["ad_id"]


def test_only_registered_pages_read_answers_and_only_those_of_the_auction(bidder):
    bidder.manage("PUT", "/origins", {"origins": ["https://news.example"]})

    def allowed(path, origin, method="POST"):
        answer = bidder.http.request(method, bidder.url + path, json=bid_request(), headers={"origin": origin})
        names = ("access-control-allow-origin", "access-control-allow-credentials")
        return tuple(answer.headers.get(name) for name in names)

    good = ("https://news.example", "true")
    until(lambda: allowed("/openrtb2/auction", "https://news.example") == good, "heard of it", within_s=5)
    assert allowed("/openrtb2/auction", "https://news.example", "OPTIONS") == good
    for origin in ("https://evil.example", "https://news.example.evil.example", "http://news.example", "null", ""):
        assert allowed("/openrtb2/auction", origin) == (None, None), origin
    for path in ("/openrtb2/bid", "/v1/recommend", "/readyz", "/metrics", "/e/imp", "/"):
        assert allowed(path, "https://news.example") == (None, None), path


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_bad_requests_are_refused_soon_and_good_ones_between_them_bid_on(bidder, count):
    """The time is the workers' own, as other processes may have the processor meanwhile."""
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

    statuses, worst_s, at_first = Counter(), 0.0, 0
    for n in range(count):
        if n == count // 10:
            at_first = resident()
        is_good = n % 10 == 0
        body = json.dumps(bid_request(user={"id": f"good-{n}"})).encode() if is_good else mutated(rng)
        route, began_s = rng.choice(["auction", "bid"]), own_s()
        answer = bidder.http.post(f"{bidder.url}/openrtb2/{route}", content=body)
        worst_s = max(worst_s, own_s() - began_s)
        statuses[answer.status_code] += 1
        if is_good:
            assert len(bids_in(answer)) == 1
        elif answer.status_code == 400:
            assert answer.content == b""
    assert set(statuses) <= {200, 204, 400} and statuses[400] > count * 0.1
    assert worst_s < 0.1
    assert resident() - at_first < 20e6
    assert bidder.pids("worker") == pids, "none has died of it"


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
def test_bodies(bidder, headers, body, status):
    assert bidder.http.post(f"{bidder.url}/openrtb2/bid", content=body, headers=headers).status_code == status


def test_what_was_begun_is_answered_and_kept_when_it_is_told_to_end(bidder):
    """Requests whose last byte comes after SIGTERM; none that was answered is missing from the log."""
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
    kept = [
        entry.record for entry in event_log.read(bidder.state / "events") if isinstance(entry.record, RequestRecord)
    ]
    asked = Counter(record.caller_request_id for record in kept)
    assert all(asked[name] == 1 for name in [*acknowledged, *(f"draining-{n}" for n in range(8))])
    bidder.start()
