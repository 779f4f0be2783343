"""The management API on a campaign store with two accounts: campaigns, ads, reports, keys, origins, users, import."""

from __future__ import annotations

import json

import polars as pl
import pytest
from starlette.testclient import TestClient

from leadre.auction.budget.sums import UsedBudget
from leadre.auction.pacing.contract import GoalFactors
from leadre.clock import ManualClock
from leadre.data import tables
from leadre.serve.catalogue import eligibility
from leadre.serve.ipc.messages import CampaignPacing, ClockReply, GoalFigures
from leadre.serve.manage.access import Backend, Lists, Ranker, Spend
from leadre.serve.manage.api import BODY_BYTES, manage_app
from leadre.serve.manage.auth import ApiKeys
from leadre.serve.manage.history import MetricRecorder
from leadre.types import Goal

CAMPAIGN = {"name": "Autumn", "bid_type": "cpm", "bid_nanos": 2_000_000}
AD = {"title": "Shoes", "landing_url": "https://acme.test/shoes"}


class FakeBackend:
    """A backend that records the calls of the API in ``calls`` and returns fixed values."""

    def __init__(self):
        self.calls = []
        self.used = (UsedBudget(charged_nanos=5, reserved_nanos=4), UsedBudget(charged_nanos=2, written_off_nanos=1))
        self.clock = ManualClock(wall_us=1_772_366_400_000_000)
        self.paced = {}

    def backend(self):
        frame = tables.complete("ads", pl.DataFrame({"ad_id": ["t1", "t2"], "title": ["Tea", ""]}))
        return Backend(
            clock=self.clock,
            erase=lambda user: self.calls.append(("erase", user)) or {"profiles": 1},
            export=lambda user: self.calls.append(("export", user)) or {"profiles": {"k-user": [1]}},
            spend=self.spend,
            catalogue=lambda: self.calls.append(("import",)) or frame,
            history=MetricRecorder(self.clock, dict).read,
            charged_today=list,
            used_budget=lambda _: self.used,
            pacing=lambda: self.paced,
            counts=dict,
            explain=lambda _: None,
            lists=lambda: Lists(version="", made_at_us=0),
            ranker=lambda: Ranker(version="", published_at_us=0),
            time_state=lambda: self.time("jump"),
            confirm_clock=lambda by: self.calls.append(("confirm", by)) or self.time(""),
        )

    def time(self, doubt):
        now_us = self.clock.now_us()
        return ClockReply(doubt=doubt, why="", now_us=now_us, machine_us=now_us + 1_000_000, certain_us=now_us)

    def spend(self, campaigns, from_us, to_us):
        self.calls.append(("spend", *campaigns, from_us, to_us))
        row = {"day": "2026-03-01", "impressions": 3, "clicks": 1, "conversions": 0, "charged_nanos": 6_000_000}
        return [Spend(campaign_id=name, **row) for name in campaigns]


@pytest.fixture
def fake():
    return FakeBackend()


@pytest.fixture
def api(manage_database, fake):
    with TestClient(manage_app(manage_database, fake.backend()), raise_server_exceptions=True) as client:
        yield client


@pytest.fixture
def headers(manage_database):
    """Headers with the key of the operator and of the account acme, by name."""
    keys = ApiKeys(manage_database)
    return {
        name: {"Authorization": f"Bearer {keys.create(name, 1, account)[1]}"}
        for name, account in (("operator", ""), ("acme", "acme"))
    }


@pytest.fixture
def market(campaign_store, campaign, ad):
    for account, plan in (("acme", "Acme's plan"), ("bolt", "Bolt's plan")):
        campaign_store.put_campaign(campaign(f"c-{account}", advertiser_id=account, name=plan))
        campaign_store.put_ad(ad(f"a-{account}", campaign_id=f"c-{account}", advertiser_id=account))
    return campaign_store


def test_account_creates_pauses_and_ends_a_campaign_and_its_ad(api, headers, fake, market, reader):
    acme = headers["acme"]
    form = CAMPAIGN | {
        "starts_at": "2026-03-01T01:30:00.5+01:00",
        "targeting": {"countries": ["FRA", "DEU"], "hours": [9]},
        "daily_nanos": 10**9,
        "plan": "hours",
        "hour_shares": [0] * 9 + [2] + [1] * 14,
        "pacer": "throttle",
        "shading": True,
    }
    created = api.post("/campaigns", json=form, headers=acme)
    assert created.status_code == 201
    shown = created.json()
    assert api.get(created.headers["Location"], headers=acme).json() == shown
    assert (shown["advertiser_id"], shown["starts_at"], shown["ends_at"]) == (
        "acme",
        "2026-03-01T00:30:00.500000Z",
        None,
    )
    assert shown["targeting"]["countries"] == ["DEU", "FRA"]
    assert {name: shown[name] for name in ("plan", "hour_shares", "pacer", "shading")} == {
        name: form[name] for name in ("plan", "hour_shares", "pacer", "shading")
    }
    name = shown["campaign_id"]

    created = api.post("/ads", json=AD | {"campaign_id": name, "sizes": [[300, 250]]}, headers=acme)
    assert created.status_code == 201
    ad_id = created.json()["ad_id"]
    assert created.json()["object_id"] == ad_id and created.json()["adomain"] == "acme.test"
    live = eligibility.load(reader)
    assert live.live_A[live.row_of_ad[ad_id]]

    for action, status in (("pause", "paused"), ("resume", "active"), ("end", "ended")):
        assert api.post(f"/ads/{ad_id}/{action}", headers=acme).json()["status"] == status
    assert api.post(f"/ads/{ad_id}/resume", headers=acme).status_code == 409
    assert not eligibility.refresh(live, reader).live_A[live.row_of_ad[ad_id]]
    assert api.post(f"/campaigns/{name}/pause", headers=acme).json()["status"] == "paused"
    assert api.post(f"/campaigns/{name}/delete", headers=acme).status_code == 422


def test_pacing_is_shown_to_the_account(api, headers, fake, campaign_store, campaign):
    campaign_store.put_campaign(campaign("c-acme", daily_nanos=100, plan="even"))
    begins = {
        "campaign_id": "c-acme",
        "plan": "even",
        "pacer": "mirror",
        "multiplier": None,
        "today": None,
        "goal": None,
    }
    assert api.get("/campaigns/c-acme/pacing", headers=headers["acme"]).json() == begins
    money = {"budget_nanos": 100, "spent_nanos": 40, "planned_nanos": 50}
    fake.paced = {
        "c-acme": CampaignPacing(campaign_id="c-acme", participate=1.0, multiplier=0.4, has_forecast=False, **money)
    }
    shown = api.get("/campaigns/c-acme/pacing", headers=headers["acme"]).json()
    today = {"multiplier": 0.4, "participate": 1.0, "has_forecast": False} | money
    assert shown == begins | {"today": today, "multiplier": 0.4}
    campaign_store.put_campaign(campaign("c-bolt", advertiser_id="bolt", daily_nanos=100, plan="even"))
    fake.paced |= {"c-bolt": fake.paced["c-acme"]}
    assert api.get("/campaigns/c-bolt/pacing", headers=headers["acme"]).status_code == 404


def test_goal_is_shown_with_the_realised_cost_and_return(api, headers, fake, campaign_store, campaign):
    goal = Goal(kind="roas", target_return=4.0, conversion_nanos=400)
    campaign_store.put_campaign(campaign("c-acme", goal=goal))
    totals = {"cost_nanos": 300, "actions": 4, "value_nanos": 1_500}
    figures = GoalFigures(**totals, expected_actions=0.5, factors=GoalFactors(0.9, 2.0, 0.0))
    money = {"budget_nanos": 0, "spent_nanos": 0, "planned_nanos": 0, "has_forecast": False}
    fake.paced = {
        "c-acme": CampaignPacing(campaign_id="c-acme", participate=1.0, multiplier=1.35, goal=figures, **money)
    }
    shown = api.get("/campaigns/c-acme/pacing", headers=headers["acme"]).json()
    assert shown["today"] is None and shown["multiplier"] == 1.35
    assert shown["goal"] == totals | {
        "kind": "roas",
        "target_nanos": 100,
        "realised_nanos": 75,
        "target_return": 4.0,
        "realised_return": 5.0,
        "expected_actions": 0.5,
        "correction": 0.9,
        "return_dual": 2.0,
        "budget_dual": 0.0,
    }


def test_budget_is_shown_beside_the_cap_in_force(api, headers, campaign_store, campaign):
    campaign_store.put_campaign(campaign("c-acme", total_nanos=7, daily_nanos=3))
    shown = api.get("/campaigns/c-acme/budget", headers=headers["acme"]).json()
    names = ("budget_nanos", "cap_in_force_nanos", "charged_nanos", "reserved_nanos", "written_off_nanos")
    assert [shown["total"][name] for name in names] == [7, 9, 5, 4, 0]
    assert [shown["today"][name] for name in names] == [3, 3, 2, 0, 1]
    campaign_store.put_campaign(campaign("c-acme", total_nanos=0, daily_nanos=3))
    assert api.get("/campaigns/c-acme/budget", headers=headers["acme"]).json()["total"]["cap_in_force_nanos"] == 0


def test_account_cannot_join_the_object_of_another_until_the_operator_grants_it(api, headers, market):
    """Else it would get the impressions of the other account's ads."""
    acme = headers["acme"]
    operator = headers["operator"]
    taken = AD | {"campaign_id": "c-acme", "object_id": market.ad("a-bolt").object_id.upper()}
    for call in (
        api.post("/ads", json=taken, headers=acme),
        api.put("/ads/a-acme", json=taken, headers=acme),
        api.put("/ads/new", json=taken, headers=operator),
    ):
        assert call.status_code == 409 and "an object of another account" in call.json()["detail"]
    accounts = f"/objects/{taken['object_id']}/accounts"
    assert api.put(f"{accounts}/acme", headers=acme).status_code == 403
    granted = api.put(f"{accounts}/acme", headers=operator)
    assert granted.json() == api.get(accounts, headers=operator).json()
    assert granted.json()["advertiser_ids"] == ["acme"]
    assert api.post("/ads", json=taken, headers=acme).status_code == 201
    assert api.put(f"{accounts}/%20", headers=operator).status_code == 422


def test_repeated_put_changes_nothing(api, headers, manage_database):
    operator = headers["operator"]
    form = CAMPAIGN | {"advertiser_id": "acme"}
    assert [api.put("/campaigns/c 1", json=form, headers=operator).status_code for _ in range(2)] == [201, 200]
    before = manage_database.connection.execute("SELECT number FROM version").fetchone()
    shown = api.put("/campaigns/c 1", json=form, headers=operator).json()
    assert manage_database.connection.execute("SELECT number FROM version").fetchone() == before
    assert shown["campaign_id"] == "c 1"
    ad = AD | {"campaign_id": "c 1"}
    assert [api.put("/ads/%C3%A4%3F1", json=ad, headers=operator).status_code for _ in range(2)] == [201, 200]
    assert api.get("/ads/%C3%A4%3F1", headers=operator).json()["ad_id"] == "ä?1"
    # an account puts a campaign in the form in which the API returned it
    form = {field: value for field, value in shown.items() if field != "campaign_id"}
    assert api.put("/campaigns/c 1", json=form, headers=headers["acme"]).json() == shown
    assert api.put("/campaigns/c 1", json=form | {"currency": "EUR"}, headers=operator).status_code == 409
    assert api.put("/campaigns/c2", json=CAMPAIGN, headers=operator).status_code == 422  # the account is missing


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
        ({"starts_at": "2026-03-01T00:00:00"}, "expects an offset"),
        ({"starts_at": 1_772_323_200}, "body.starts_at"),
        ({"starts_at": "1969-12-31T00:00:00Z"}, "starts_at"),
        ({"ends_at": "9999-12-31T23:59:59-12:00"}, "ends_at"),
        ({"starts_at": "2026-03-01T00:00:00Z", "ends_at": "2026-03-01T00:00:00Z"}, "ends_at"),
        ({"targeting": {"hours": [24]}}, "body.targeting.hours.0"),
        ({"plan": "soon"}, "body.plan"),
        ({"plan": "even"}, "plan = 'even'; it must be 'asap' for a campaign with neither"),
        ({"hour_shares": [1] * 25}, "body.hour_shares"),
        ({"pacer": "fast"}, "body.pacer"),
        ({"shading": "maybe"}, "body.shading"),
    ],
)
def test_error_names_the_invalid_field(api, headers, market, change, message):
    body = json.dumps(CAMPAIGN | change)  # as text: httpx refuses to write NaN
    json_headers = headers["acme"] | {"Content-Type": "application/json"}
    answer = api.post("/campaigns", content=body, headers=json_headers)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b"\xff", b"[" * 100_000, b'{"a":' + b"9" * 5_000 + b"}"])
def test_invalid_body_is_refused(api, headers, body):
    json_headers = headers["acme"] | {"Content-Type": "application/json"}
    assert api.post("/campaigns", content=body, headers=json_headers).status_code in (400, 422)


def test_body_above_the_limit_is_refused(api, headers):
    json_headers = headers["operator"] | {"Content-Type": "application/json"}
    assert api.post("/campaigns", content=b" " * (BODY_BYTES + 1), headers=json_headers).status_code == 413
    pieces = (b" " * 65_536 for _ in range(BODY_BYTES // 65_536 + 1))  # no Content-Length
    assert api.post("/campaigns", content=pieces, headers=json_headers).status_code == 413


def test_lists_are_paged_and_filtered_by_account(api, headers, campaign_store, campaign):
    for number in range(5):
        campaign_store.put_campaign(campaign(f"c{number}", advertiser_id="acme" if number % 2 else "bolt"))
    seen = []
    after = ""
    while after is not None:
        page = api.get("/campaigns", params={"limit": 2, "after": after}, headers=headers["operator"]).json()
        seen += [item["campaign_id"] for item in page["items"]]
        after = page["next"]
    assert seen == ["c0", "c1", "c2", "c3", "c4"]
    page = api.get("/campaigns", headers=headers["acme"]).json()
    assert ([item["campaign_id"] for item in page["items"]], page["next"]) == (["c1", "c3"], None)
    for limit in (0, 1001):
        assert api.get("/campaigns", params={"limit": limit}, headers=headers["acme"]).status_code == 422


def test_report_covers_the_campaigns_of_the_account(api, headers, fake, market):
    span = {"since": "2026-03-01T00:00:00Z", "until": "2026-03-02T00:00:00Z"}
    rows = api.get("/reports/campaigns", params=span, headers=headers["acme"]).json()["items"]
    assert [(row["campaign_id"], row["charged_nanos"]) for row in rows] == [("c-acme", 6_000_000)]
    assert fake.calls == [("spend", "c-acme", 1_772_323_200_000_000, 1_772_409_600_000_000)]
    page = api.get("/reports/campaigns", params=span | {"limit": 1}, headers=headers["operator"]).json()
    assert [row["campaign_id"] for row in page["items"]] == [page["next"]] == ["c-acme"]
    assert api.get("/reports/campaigns", params=span | {"since": "2026"}, headers=headers["acme"]).status_code == 422


def test_keys_are_shown_once_and_revoked(api, headers):
    created = api.post("/keys", json={"name": "Bob", "advertiser_id": "bolt"}, headers=headers["operator"])
    assert (created.status_code, created.headers["Cache-Control"]) == (201, "no-store")
    bob = {"Authorization": f"Bearer {created.json()['key']}"}
    key_id = created.json()["about"]["key_id"]
    assert created.json()["about"]["scope"] == "advertiser"
    assert api.get("/campaigns", headers=bob).status_code == 200
    listed = api.get("/keys", headers=headers["operator"])
    assert created.json()["key"].split(".")[1] not in listed.text
    assert created.json()["about"] in listed.json()
    assert api.delete(f"/keys/{key_id}", headers=headers["operator"]).json()["revoked_at"] == "2026-03-01T12:00:00Z"
    assert api.get("/campaigns", headers=bob).status_code == 401
    assert api.delete("/keys/nobody", headers=headers["operator"]).status_code == 404


def test_origins_users_and_import(api, headers, fake):
    operator = headers["operator"]
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
    for invalid in ({}, {"user_id": ""}):
        assert api.delete("/users", params=invalid, headers=operator).status_code == 422
    assert fake.calls == [("export", "a/b\n"), ("erase", "a/b\n")]

    done = api.post("/import", json={"bid_nanos": 5}, headers=operator).json()
    assert (done["campaigns"], done["ads"], done["refused_ads"]) == (1, 1, 1)
    assert "title" in done["refused"][0]["why"]
    assert api.get("/campaigns/unknown", headers=operator).json()["bid_nanos"] == 5
