"""Limits and reviews at the management API: an operator decides, an account reads its own and gets the reasons."""

from __future__ import annotations

import dataclasses

import pytest
from starlette.testclient import TestClient

from leadre.serve.manage.api import manage_app
from leadre.serve.manage.auth import ApiKeys

from .test_api import AD, CAMPAIGN, FakeBackend


@pytest.fixture
def send(manage_database):
    """(holder, method, path, body) -> (status, JSON). Ads of accounts are reviewed."""
    backend = dataclasses.replace(FakeBackend().backend(), reviews_accounts=True)
    client = TestClient(manage_app(manage_database, backend))
    keys = ApiKeys(manage_database)
    shown = {name: keys.create(name, 1, account)[1] for name, account in (("op", ""), ("acme", "acme"))}

    def call(holder, method, path, body=None, **query):
        headers = {"Authorization": f"Bearer {shown[holder]}"}
        answer = client.request(method, path, json=body, params=query, headers=headers)
        return answer.status_code, answer.json()

    return call


def test_limit_refuses_at_the_door_and_names_what_it_stops(send):
    campaign_id = send("acme", "POST", "/campaigns", CAMPAIGN)[1]["campaign_id"]
    status, account = send("op", "PUT", "/accounts/acme", {"cpm_bid_nanos": 1_000_000, "campaigns": 2})
    assert status == 200 and account["limits"]["campaigns"] == 2
    why = "bid_nanos = 2000000 is above the account's 1000000 for cpm"
    assert account["stopped_campaigns"] == {campaign_id: why}
    assert send("acme", "GET", "/accounts/acme") == (200, account)
    status, problem = send("acme", "POST", "/campaigns", CAMPAIGN)
    assert status == 409 and why in problem["detail"] and "an operator can raise the limit" in problem["detail"]
    assert send("acme", "PUT", f"/campaigns/{campaign_id}", CAMPAIGN | {"bid_nanos": 1_000_000})[0] == 200
    assert send("acme", "GET", "/accounts/acme")[1]["stopped_campaigns"] == {}
    assert send("acme", "PUT", "/accounts/acme", {})[0] == 403
    assert send("acme", "GET", "/accounts/bolt") == (404, {"detail": "nothing has this ID"})
    assert [entry["kind"] for entry in send("acme", "GET", "/audit", item_id="")[1]["items"]][-2:] == [
        "limits",
        "campaign",
    ]


def test_account_reads_the_state_of_its_ad_and_an_operator_decides(send):
    campaign_id = send("acme", "POST", "/campaigns", CAMPAIGN)[1]["campaign_id"]
    ad = send("acme", "POST", "/ads", AD | {"campaign_id": campaign_id})[1]
    assert ad["review"] == "pending"
    waiting = send("op", "GET", "/ads", review="pending")[1]["items"]
    assert [item["ad_id"] for item in waiting] == [ad["ad_id"]]
    path = f"/ads/{ad['ad_id']}/review"
    assert send("acme", "PUT", path, {"review": "approved"})[0] == 403
    assert send("op", "PUT", path, {"review": "approved", "content_hash": "other"})[0] == 409
    assert send("op", "PUT", path, {"review": "rejected"})[0] == 422
    decision = {"review": "rejected", "reason": "no shoes", "content_hash": waiting[0]["content_hash"]}
    assert send("op", "PUT", path, decision)[0] == 200
    assert send("acme", "GET", f"/ads/{ad['ad_id']}")[1]["review_reason"] == "no shoes"
    changed = send("acme", "PUT", f"/ads/{ad['ad_id']}", AD | {"campaign_id": campaign_id, "title": "Hats"})[1]
    assert (changed["review"], changed["review_reason"]) == ("pending", "")
    for text in ("", "/", "[", "http://[x/"):
        assert send("op", "PUT", "/pages", {"landing_url": text, "reason": "malware"})[0] == 422
    assert send("op", "PUT", "/pages", {"landing_url": AD["landing_url"], "reason": "malware"})[0] == 200
    assert send("op", "GET", "/pages")[1] == {"rejected": {"acme.test/shoes": "malware"}}
    assert send("acme", "GET", f"/ads/{ad['ad_id']}")[1]["review_reason"] == "the landing page is rejected: malware"
    assert send("acme", "GET", "/pages")[0] == 403
