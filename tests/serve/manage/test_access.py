"""Every endpoint with every kind of key and with IDs of another account: the API refuses access to foreign items.

The calls are generated from the OpenAPI description, so they cover a new endpoint at once, with a valid body.
`test_generated_calls_are_valid` fails for a parameter of an unknown name.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.manage import attempts, status
from leadre.serve.manage.access import OPERATOR
from leadre.serve.manage.api import manage_app
from leadre.serve.manage.auth import ACCOUNT_SCOPES, ApiKeys

from ..conftest import make_ad, make_campaign
from .test_api import AD, CAMPAIGN, FakeBackend

HOLDERS = {"operator": "", "acme": "acme", "bolt": "bolt", "revoked": "", "acme's other": "acme"}
ACCOUNTS = ("acme", "bolt", "none")
SPAN = {"since": "2026-03-01T00:00:00Z", "until": "2026-03-02T00:00:00Z"}
SHARED_IDS = ("object_id",)  # new ones: no account has them
DATES = ("starts_at", "ends_at")  # left out: the end must be after the start
OPEN = ("/health",)
OPEN_PAGES = {"/docs"}  # the reference, for people without a key
UNDOCUMENTED = ("/openapi.json",)
PAGES = {route.path for route in status.router.routes}  # for people, with sessions: test_status.py
NO_SESSION = ("/status/login", "/status/assets/{name}")


class TwoAccountApi:
    """An API on a campaign store with two accounts, each with a campaign and an ad. Use it in a ``with``."""

    def __init__(self, folder):
        self.records = ManageDatabase(folder / "manage.db")
        self.fake = FakeBackend()
        campaign_store = CampaignStore(self.records)
        keys = ApiKeys(self.records)
        for account in ("acme", "bolt"):
            campaign_store.put_campaign(make_campaign(f"c-{account}", advertiser_id=account, name=f"{account}'s plan"))
            campaign_store.put_ad(make_ad(f"a-{account}", campaign_id=f"c-{account}", advertiser_id=account))
        scopes = {account: ACCOUNT_SCOPES if account else () for account in HOLDERS.values()}
        created = {name: keys.create(name, 1, account, scopes[account]) for name, account in HOLDERS.items()}
        keys.revoke(created["revoked"][0].key_id, 2)
        self.key_id = {name: about.key_id for name, (about, _) in created.items()}
        self.revocable = self.key_id | {"acme": self.key_id["acme's other"]}  # its calls go on after it has revoked one
        shown = {name: key for name, (_, key) in created.items()}
        self.secrets = [shown["bolt"].split(".")[1], self.key_id["bolt"], "c-bolt", "a-bolt", "bolt's plan", "k-user"]
        self.headers = {name: {"Authorization": f"Bearer {key}"} for name, key in shown.items()}
        self.headers |= {
            "nobody": {},
            "wrong": {"Authorization": f"Bearer {shown['operator'][:-1]}"},
            "basic": {"Authorization": f"Basic {shown['operator']}"},
            "another's secret": {"Authorization": f"Bearer {self.key_id['operator']}.{shown['acme'].split('.')[1]}"},
        }
        self.client = TestClient(manage_app(self.records, self.fake.backend()))

    def __enter__(self):
        self.client.__enter__()
        return self

    def __exit__(self, *error):
        self.client.__exit__(*error)
        self.records.close()

    def send(self, call, holder):
        sent = {} if call.body is None else {"json": call.body}
        headers = self.headers[holder]
        return self.client.request(call.method, call.path, params=call.query, headers=headers, **sent)

    def rows(self, other_than=""):
        """All rows; or the rows that do not belong to an account."""
        tables = {"campaigns": "advertiser_id", "ads": "advertiser_id", "keys": "advertiser_id", "origins": ""}
        tables |= {"audit": "advertiser_id", "object_accounts": "advertiser_id"}
        return [
            self.records.connection.execute(
                f"SELECT * FROM {table}" + (f" WHERE {owner} != '{other_than}'" if other_than and owner else "")
            ).fetchall()
            for table, owner in tables.items()
        ]


@dataclass(frozen=True)
class Call:
    """A request. ``owners``: "location.name" of each of its IDs -> the account that owns it."""

    method: str
    path: str
    query: dict[str, Any]
    body: Any
    owners: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """A method of a path, from the OpenAPI description."""

    method: str
    path: str
    about: dict[str, Any]
    schemas: dict[str, Any]

    @property
    def name(self):
        return f"{self.method} {self.path}"

    @property
    def is_operators(self):
        return OPERATOR in self.scopes

    @property
    def scopes(self):
        """The scopes that a key needs, and `OPERATOR`."""
        return [scope for scheme in self.about.get("security", ()) for names in scheme.values() for scope in names]

    @property
    def ids(self):
        """ "location.name" of each ID that belongs to an account."""
        described = [(parameter["in"], parameter["name"]) for parameter in self.about.get("parameters", ())]
        described += [("body", name) for name in self.body_properties()]
        return [f"{where}.{name}" for where, name in described if name.endswith("_id") and name not in SHARED_IDS]

    def body_properties(self):
        content = self.about.get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema")
        return {} if schema is None else self.resolved(schema).get("properties", {})

    def resolved(self, schema):
        """The schema after references; of alternatives, the first that is not null."""
        if "$ref" in schema:
            return self.resolved(self.schemas[schema["$ref"].rsplit("/", 1)[1]])
        kinds = [kind for kind in schema.get("anyOf", ()) if kind.get("type") != "null"]
        return self.resolved(kinds[0]) if kinds else schema

    def calls(self, key_ids, accounts) -> Iterator[Call]:
        """Calls for every action of the path and every combination of accounts for its IDs."""
        parameters = self.about.get("parameters", ())
        enums = {
            parameter["name"]: parameter["schema"]["enum"]
            for parameter in parameters
            if parameter["in"] == "path" and "enum" in parameter["schema"]
        }
        for owners in itertools.product(accounts, repeat=len(self.ids)):
            owner_of = dict(zip(self.ids, owners, strict=True))
            for actions in itertools.product(*enums.values()):
                yield self._call(owner_of, dict(zip(enums, actions, strict=True)), key_ids)

    def _call(self, owner_of, actions, key_ids):
        path = self.path
        query = dict(SPAN)
        for parameter in self.about.get("parameters", ()):
            name = parameter["name"]
            value = actions.get(name) or self.value(
                name, parameter["schema"], owner_of.get(f"{parameter['in']}.{name}"), key_ids
            )
            if parameter["in"] == "path":
                path = path.replace(f"{{{name}}}", value)
            elif value is not None:
                query[name] = value
        body = None
        if properties := self.body_properties():
            created = {
                name: self.value(name, schema, owner_of.get(f"body.{name}"), key_ids)
                for name, schema in properties.items()
                if name not in DATES
            }
            body = {name: value for name, value in created.items() if value is not None}
        return Call(self.method, path, query, body, owner_of)

    def value(self, name, schema, owner, key_ids):
        """The value to send for a field; None omits it."""
        if owner is not None:
            known = {"advertiser_id": owner, "campaign_id": f"c-{owner}", "ad_id": f"a-{owner}"}
            known |= {"key_id": key_ids.get(owner, "none"), "item_id": f"c-{owner}"}
            known["user_id"] = "k-user"
            return known[name]  # KeyError: add an example of the new kind of ID above
        schema = schema | self.resolved(schema)
        if name in SPAN:
            return SPAN[name]
        if "default" in schema and schema["default"] is not None:
            return schema["default"]
        if "examples" in schema:
            return schema["examples"][0]
        if name in AD | CAMPAIGN:
            return (AD | CAMPAIGN)[name]
        return schema["enum"][0] if "enum" in schema else None


def operations(client, headers):
    """All operations of the OpenAPI description."""
    described = client.get("/openapi.json", headers=headers).json()
    schemas = described["components"]["schemas"]
    return [
        Operation(method.upper(), path, about, schemas)
        for path, methods in described["paths"].items()
        for method, about in methods.items()
    ]


@pytest.fixture
def api(tmp_path):
    with TwoAccountApi(tmp_path) as created:
        yield created


@pytest.fixture
def new_api(tmp_path):
    """Makes a new API for each operation, as calls change its rows."""
    numbers = itertools.count()
    return lambda: TwoAccountApi(tmp_path / str(next(numbers)))


def test_every_route_is_described_and_requires_a_key(api):
    described = operations(api.client, api.headers["acme"])
    routes = api.client.app.routes
    assert all(isinstance(route, APIRoute) for route in routes), "a route that the sweep cannot read"
    assert {route.path for route in routes} == {
        *(operation.path for operation in described),
        *UNDOCUMENTED,
        *PAGES,
        *OPEN_PAGES,
    }
    for operation in described:
        assert bool(operation.about.get("security")) != (operation.path in OPEN), operation.name
        assert operation.about["summary"] and operation.about["description"], operation.name
        assert operation.path in OPEN or "401" in operation.about["responses"], operation.name


def test_generated_calls_are_valid(new_api, api):
    """Each call succeeds with the operator's key, so no other call is refused for an invalid value."""
    described = operations(api.client, api.headers["operator"])
    assert len(described) >= 20
    for operation in described:
        for number, _ in enumerate(operation.calls(api.revocable, ("acme",))):
            with new_api() as fresh:
                call = list(operation.calls(fresh.revocable, ("acme",)))[number]
                answer = fresh.send(call, "operator")
            assert answer.status_code in (200, 201), (call, answer.text)


@pytest.mark.parametrize("holder", ["nobody", "wrong", "basic", "revoked", "another's secret"])
def test_calls_without_a_key_in_force_are_refused(monkeypatch, new_api, holder):
    monkeypatch.setattr(attempts, "FAILED_LOGINS", 10_000.0)
    with new_api() as api:
        check_calls_without_a_key_in_force(api, holder)


def test_many_calls_without_a_key_in_force_are_limited_and_a_valid_key_is_still_served(api):
    (call, *_) = (Call("GET", path, {}, None) for path in UNDOCUMENTED)
    statuses = [api.send(call, "wrong").status_code for _ in range(70)]
    assert statuses == [401] * 60 + [429] * 10
    assert api.send(call, "wrong").headers["retry-after"] == attempts.RETRY_AFTER_S
    assert api.client.post("/status/login", data={"key": "wrong"}).status_code == 429
    assert api.send(call, "operator").status_code == 200


def check_calls_without_a_key_in_force(api, holder):
    before = api.rows()
    calls = [Call("GET", path, {}, None) for path in UNDOCUMENTED]
    for operation in operations(api.client, api.headers["operator"]):
        if operation.path not in OPEN:
            calls += operation.calls(api.revocable, ("bolt",))
    for call in calls:
        answer = api.send(call, holder)
        assert (answer.status_code, answer.headers.get("WWW-Authenticate")) == (401, "Bearer"), call
        assert not [word for word in api.secrets if word in answer.text], call
    assert api.rows() == before and api.fake.calls == []


def test_account_neither_reads_nor_changes_another(new_api, api):
    """Each ID of each call is its own, another account's or unknown; another account's ID is refused as unknown."""
    swept = 0
    for operation in operations(api.client, api.headers["operator"]):
        if operation.path in OPEN:
            continue
        with new_api() as fresh:
            before = fresh.rows(other_than="acme")
            for call in operation.calls(fresh.revocable, ACCOUNTS):
                answer = fresh.send(call, "acme")
                swept += 1
                assert not [word for word in fresh.secrets if word in answer.text], (call, answer.text)
                assert fresh.rows(other_than="acme") == before, call
                assert not fresh.fake.calls or fresh.fake.calls == _own_spend(fresh.fake.calls), call
                owners = set(call.owners.values())
                if operation.is_operators:
                    assert answer.status_code == 403, call
                elif ("bolt" in owners and call.method != "GET") or "bolt" in _in_path(call):
                    assert answer.status_code == 404, (call, answer.text)
                elif "bolt" in owners:
                    assert answer.json() == {"items": [], "next": None}, call
                if owners == {"bolt"} and call.method != "GET":  # an unknown ID gets the very same response
                    absent = dict.fromkeys(call.owners, "none")
                    twin = next(call for call in operation.calls(fresh.revocable, ACCOUNTS) if call.owners == absent)
                    assert fresh.send(twin, "acme").content == answer.content, call
    assert swept > 70


def test_bearer_key_does_not_open_the_status_page(api):
    before = api.rows()
    for route, holder in itertools.product(api.client.app.routes, api.headers):
        if route.path in PAGES and route.path not in NO_SESSION:
            for method in route.methods:
                answer = api.client.request(
                    method, route.path, content="action=pause&id=a-bolt", headers=api.headers[holder]
                )
                assert answer.status_code == 401, (method, route.path, holder)
                assert not [word for word in api.secrets if word in answer.text], (method, route.path, holder)
    assert api.rows() == before and api.fake.calls == []


def test_reference_lists_every_operation_with_its_key_and_no_stored_data(api):
    page = api.client.get("/docs")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert "http" not in page.text.replace(str(api.client.base_url), ""), "the page loads nothing from elsewhere"
    assert not [word for word in api.secrets if word in page.text]
    rows = dict(re.findall(r"<tr><td><code>(.*?)</code></td>.*?<td>([^<]*)</td></tr>", page.text))
    credentials = {name: html.unescape(credential) for name, credential in rows.items()}
    assert credentials == {
        operation.name: "none" if operation.path in OPEN else credential_of(operation)
        for operation in operations(api.client, api.headers["operator"])
    }
    create = page.text.partition("<code>POST /campaigns</code>")[2].partition("</tr>")[0]
    assert "bid_nanos*" in create and "cap_per_day" in create and "cap_per_day*" not in create


def credential_of(operation):
    holder = "operator's key" if operation.is_operators else "any key"
    return ", ".join([holder, *(scope for scope in operation.scopes if scope != OPERATOR)])


def test_unknown_path_leads_to_the_index_and_the_reference(api):
    answer = api.client.get("/nothing", headers=api.headers["nobody"])
    assert answer.status_code == 404
    assert answer.json() == {"detail": "no such route: / is the status page, /docs the API reference"}
    assert api.client.get("/status/assets/none").json() == {"detail": "no asset has this name"}


def test_login_form_leads_to_a_key_and_to_the_reference(api):
    form = api.client.get("/")
    assert form.status_code == 401
    assert "leadre serve key --name NAME" in form.text and 'href="/docs"' in form.text


def test_account_lists_its_own_items_without_filters(api):
    for operation in operations(api.client, api.headers["operator"]):
        if operation.method == "GET" and "{" not in operation.path and not operation.is_operators:
            answer = api.client.get(operation.path, params=SPAN, headers=api.headers["acme"])
            assert answer.status_code == 200, operation.name
            assert not [word for word in api.secrets if word in answer.text], operation.name
            assert operation.path in OPEN or "acme" in answer.text, operation.name


def test_account_cannot_choose_the_id_of_a_new_item(api):
    before = api.rows()
    for path, body in (("/ads/new", AD | {"campaign_id": "c-acme"}), ("/campaigns/new", CAMPAIGN)):
        assert api.client.put(path, json=body, headers=api.headers["acme"]).status_code == 404
    assert api.rows() == before


def _in_path(call):
    return {owner for name, owner in call.owners.items() if name.startswith("path.")}


def _own_spend(calls):
    return [call for call in calls if call[0] == "spend" and not {"c-bolt", "c-none"} & set(call[1:])]
