from __future__ import annotations

import json
import re

import polars as pl
import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from leadre.data import tables
from leadre.serve.book import eligibility
from leadre.serve.manage import status as page
from leadre.serve.manage.access import Lists, Outside, Spend
from leadre.serve.manage.api import BODY_BYTES, manage_app
from leadre.serve.manage.auth import Keys
from leadre.serve.manage.history import Recorder

CAMPAIGN = {"name": "Autumn", "bid_type": "cpm", "bid_nanos": 2_000_000}
AD = {"title": "Shoes", "landing_url": "https://acme.test/shoes"}
SECRETS = ("bolt", "c-bolt", "a-bolt", "Bolt's plan", "k-user")  # what acme may never read


class Around:
    """The stores and the ledger around the API: what they were asked, and plain answers."""

    def __init__(self):
        self.calls = []

    def outside(self):
        frame = tables.complete("ads", pl.DataFrame({"ad_id": ["t1", "t2"], "title": ["Tea", ""]}))
        return Outside(
            now_us=lambda: 1_772_366_400_000_000,
            erase=lambda user: self.calls.append(("erase", user)) or {"profiles": 1},
            export=lambda user: self.calls.append(("export", user)) or {"profiles": {"k-user": [1]}},
            spend=self.spend,
            catalogue=lambda: self.calls.append(("import",)) or frame,
            history=Recorder(dict).read,
            charged_today=list,
            counts=dict,
            explain=lambda _: None,
            lists=lambda: Lists(version="", made_at_us=0),
        )

    def spend(self, campaigns, from_us, to_us):
        self.calls.append(("spend", *campaigns, from_us, to_us))
        row = {"day": "2026-03-01", "impressions": 3, "clicks": 1, "conversions": 0, "charged_nanos": 6_000_000}
        return [Spend(campaign_id=name, **row) for name in campaigns]


@pytest.fixture
def around():
    return Around()


@pytest.fixture
def api(desk, around):
    with TestClient(manage_app(desk, around.outside()), raise_server_exceptions=True) as client:
        yield client


@pytest.fixture
def held(desk):
    """Name -> headers. Both accounts have a campaign and an ad; `revoked` was an operator's key."""
    keys = Keys(desk)
    made = {name: keys.create(name, 1, account) for name, account in HOLDERS.items()}
    keys.revoke(made["revoked"][0].key_id, 2)
    return {name: {"Authorization": f"Bearer {shown}"} for name, (_, shown) in made.items()} | {
        "nobody": {},
        "wrong": {"Authorization": f"Bearer {made['operator'][1][:-1]}"},
        "basic": {"Authorization": "Basic YTpi"},
    }


HOLDERS = {"operator": "", "acme": "acme", "revoked": ""}


@pytest.fixture
def market(book, campaign, ad):
    for account, plan in (("acme", "Acme's plan"), ("bolt", "Bolt's plan")):
        book.put_campaign(campaign(f"c-{account}", advertiser_id=account, name=plan))
        book.put_ad(ad(f"a-{account}", campaign_id=f"c-{account}", advertiser_id=account))
    return book


def test_a_campaign_and_its_ad_by_an_account(api, held, around, market, reader):
    acme = held["acme"]
    form = CAMPAIGN | {
        "starts_at": "2026-03-01T01:30:00.5+01:00",
        "targeting": {"countries": ["FRA", "DEU"], "hours": [9]},
    }
    made = api.post("/campaigns", json=form, headers=acme)
    assert made.status_code == 201
    shown = made.json()
    assert api.get(made.headers["Location"], headers=acme).json() == shown
    assert (shown["advertiser_id"], shown["starts_at"], shown["ends_at"]) == (
        "acme",
        "2026-03-01T00:30:00.500000Z",
        None,
    )
    assert shown["targeting"]["countries"] == ["DEU", "FRA"]
    name = shown["campaign_id"]

    made = api.post("/ads", json=AD | {"campaign_id": name, "sizes": [[300, 250]]}, headers=acme)
    assert made.status_code == 201
    ad_id = made.json()["ad_id"]
    assert made.json()["object_id"] == ad_id and made.json()["adomain"] == "acme.test"
    live = eligibility.load(reader)
    assert live.live_A[live.row_of_ad[ad_id]]

    for action, status in (("pause", "paused"), ("resume", "active"), ("end", "ended")):
        assert api.post(f"/ads/{ad_id}/{action}", headers=acme).json()["status"] == status
    assert api.post(f"/ads/{ad_id}/resume", headers=acme).status_code == 409
    assert not eligibility.refresh(live, reader).live_A[live.row_of_ad[ad_id]]
    assert api.post(f"/campaigns/{name}/pause", headers=acme).json()["status"] == "paused"
    assert api.post(f"/campaigns/{name}/delete", headers=acme).status_code == 422


def test_a_put_repeated_changes_nothing(api, held, desk):
    operator = held["operator"]
    form = CAMPAIGN | {"advertiser_id": "acme"}
    assert [api.put("/campaigns/c 1", json=form, headers=operator).status_code for _ in range(2)] == [201, 200]
    before = desk.connection.execute("SELECT number FROM version").fetchone()
    shown = api.put("/campaigns/c 1", json=form, headers=operator).json()
    assert desk.connection.execute("SELECT number FROM version").fetchone() == before
    assert shown["campaign_id"] == "c 1"
    ad = AD | {"campaign_id": "c 1"}
    assert [api.put("/ads/%C3%A4%3F1", json=ad, headers=operator).status_code for _ in range(2)] == [201, 200]
    assert api.get("/ads/%C3%A4%3F1", headers=operator).json()["ad_id"] == "ä?1"
    # what the account sent back as it was shown is what it was
    form = {field: value for field, value in shown.items() if field != "campaign_id"}
    assert api.put("/campaigns/c 1", json=form, headers=held["acme"]).json() == shown
    assert api.put("/campaigns/c 1", json=form | {"currency": "EUR"}, headers=operator).status_code == 409
    assert api.put("/campaigns/c2", json=CAMPAIGN, headers=operator).status_code == 422  # for whom?


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bid_nanos": -1}, "body.bid_nanos"),
        ({"bid_nanos": 1.5}, "body.bid_nanos"),
        ({"bid_nanos": "1"}, "body.bid_nanos"),
        ({"bid_nanos": float("nan")}, "body.bid_nanos"),
        ({"bid_nanos": 1 << 70}, "body.bid_nanos"),
        ({"status": "gone"}, "body.status"),
        ({"cap_per_days": 3}, "body.cap_per_days"),
        ({"\ud800": 3}, "body"),
        ({"name": "\ud800"}, "body.name"),
        ({"zone": "Mars"}, "an IANA time zone"),
        ({"starts_at": "2026-03-01T00:00:00"}, "wants an offset"),
        ({"starts_at": 1_772_323_200}, "body.starts_at"),
        ({"starts_at": "1969-12-31T00:00:00Z"}, "starts_at"),
        ({"ends_at": "9999-12-31T23:59:59-12:00"}, "ends_at"),
        ({"starts_at": "2026-03-01T00:00:00Z", "ends_at": "2026-03-01T00:00:00Z"}, "ends_at"),
        ({"targeting": {"hours": [24]}}, "body.targeting.hours.0"),
    ],
)
def test_a_bad_field_is_named(api, held, market, change, message):
    body = json.dumps(CAMPAIGN | change)  # as text: httpx refuses to write NaN
    headers = held["acme"] | {"Content-Type": "application/json"}
    answer = api.post("/campaigns", content=body, headers=headers)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b"\xff", b"[" * 100_000, b'{"a":' + b"9" * 5_000 + b"}"])
def test_a_bad_body_is_refused(api, held, body):
    headers = held["acme"] | {"Content-Type": "application/json"}
    assert api.post("/campaigns", content=body, headers=headers).status_code in (400, 422)


def test_bodies_are_bounded(api, held):
    headers = held["operator"] | {"Content-Type": "application/json"}
    assert api.post("/campaigns", content=b" " * (BODY_BYTES + 1), headers=headers).status_code == 413
    pieces = (b" " * 65_536 for _ in range(BODY_BYTES // 65_536 + 1))  # no Content-Length
    assert api.post("/campaigns", content=pieces, headers=headers).status_code == 413


def test_pages(api, held, book, campaign):
    for number in range(5):
        book.put_campaign(campaign(f"c{number}", advertiser_id="acme" if number % 2 else "bolt"))
    seen, after = [], ""
    while after is not None:
        page = api.get("/campaigns", params={"limit": 2, "after": after}, headers=held["operator"]).json()
        seen += [item["campaign_id"] for item in page["items"]]
        after = page["next"]
    assert seen == ["c0", "c1", "c2", "c3", "c4"]
    page = api.get("/campaigns", headers=held["acme"]).json()
    assert ([item["campaign_id"] for item in page["items"]], page["next"]) == (["c1", "c3"], None)
    for limit in (0, 1001):
        assert api.get("/campaigns", params={"limit": limit}, headers=held["acme"]).status_code == 422


def test_reports_ask_the_ledger_for_campaigns_that_the_key_may_see(api, held, around, market):
    span = {"since": "2026-03-01T00:00:00Z", "until": "2026-03-02T00:00:00Z"}
    rows = api.get("/reports/campaigns", params=span, headers=held["acme"]).json()["items"]
    assert [(row["campaign_id"], row["charged_nanos"]) for row in rows] == [("c-acme", 6_000_000)]
    assert around.calls == [("spend", "c-acme", 1_772_323_200_000_000, 1_772_409_600_000_000)]
    page = api.get("/reports/campaigns", params=span | {"limit": 1}, headers=held["operator"]).json()
    assert [row["campaign_id"] for row in page["items"]] == [page["next"]] == ["c-acme"]
    assert api.get("/reports/campaigns", params=span | {"since": "2026"}, headers=held["acme"]).status_code == 422


def test_keys_are_shown_once_and_revoked(api, held):
    made = api.post("/keys", json={"name": "Bob", "advertiser_id": "bolt"}, headers=held["operator"])
    assert (made.status_code, made.headers["Cache-Control"]) == (201, "no-store")
    bob, key_id = {"Authorization": f"Bearer {made.json()['key']}"}, made.json()["about"]["key_id"]
    assert made.json()["about"]["scope"] == "advertiser"
    assert api.get("/campaigns", headers=bob).status_code == 200
    listed = api.get("/keys", headers=held["operator"])
    assert made.json()["key"].split(".")[1] not in listed.text
    assert made.json()["about"] in listed.json()
    assert api.delete(f"/keys/{key_id}", headers=held["operator"]).json()["revoked_at"] == "2026-03-01T12:00:00Z"
    assert api.get("/campaigns", headers=bob).status_code == 401
    assert api.delete("/keys/nobody", headers=held["operator"]).status_code == 404


def test_origins_users_and_import(api, held, around):
    operator = held["operator"]
    stored = {"origins": ["https://a.test"]}
    assert (
        api.put("/origins", json={"origins": ["https://A.test", "https://a.test:443"]}, headers=operator).json()
        == stored
    )
    assert api.get("/origins", headers=operator).json() == stored
    assert api.put("/origins", json={"origins": ["*"]}, headers=operator).status_code == 422

    user = {"user_id": "a/b\n"}
    assert api.get("/users", params=user, headers=operator).json() == {"profiles": {"k-user": [1]}}
    assert api.delete("/users", params=user, headers=operator).json() == user | {"removed": {"profiles": 1}}
    for nobody in ({}, {"user_id": ""}):
        assert api.delete("/users", params=nobody, headers=operator).status_code == 422
    assert around.calls == [("export", "a/b\n"), ("erase", "a/b\n")]

    done = api.post("/import", json={"bid_nanos": 5}, headers=operator).json()
    assert (done["campaigns"], done["ads"], done["refused_ads"]) == (1, 1, 1)
    assert "title" in done["refused"][0]["why"]
    assert api.get("/campaigns/unknown", headers=operator).json()["bid_nanos"] == 5


# The access sweep. It reads the app's own routes, so that a new endpoint is in it from its first day.

OPERATORS_ONLY = ("/keys", "/origins", "/users", "/import")
BODIES = {
    "/campaigns": CAMPAIGN,
    "/campaigns/{campaign_id}": CAMPAIGN,
    "/ads": AD | {"campaign_id": "c-bolt"},
    "/ads/{ad_id}": AD | {"campaign_id": "c-bolt"},
    "/keys": {"name": "Eve"},
    "/origins": {"origins": ["https://evil.test"]},
    "/import": {},
}
QUERY = {"since": "2026-03-01T00:00:00Z", "until": "2026-03-02T00:00:00Z", "user_id": "k-user"}


def endpoints(app):
    """(method, path template) of every route of the API; test_status.py sweeps those of the page."""
    assert all(isinstance(route, APIRoute) for route in app.routes), "a route that the sweep cannot read"
    of_page = {route.path for route in page.router.routes}
    return [
        (method, route.path) for route in app.routes if route.path not in of_page for method in sorted(route.methods)
    ]


def ask(api, method, template, headers, *, account="bolt", params=QUERY, body=None):
    values = {
        "campaign_id": f"c-{account}",
        "ad_id": f"a-{account}",
        "action": "end",
        "key_id": "k",
        "user_id": "k-user",
    }
    path = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template)
    body = BODIES.get(template) if body is None else body
    sends = {"json": body} if method in ("POST", "PUT") and body is not None else {}
    return api.request(method, path, headers=headers, params=params, **sends)


def everything(desk):
    return [
        desk.connection.execute(f"SELECT * FROM {table}").fetchall()
        for table in ("campaigns", "ads", "keys", "origins")
    ]


def test_the_sweep_knows_every_endpoint(api):
    found = endpoints(api.app)
    assert len(found) == 21, "an endpoint came or went: see that the sweep sends it a body that would pass"
    templates = {path for _, path in found}
    assert set(BODIES) <= templates


@pytest.mark.parametrize("holder", ["nobody", "wrong", "basic", "revoked"])
def test_without_a_key_in_force_nothing_opens(api, held, around, market, desk, holder):
    before = everything(desk)
    for method, path in endpoints(api.app):
        answer = ask(api, method, path, held[holder])
        if path == "/health":
            assert answer.status_code == 200
            continue
        assert (answer.status_code, answer.headers.get("WWW-Authenticate")) == (401, "Bearer"), (method, path)
        assert not [word for word in SECRETS if word in answer.text]
    assert everything(desk) == before and around.calls == []


def test_an_account_neither_reads_nor_changes_another(api, held, around, market, desk):
    before = everything(desk)
    for method, path in endpoints(api.app):
        if path in ("/health", "/openapi.json"):
            continue
        params = QUERY | {"advertiser_id": "bolt", "campaign_id": "c-bolt"}
        body = BODIES.get(path, {}) | {"advertiser_id": "bolt"} if path.startswith("/campaigns") else None
        answer = ask(api, method, path, held["acme"], params=params, body=body)
        if path.startswith(OPERATORS_ONLY):
            assert answer.status_code == 403, (method, path)
        elif "{" in path or method == "POST":
            assert answer.status_code == 404, (method, path, answer.text)
            # what does not exist gives the very same answer
            assert answer.content == ask(api, method, path, held["acme"], account="none", body=body).content
        else:
            assert answer.json() == {"items": [], "next": None}, (method, path)
        assert not [word for word in SECRETS if word in answer.text], (method, path)
    assert everything(desk) == before and around.calls == []


def test_an_account_without_filters_sees_itself_alone(api, held, around, market):
    for method, path in endpoints(api.app):
        if method == "GET" and "{" not in path and path != "/openapi.json" and not path.startswith(OPERATORS_ONLY):
            answer = ask(api, method, path, held["acme"])
            assert answer.status_code == 200, (method, path)
            assert not [word for word in SECRETS if word in answer.text], (method, path)
            assert path == "/health" or "acme" in answer.text


def test_an_operator_is_let_in_everywhere(api, held, market):
    for method, path in endpoints(api.app):
        body = BODIES[path] | {"advertiser_id": "bolt"} if path.startswith("/campaigns") and path in BODIES else None
        answer = ask(api, method, path, held["operator"], body=body)
        assert answer.status_code in (200, 201) or (path, answer.status_code) in {
            ("/keys/{key_id}", 404),
            ("/campaigns/{campaign_id}", 409),
            ("/ads/{ad_id}", 409),
        }, (method, path, answer.text)


def test_an_account_cannot_move_into_another(api, held, market, desk):
    before = everything(desk)
    own = {"campaign_id": "c-acme"}
    assert api.put("/ads/a-acme", json=AD | {"campaign_id": "c-bolt"}, headers=held["acme"]).status_code == 404
    assert api.put("/ads/a-bolt", json=AD | own, headers=held["acme"]).status_code == 404
    assert api.put("/ads/new", json=AD | own, headers=held["acme"]).status_code == 404
    assert api.put("/campaigns/new", json=CAMPAIGN, headers=held["acme"]).status_code == 404
    theirs = CAMPAIGN | {"advertiser_id": "bolt"}
    assert api.put("/campaigns/c-acme", json=theirs, headers=held["acme"]).status_code == 404
    assert everything(desk) == before


def test_the_description_is_complete(api, held):
    described = api.get("/openapi.json", headers=held["acme"]).json()
    assert {path for _, path in endpoints(api.app)} == {*described["paths"], "/openapi.json"}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            is_open = path == "/health"
            assert bool(operation.get("security")) != is_open, (method, path)
            assert operation["summary"] and operation["description"], (method, path)
            assert is_open or "401" in operation["responses"]
