"""The whole consent matrix: signals x values x places x routes, through HTTP, with a spy on the store.

The tables of this file are written from the specifications: OpenRTB 2.6, TCF 2.3, GPP and its US sections, the US
privacy string, Global Privacy Control. `allowed` combines them, and shares no code with the bidder.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import re

import httpx
import msgspec
import pytest
from prometheus_client import REGISTRY

from leadre.serve.bidding.user_store import UserStore
from leadre.serve.events.records import RequestRecord
from leadre.serve.manage.auth import ApiKeys, put_origins
from leadre.serve.plan import Network, Pages, Timing
from leadre.serve.processes.http import App
from leadre.serve.processes.identification import Identification
from leadre.serve.processes.worker import Worker
from leadre.serve.processes.worker_state import WorkerState

from .alone import NOON_US, Alone
from .conftest import make_ad, make_campaign
from .protocol.consent_strings import MAY_2026_S, OURS, encode, gpp_string, us_section

pytestmark = pytest.mark.slow

EVERY = frozenset({1, 2, 3, 4, 7})
ORIGIN = "http://garden.example"
ROUTES = ("/openrtb2/auction", "/openrtb2/bid", "/v1/recommend")
PLACES = [(), ("ext",)]
PLACES += [(name, *ext) for name in ("site", "app", "user", "regs", "device") for ext in ((), ("ext",))]
SEGMENTS = [{"segment": [{"id": "reader-segment"}]}]
IDS = {
    "data": SEGMENTS,
    "buyeruid": "reader-b",
    "id": "reader-i",
    "eids": [{"source": "x.example", "uids": [{"id": "reader-e"}]}],
}
IFA = "reader-ifa"
NOON_S = NOON_US // 1_000_000  # 2026-03-01T12:00:00Z, "now"

# Value -> its meaning.
FLAG = [(None, "absent"), ("", "absent"), (0, "no"), ("0", "no"), (False, "no"), ("false", "no")]
FLAG += [(1, "yes"), ("1", "yes"), (True, "yes"), ("true", "yes"), (2, "yes"), ("x", "yes")]
US_PRIVACY = [(None, "absent"), ("", "absent"), ("1---", "permits"), ("1YNN", "permits"), ("1YNY", "permits")]
US_PRIVACY += [("1YYN", "forbids"), ("1NNN", "forbids"), ("1-N-", "forbids"), ("2---", "forbids"), ("yes", "forbids")]
# TC string -> the purposes that it grants vendor 755; None is no string.
CONSENT = [
    ("", None),
    (encode(EVERY, (), {OURS}), EVERY),
    (encode(EVERY, (), {OURS}, created_s=NOON_S, disclosed={OURS}), EVERY),
    (encode(EVERY, (), {OURS}, restrictions=[(4, 1, {OURS})]), EVERY),
    (encode(EVERY, (), {OURS}, restrictions=[(4, 0, {OURS})]), EVERY - {4}),
    (encode(EVERY, (), {OURS}, restrictions=[(1, 2, {OURS})]), EVERY - {1}),
    (encode({2}, (), {OURS}), frozenset({2})),
    (encode({1, 4}, (), {OURS}), frozenset({1, 4})),
    (encode({1, 2, 4, 7}, (), {OURS}), EVERY - {3}),
    (encode((), (), {OURS}), frozenset()),
    (encode(EVERY, (), {OURS + 1}), frozenset()),
    (encode(EVERY, (), {OURS}, is_service_specific=False), frozenset()),
    (encode(EVERY, (), {OURS}, policy=2), frozenset()),
    (encode(EVERY, (), {OURS}, created_s=NOON_S), frozenset()),
    (encode(EVERY, (), {OURS}, created_s=NOON_S, disclosed={OURS + 1}), frozenset()),
    (encode(EVERY, (), {OURS}, created_s=MAY_2026_S, disclosed={OURS}), frozenset()),
    (encode(EVERY, (), {OURS}) + ".!", frozenset()),
    ("?", frozenset()),
]
FULL = CONSENT[1][0]
REFUSED = CONSENT[9][0]
# (GPP string, sections) -> (absent, permits or forbids; purposes of section 2 if that is in force).
GPP = [
    (("", None), ("absent", None)),
    (("", ""), ("absent", None)),
    (("", [-1]), ("absent", None)),
    ((gpp_string({7: us_section(7, 2)}), [7]), ("permits", None)),
    ((gpp_string({8: us_section(8, gpc=False), 9: us_section(9)}), [8, 9]), ("permits", None)),
    ((gpp_string({6: "1YNN"}), [6]), ("permits", None)),
    ((gpp_string({7: us_section(7, 2)}), None), ("forbids", None)),
    ((gpp_string({7: us_section(7, TargetedAdvertisingOptOut=1)}), [7]), ("forbids", None)),
    ((gpp_string({7: us_section(7, SaleOptOutNotice=2)}), [7]), ("forbids", None)),
    ((gpp_string({8: us_section(8, gpc=True)}), [8]), ("forbids", None)),
    ((gpp_string({9: us_section(9, KnownChildSensitiveDataConsents=2)}), [9]), ("forbids", None)),
    ((gpp_string({6: "1YYN"}), [6]), ("forbids", None)),
    ((gpp_string({5: "A"}), [5]), ("forbids", None)),
    (("?", [7]), ("forbids", None)),
    (("", [7]), ("forbids", None)),
    ((gpp_string({2: FULL}), [2]), ("permits", EVERY)),
    ((gpp_string({2: FULL, 8: us_section(8, SaleOptOut=1)}), [2, 8]), ("forbids", EVERY)),
    ((gpp_string({2: REFUSED}), [2]), ("permits", frozenset())),
    ((gpp_string({7: us_section(7, 2)}), [2]), ("permits", frozenset())),
]
COUNTRY = [(None, False), ("USA", False), ("US", False), ("DEU", True), ("de", True), ("UK", True), ("CHE", True)]
HEADER = [(None, "absent"), ("", "absent"), ("0", "no"), ("1", "yes")]
SIGNALS = dict.fromkeys(("gdpr", "gpc", "coppa", "lmt", "dnt"), FLAG)
SIGNALS |= {"us_privacy": US_PRIVACY, "consent": CONSENT, "gpp": GPP, "country": COUNTRY}
SIGNALS |= {"Sec-GPC": HEADER, "DNT": HEADER}


def allowed(case, route):
    """The purposes that a request permits. ``case``: signal -> (value, meaning)."""
    meaning = {name: means for name, (_, means) in case.items()}
    us_gpp, section_2 = meaning.get("gpp", ("absent", None))
    consent = meaning.get("consent")
    gdpr = {"yes": True, "no": False}.get(meaning.get("gdpr"))
    if section_2 is not None:
        gdpr = True
    if gdpr is None:
        gdpr = consent is not None or meaning.get("country", False)
    granted = EVERY
    if gdpr:
        strings = [purposes for purposes in (consent, section_2) if purposes is not None]
        granted = frozenset.intersection(*strings) if strings else frozenset()
    flags = ["gpc", "coppa", "lmt", "dnt"] + (["Sec-GPC", "DNT"] if route == "/openrtb2/auction" else [])
    is_limited = any(meaning.get(flag) == "yes" for flag in flags)
    is_limited |= "forbids" in (meaning.get("us_privacy"), us_gpp)
    return granted & {2} if is_limited else granted


def body_of(case, route, place):
    """The request of a case, with every signal at one place."""
    signals = {name: value for name, (value, _) in case.items() if name not in ("gpp", "country", "Sec-GPC", "DNT")}
    if "gpp" in case:
        text, sections = case["gpp"][0]
        signals |= {"gpp": text, "gpp_sid": sections}
    country = case.get("country", (None, False))[0]
    if route == "/v1/recommend":
        texts = {name: "" for name in ("consent", "us_privacy", "gpp") if signals.get(name, "") is None}
        signals |= texts | ({} if signals.get("gpp_sid") else {"gpp_sid": []})
        return {"user_id": "reader-i", "count": 1, "country": country or ""} | signals
    request = {
        "id": "r",
        "imp": [{"id": "1", "banner": {"w": 300, "h": 250}}],
        "user": dict(IDS),
        "device": {"ifa": IFA},
    }
    at = request
    for part in place:
        at = at.setdefault(part, {})
    at |= signals
    if country is not None:
        request["device" if len(place) % 2 else "user"]["geo"] = {"country": country}
    return request


@pytest.fixture
def alone(tmp_path):
    """A user with a profile under one ID, a targeted segment and a capped ad: every reason to read or write a user."""
    with Alone(tmp_path / "state", vendor_id=OURS) as alone:
        alone.campaign_store.put_campaign(make_campaign("c-capped", bid_nanos=9_000_000, cap_per_day=1_000_000))
        alone.campaign_store.put_ad(make_ad("capped", campaign_id="c-capped"))
        alone.campaign_store.put_campaign(make_campaign("c-plain"))
        alone.campaign_store.put_ad(make_ad("plain", campaign_id="c-plain", object_id="o2"))
        targeting = dataclasses.replace(make_campaign().targeting, segments=frozenset({"runner"}))
        alone.campaign_store.put_campaign(make_campaign("c-segment", targeting=targeting))
        alone.put_list("*", "capped", "plain")
        alone.put_list("reader-i", "capped", "plain")
        alone.put_profile("reader-i", "o1", segments=["runner"])
        yield alone


class Routes:
    """A worker's app on the state of `Alone`, with its spy in place of the store."""

    def __init__(self, alone):
        self.alone = alone
        database = alone.campaign_store._database
        put_origins(database, [ORIGIN])
        _, key = ApiKeys(database).create("test", NOON_US)
        settings = dataclasses.replace(alone.bidder.settings, gdpr_when_absent=False)
        self.worker = Worker(alone.paths, settings, Timing(), has_model=False, clock=alone.clock)
        self.worker.state = WorkerState(alone.paths, settings, has_model=False, clock=alone.clock)
        self.worker.state.bidder.user_store = UserStore(alone.store, alone.clock)
        unlimited = Identification(Network(), Pages(page_origin_per_s=1e9), 1, alone.clock)
        app = App(self.worker, max_wait_s=9.0, management_url="", identification=unlimited)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://bidder",
            headers={"Authorization": f"Bearer {key}", "Origin": ORIGIN},
        )

    async def check(self, case, route, place):
        """Send a case, and compare reads, writes, ads, token and log record with the reference table."""
        headers = {name: case[name][0] for name in ("Sec-GPC", "DNT") if name in case and case[name][0] is not None}
        self.alone.store.calls.clear()
        answer = await self.client.post(route, json=body_of(case, route, place), headers=headers)
        assert answer.status_code in (200, 204), (answer.text, case, route, place)
        calls = {name for name, about in self.alone.store.calls if "reader" in str(about)}
        purposes = allowed(case, route)
        where = (case, route, place, purposes, calls)
        is_personal = purposes >= {1, 4}
        known = {"find_user"} if route != "/v1/recommend" else set()
        assert calls == ({"read_list", "read_profile", "reserve"} | known if is_personal else set()), where
        tokens = re.findall(r"/e/(\w+)\?t=([\w.\-~%]+)", answer.text)
        assert bool(tokens) == bool(is_personal or 2 in purposes), where
        assert "reader" not in answer.text, where
        user_id = "reader-i" if is_personal and purposes & {3, 7} else ""
        for kind, text in tokens:
            token = self.worker.state.keys.check(text, kind, self.alone.clock.now_us())
            assert token.user_id == ("reader-i" if is_personal else ""), "a frequency cap counts the user"
            assert (token.may_profile, token.may_measure) == (3 in purposes, 7 in purposes), where
        packed = self.worker.state.records._records.pop()
        record = msgspec.msgpack.decode(packed, type=RequestRecord)
        sources = {"stored"} if is_personal else {"contextual"} if 2 in purposes else set()
        assert {candidate.source for candidate in record.candidates} == sources, where
        assert record.user_id == user_id, where
        assert user_id or b"reader" not in packed, where

    def run(self, cases):
        async def all_of_them():
            return [await self.check(*case) for case in cases]

        return len(asyncio.run(all_of_them()))


@pytest.fixture
def routes(alone):
    return Routes(alone)


BASES = [{}, {"gdpr": (1, "yes"), "consent": CONSENT[1]}, {"gdpr": (1, "yes"), "consent": CONSENT[6]}]


def test_each_value_of_each_signal_counts_in_each_place_on_each_route(routes):
    cases = [
        (base | {name: value}, route, place)
        for base, (name, values) in itertools.product(BASES, SIGNALS.items())
        for value, route, place in itertools.product(values, ROUTES, PLACES)
        if route != "/v1/recommend" or (place == () and name not in ("Sec-GPC", "DNT"))
    ]
    assert routes.run(cases) > 7000


def test_any_two_signals_combine_to_the_stricter(routes):
    place = itertools.cycle(PLACES)
    route = itertools.cycle(ROUTES)
    cases = [
        ({name: first, other: second}, next(route), next(place))
        for name, other in itertools.combinations(SIGNALS, 2)
        for first, second in itertools.product(SIGNALS[name], SIGNALS[other])
    ]
    cases = [
        (case, route, place)
        for case, route, place in cases
        if route != "/v1/recommend" or not {"Sec-GPC", "DNT"} & set(case)
    ]
    assert routes.run(cases) > 4000


def answered(routes, **user):
    """(the ads of a page's request as text, the calls of the store that name a reader)."""
    routes.alone.store.calls.clear()
    body = {"id": "r", "imp": [{"id": "1", "banner": {"w": 300, "h": 250}}], "user": user}
    answer = asyncio.run(routes.client.post("/openrtb2/auction", json=body))
    return answer.text, {name for name, about in routes.alone.store.calls if "reader" in str(about)}


def test_request_with_an_erased_id_is_one_of_an_unknown_user(routes):
    text, calls = answered(routes, **IDS)
    assert "stored" in text and calls
    routes.worker.state.erased.add("x.example:reader-e")
    text, calls = answered(routes, **IDS)
    assert "contextual" in text and not calls
    assert "stored" in answered(routes, id="reader-i")[0]


def test_string_of_newer_policies_is_read_and_counted(routes):
    before = REGISTRY.get_sample_value("leadre_newer_policies_total")
    for policy, count in ((5, 0), (6, 1)):
        text, _ = answered(routes, id="reader-i", consent=encode(EVERY, (), {OURS}, policy=policy))
        assert "stored" in text
        assert REGISTRY.get_sample_value("leadre_newer_policies_total") - before == count


@pytest.mark.parametrize("user_id", ["0", "null", "*", "${UID}", "id5-sync.com:0"])
def test_recommendation_for_a_placeholder_is_for_an_unknown_user(routes, user_id):
    routes.alone.put_list("0", "plain")
    routes.alone.store.calls.clear()
    answer = asyncio.run(routes.client.post("/v1/recommend", json={"user_id": user_id, "count": 1})).json()
    assert [ad["source"] for ad in answer["ads"]] == ["contextual"]
    assert {about for _, about in routes.alone.store.calls} == {"*"}
