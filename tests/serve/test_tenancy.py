"""Two accounts on one running bidder: no byte of any response to one account names anything of the other.

The routes are those of both OpenAPI descriptions, each called with IDs of its own account, of the other and of none.
"""

from __future__ import annotations

import itertools
import os

import httpx
import pytest

from leadre.serve.manage.auth import ACCOUNT_SCOPES
from leadre.serve.processes.openapi import describe

from .bidder import bid_request, event_urls, until

pytestmark = pytest.mark.slow

USES = ("own", "other", "none")
SPAN = {"since": "2020-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z"}


class Account:
    """An account with a campaign, two ads of which one is rejected, keys, limits, bids and events."""

    def __init__(self, bidder, name: str, limit: int) -> None:
        self.name = f"{name}-{os.urandom(4).hex()}"
        mark = f"{name}secret"
        created = bidder.manage(
            "POST", "/keys", {"name": f"{mark} holder", "advertiser_id": self.name, "scopes": list(ACCOUNT_SCOPES)}
        )
        self.key = created["key"]
        targeting = {"sites": ["news.example", f"{mark}.example"]}
        campaign = {"name": f"{mark} plan", "bid_type": "cpm", "bid_nanos": 3_000_000, "targeting": targeting}
        self.campaign_id = bidder.manage("POST", "/campaigns", campaign, key=self.key)["campaign_id"]
        texts = {"title": f"{mark} title", "description": f"{mark} text", "brand": f"{mark} brand"}
        urls = {"landing_url": f"https://{mark}.example/page", "image_url": f"https://{mark}.example/a.png"}
        ad = texts | urls | {"campaign_id": self.campaign_id, "object_id": f"{mark}-object-{self.name}"}
        self.ad_id = bidder.manage("POST", "/ads", ad, key=self.key)["ad_id"]
        rejected = bidder.manage("POST", "/ads", ad | {"landing_url": f"https://{mark}.example/no"}, key=self.key)
        bidder.manage("PUT", f"/ads/{self.ad_id}/review", {"review": "approved"})
        reason = {"landing_url": f"https://{mark}.example/no", "reason": f"{mark} reason"}
        bidder.manage("PUT", "/pages", reason)
        bidder.manage("PUT", f"/accounts/{self.name}", {"campaigns": limit})
        spare = bidder.manage("POST", "/keys", {"name": f"{mark} spare"}, key=self.key)
        self.ids = {
            "campaign_id": self.campaign_id,
            "ad_id": self.ad_id,
            "advertiser_id": self.name,
            "key_id": spare["about"]["key_id"],
            "item_id": self.ad_id,
            "object_id": ad["object_id"],
            "user_id": f"user-{self.name}",
            "click_id": "none",
        }
        own_ids = [value for name, value in self.ids.items() if name != "click_id"]
        self.names = [*own_ids, mark, rejected["ad_id"], created["about"]["key_id"], str(limit)]


@pytest.fixture(scope="module")
def accounts(bidder):
    """Two accounts whose ads compete in each other's requests; each has been shown and clicked."""
    pair = [Account(bidder, "alder", 7_654_321), Account(bidder, "birch", 8_765_432)]
    alder, birch = pair
    for first, second in ((alder, birch), (birch, alder)):
        bidder.list_for(first.ids["user_id"], first.ad_id, second.ad_id)
        request_id = os.urandom(6).hex()
        (bid,) = bidder.bids(user={"id": first.ids["user_id"]}, id=request_id)
        assert bid["crid"] == first.ad_id
        urls = event_urls(bid)
        for kind in ("imp", "bill", "click"):
            answer = bidder.http.get(urls[kind])
            assert answer.status_code in (200, 204, 302)
        first.ids["click_id"] = answer.headers["location"].split("leadre_click=")[1]
        first.ids["request_id"] = request_id
        first.names.append(first.ids["click_id"])
    for account in pair:
        url = f"{bidder.url}/v1/explain/{account.ids['request_id']}"
        headers = {"authorization": f"Bearer {bidder.operator}"}
        until(lambda url=url, headers=headers: bidder.http.get(url, headers=headers).status_code == 200, "logged")
    return pair


def operations(bidder):
    """(base URL, method, path, description, schemas) of each operation that wants a key, on both ports."""
    managed = bidder.manage("GET", "/openapi.json")
    for base, described in ((f"http://127.0.0.1:{bidder.manage_port}", managed), (bidder.url, describe())):
        for path, methods in described["paths"].items():
            for method, about in methods.items():
                if about.get("security"):
                    yield base, method.upper(), path, about, described["components"]["schemas"]


def resolved(schema, schemas):
    if "$ref" in schema:
        return resolved(schemas[schema["$ref"].rsplit("/", 1)[1]], schemas)
    kinds = [kind for kind in schema.get("anyOf", ()) if kind.get("type") != "null"]
    return schema | resolved(kinds[0], schemas) if kinds else schema


def value_of(name, schema, ids):
    if name in ids:
        return ids[name]
    if name in SPAN:
        return SPAN[name]
    if name == "status" and "enum" in schema:
        return schema["enum"][0]
    for source in (schema.get("example"), *schema.get("examples", ())):
        if source is not None:
            return source
    return (
        schema["enum"][0] if "enum" in schema else schema.get("default", "x" if schema.get("type") == "string" else 1)
    )


def calls(about, path, schemas, ids):
    """(path, query, body) for each value of the path's enums; optional parts are sent if they are IDs."""
    parameters = about.get("parameters", ())
    enums = [
        [(parameter["name"], value) for value in parameter["schema"]["enum"]]
        for parameter in parameters
        if parameter["in"] == "path" and "enum" in parameter["schema"]
    ]
    body_schema = about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    body = None
    if body_schema is not None:
        described = resolved(body_schema, schemas)
        sent_names = set(described.get("required", ())) | (set(ids) & set(described.get("properties", ())))
        properties = described.get("properties", {})
        body = {name: value_of(name, resolved(properties[name], schemas), ids) for name in sent_names}
    for chosen in itertools.product(*enums):
        filled = path
        for parameter in parameters:
            if parameter["in"] == "path":
                value = dict(chosen).get(parameter["name"]) or value_of(parameter["name"], parameter["schema"], ids)
                filled = filled.replace(f"{{{parameter['name']}}}", str(value))
        query = {
            parameter["name"]: value_of(parameter["name"], parameter["schema"], ids)
            for parameter in parameters
            if parameter["in"] == "query" and (parameter["required"] or parameter["name"] in ids)
        }
        yield filled, query, body
        if query:
            yield filled, {name: value for name, value in query.items() if name in SPAN}, body


def test_status_page_opens_to_no_account(bidder, accounts):
    own, other = accounts
    for path in (
        "/",
        "/status",
        "/status/now",
        "/status/campaigns",
        "/status/ads",
        "/status/reviews",
        "/status/request",
    ):
        headers = {"authorization": f"Bearer {own.key}"}
        answer = httpx.get(f"http://127.0.0.1:{bidder.manage_port}{path}", headers=headers)  # without an old session
        assert answer.status_code == 401 and not [name for name in other.names if name in answer.text]
    login = bidder.http.post(f"http://127.0.0.1:{bidder.manage_port}/status/login", data={"key": own.key})
    assert login.status_code == 403


def test_explanation_of_a_shared_request_has_the_own_candidate_alone(bidder, accounts):
    own, other = accounts
    request = bid_request(user={"id": own.ids["user_id"]})
    bidder.http.post(f"{bidder.url}/openrtb2/bid", json=request)
    url = f"{bidder.url}/v1/explain/{request['id']}"
    until(
        lambda: bidder.http.get(url, headers={"authorization": f"Bearer {bidder.operator}"}).status_code == 200,
        "logged",
    )
    for account, ad_ids in ((own, [own.ad_id]), (other, [other.ad_id])):
        answer = bidder.http.get(url, headers={"authorization": f"Bearer {account.key}"}).json()
        assert [candidate["ad_id"] for candidate in answer["candidates"]] == ad_ids
        assert not {"user_id", "request", "versions", "placements"} & answer.keys()


def test_no_response_to_an_account_names_another(bidder, accounts):
    """The last test of the file: its calls end the campaigns and revoke keys."""
    statuses: dict[str, set[int]] = {}
    for (own, other), (base, method, path, about, schemas) in itertools.product(
        (accounts, accounts[::-1]), list(operations(bidder))
    ):
        for use in USES:
            ids = {"own": own.ids, "other": other.ids, "none": dict.fromkeys(own.ids, "none")}[use]
            sent = [str(value) for value in ids.values()] if use == "other" else []
            for filled, query, body in calls(about, path, schemas, ids):
                headers = {"authorization": f"Bearer {own.key}"}
                answer = bidder.http.request(method, base + filled, params=query, json=body, headers=headers)
                statuses.setdefault(f"{method} {path}", set()).add(answer.status_code)
                text = f"{answer.headers!r}\n{answer.text}"
                leaked = [name for name in other.names if name in text]
                assert not leaked, (method, filled, query, body, answer.status_code, answer.text, leaked)
                assert answer.status_code < 500, (method, filled, answer.text)
                if use == "other" and method != "GET" and answer.is_success:
                    assert not _names(sent, filled, query, body), (method, filled, body, answer.text)
    assert len(statuses) >= 30
    allowed = [name for name, seen in statuses.items() if seen & {200, 201, 204}]
    assert {"GET /campaigns", "GET /audit", "GET /keys", "GET /v1/explain/{request_id}", "POST /v1/conversions"} <= set(
        allowed
    )


def _names(sent, path, query, body):
    """Whether a call names an ID of the other account."""
    text = f"{path} {query} {body}"
    return any(value in text for value in sent)
