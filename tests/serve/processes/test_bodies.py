"""HTTP of a bid worker: gzip by every name, status 415 and 400 with their counters, HEAD. The worker is a real one."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from contextlib import closing

import httpx
import pytest

from leadre import progress, telemetry
from leadre.clock import SystemClock
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.manage.auth import ApiKeys, put_origins
from leadre.serve.plan import Timing
from leadre.serve.processes import bodies, refusals
from leadre.serve.processes.http import App
from leadre.serve.processes.worker import Worker
from leadre.serve.settings import Settings

from ..alone import Alone
from ..bidder import PAGE
from ..conftest import make_ad, make_campaign

REQUEST = {"id": "h1", "imp": [{"id": "1", "banner": {"w": 300, "h": 250}}], "cur": ["USD"], "tmax": 60_000}
PLAIN = json.dumps(REQUEST | {"site": {"domain": "news.example"}}).encode()


@pytest.fixture
def send(tmp_path):
    """Send requests, [(method, path, headers, body)], to a started worker; returns the responses."""
    with Alone(tmp_path / "state") as alone:
        alone.campaign_store.put_campaign(make_campaign())
        names = [f"a{number}" for number in range(20)]
        for name in names:
            alone.campaign_store.put_ad(make_ad(name))
        alone.put_list("*", *names)
        put_origins(alone.campaign_store._database, [PAGE])
    timing = Timing(network_ms=0.0, shed_ms=60_000.0)
    worker = Worker(alone.paths, Settings(public_url="https://ads.test"), timing, has_model=False, clock=SystemClock())
    app = App(worker, max_wait_s=60.0, management_url="")

    async def run(requests):
        await worker.start()
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bidder") as client:
                return [
                    await client.request(method, path, headers=headers, content=body)
                    for method, path, headers, body in requests
                ]
        finally:
            await worker.stop()

    return lambda *requests: asyncio.run(run(requests))


def members(body, count):
    """The body as gzip of several members."""
    step = -(-len(body) // count)
    return b"".join(gzip.compress(body[start : start + step]) for start in range(0, len(body), step))


def test_packed_bodies_are_unpacked_by_every_name_of_gzip(send):
    headers = [{"content-encoding": name} for name in ("gzip", "GZIP", "x-gzip", " gzip ", "identity, X-GZip")]
    post = "POST"
    requests = [(post, "/openrtb2/bid", fields, gzip.compress(PLAIN)) for fields in headers]
    page = {"origin": PAGE}
    requests += [
        (post, f"/openrtb2/auction?{query}", page, gzip.compress(PLAIN)) for query in ("gzip=1", "gzip=true&x=y")
    ]
    requests += [(post, "/openrtb2/bid", {"content-encoding": "gzip"}, members(PLAIN, 3))]
    requests += [(post, "/openrtb2/bid?gzip=1", {"content-encoding": "gzip"}, gzip.compress(PLAIN))]
    requests += [(post, "/openrtb2/bid?gzip=1", {}, PLAIN), (post, "/openrtb2/bid?ssp=x", {}, PLAIN)]
    requests += [(post, "/openrtb2/bid", {"content-encoding": "identity"}, PLAIN)]
    for request, answer in zip(requests, send(*requests), strict=True):
        assert answer.status_code == 200 and answer.json()["seatbid"], request


def test_body_that_cannot_be_unpacked_is_refused(send):
    packed = gzip.compress(PLAIN)
    bomb = gzip.compress(bytes(bodies.MAX_BODY_BYTES + 1))
    bodies_by_coding = [
        ({"content-encoding": "gzip"}, PLAIN, 400),
        ({"content-encoding": "gzip"}, packed[:-1], 400),
        ({"content-encoding": "gzip"}, packed + b"more", 400),
        ({"content-encoding": "gzip"}, bomb, 400),
        ({"content-encoding": "gzip"}, members(bytes(200 << 10), 1) * 2, 400),
        ({"content-encoding": "gzip"}, gzip.compress(b"") * (bodies.MAX_GZIP_MEMBERS + 1), 400),
        ({}, packed, 400),
        ({"content-encoding": "deflate"}, zlib.compress(PLAIN), 415),
        ({"content-encoding": "br"}, PLAIN, 415),
        ({"content-encoding": "gzip, gzip"}, gzip.compress(packed), 415),
        ({"content-type": "application/json; charset=utf-16"}, PLAIN.decode().encode("utf-16"), 400),
    ]
    answers = send(*(("POST", "/openrtb2/bid", headers, body) for headers, body, _ in bodies_by_coding))
    assert [answer.status_code for answer in answers] == [status for *_, status in bodies_by_coding]
    assert answers[7].headers["accept-encoding"] == "gzip"


@pytest.mark.parametrize(
    ("accepted", "is_packed"),
    [
        ("gzip", True),
        ("deflate, GZip;q=0.5", True),
        ("x-gzip", True),
        ("*", True),
        ("gzip;q=0, identity", False),
        ("gzip; q=0.000", False),
        ("gzip;q=0, *", False),
        ("*;q=0", False),
        ("identity", False),
        ("", False),
        ("notgzip", False),
        ("gzip;q=0.001", True),
    ],
)
def test_long_response_is_packed_for_a_client_that_accepts_gzip(accepted, is_packed):
    scope = {"headers": [(b"accept-encoding", accepted.encode())]}
    body, headers = bodies.packed(b"x" * 5000, scope)
    assert headers == ([(b"content-encoding", b"gzip")] if is_packed else [])
    assert (gzip.decompress(body) if is_packed else body) == b"x" * 5000
    assert bodies.packed(b"short", scope) == (b"short", [])


def test_gzip_with_weight_zero_is_not_sent(send):
    imps = [{"id": str(number), "banner": {"w": 300, "h": 250}} for number in range(20)]
    body = json.dumps(REQUEST | {"imp": imps}).encode()
    plain, packed = send(
        ("POST", "/openrtb2/bid", {"accept-encoding": "gzip;q=0, identity"}, body),
        ("POST", "/openrtb2/bid", {"accept-encoding": "gzip"}, body),
    )
    assert len(plain.content) > bodies.MIN_GZIP_BYTES
    assert "content-encoding" not in plain.headers and packed.headers["content-encoding"] == "gzip"


def test_head_is_answered_where_get_is_and_posts_no_event(send):
    statuses = [
        answer.status_code
        for answer in send(*(("HEAD", path, {}, b"") for path in ("/healthz", "/readyz", "/", "/metrics", "/e/imp")))
    ]
    assert statuses == [200, 200, 200, 401, 404]


def counter(name, **labels):
    return telemetry.REGISTRY.get_sample_value(name, labels) or 0.0


def test_refusals_and_left_out_values_are_counted_by_field_and_logged_without_values(send, monkeypatch):
    lines = []
    monkeypatch.setattr(progress, "say", lines.append)
    refused = {"route": "bid", "field": "imp[].secure", "reason": "got_str"}
    left_out = {"field": "user.data[].segment[].id"}
    before = counter("leadre_bad_requests_total", **refused), counter("leadre_left_out_values_total", **left_out)
    bad = REQUEST | {"imp": [{"id": "1", "banner": {"w": 300, "h": 250}, "secure": "private-value"}]}
    odd = REQUEST | {"user": {"data": [{"segment": [{"id": 1234}]}]}}
    answers = send(*(("POST", "/openrtb2/bid", {}, json.dumps(body).encode()) for body in (bad, odd, bad)))
    assert [answer.status_code for answer in answers] == [400, 200, 400]
    assert counter("leadre_bad_requests_total", **refused) == before[0] + 2
    assert counter("leadre_left_out_values_total", **left_out) == before[1] + 1
    (line,) = [line for line in lines if "refused" in line]
    assert "imp[].secure" in line and "got_str" in line and "private-value" not in line


def test_lines_about_refusals_are_limited_and_give_the_count_since_the_last_one(monkeypatch):
    lines = []
    monkeypatch.setattr(progress, "say", lines.append)

    class Clock:
        now_s = 0.0

        def monotonic_s(self):
            return self.now_s

    clock = Clock()
    counts = refusals.Refusals(clock)
    for number in range(50):
        for field in ("tmax", "imp[3].id", f"x{number}"):
            counts.refused("bid", refusals.BadRequest(field, "why", "missing"))
    assert len(lines) == 3, "of the two fields and of all others"
    clock.now_s = refusals.LOG_EVERY_S
    counts.refused("bid", refusals.BadRequest("tmax", "why", "missing"))
    assert "refused 50 requests: tmax: missing" in lines[3]
    for number in range(50):
        counts.refused("bid", refusals.BadRequest("tmax", "why", f"reason{number}"))
    assert len(lines) == 3 + refusals.MAX_LINES


def test_events_without_a_valid_token_and_requests_without_a_key_are_limited(send):
    forged = ("GET", "/e/imp?t=forged", {}, b"")
    keyless = ("GET", "/metrics", {}, b"")
    statuses = [answer.status_code for answer in send(*[forged] * 120, *[keyless] * 70)]
    assert statuses[:100] == [403] * 100 and 429 in statuses[100:120] and set(statuses[100:120]) <= {403, 429}
    assert statuses[120:180] == [401] * 60 and 429 in statuses[180:] and set(statuses[180:]) <= {401, 429}


@pytest.mark.parametrize("route", ["/v1/recommend", "/v1/conversions"])
def test_body_that_is_no_text_or_is_nested_deeply_is_a_bad_request(send, tmp_path, route):
    with closing(ManageDatabase(tmp_path / "state" / "manage.db")) as database:
        _, key = ApiKeys(database).create("the tests", 1)
    names = ("user_id", "gdpr", "token", "value_nanos", "categories", "event_id")
    values = (
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b"[" * 50_000,
        b'{"x":' * 20_000,
        b"1e400",
        b"9" * 5_000,
        b"NaN",
        b'"\\ud800"',
    )
    bodies = [b'{"%s":%s}' % (name.encode(), value) for name in names for value in values]
    headers = {"authorization": f"Bearer {key}"}
    answers = send(*[("POST", route, headers, body) for body in (b"\xff", b"", *bodies)])
    assert {answer.status_code for answer in answers} == {400}
    assert all(answer.json()["error"] for answer in answers)
