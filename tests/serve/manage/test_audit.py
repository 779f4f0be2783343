"""The audit trail: each change has an entry with its author, its time, and the values before and after."""

from __future__ import annotations

import json
import sqlite3

import pytest
from starlette.testclient import TestClient

from leadre.serve.catalogue import audit
from leadre.serve.catalogue.audit import Author
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.manage.api import manage_app
from leadre.serve.manage.auth import ApiKeys

from ..conftest import make_ad, make_campaign
from .test_api import AD, CAMPAIGN, FakeBackend


class Api:
    """An API with an operator and the accounts acme and bolt."""

    def __init__(self, database):
        self.fake = FakeBackend()
        self.client = TestClient(manage_app(database, self.fake.backend()))
        keys = ApiKeys(database)
        created = {
            name: keys.create(name, 1, account) for name, account in (("op", ""), ("acme", "acme"), ("bolt", "bolt"))
        }
        self.key_id = {name: about.key_id for name, (about, _) in created.items()}
        self.secrets = [key.split(".")[1] for _, key in created.values()]
        self.headers = {name: {"Authorization": f"Bearer {key}"} for name, (_, key) in created.items()}

    def send(self, holder, method, path, body=None, **query):
        answer = self.client.request(method, path, json=body, params=query, headers=self.headers[holder])
        assert answer.is_success, answer.text
        return answer.json()

    def entries(self, holder, **query):
        return self.send(holder, "GET", "/audit", **query)["items"]


@pytest.fixture
def api(manage_database):
    return Api(manage_database)


def test_change_has_author_time_and_values_on_both_sides(api):
    campaign_id = api.send("acme", "POST", "/campaigns", CAMPAIGN)["campaign_id"]
    api.fake.clock.wall_us += 1_000_000
    api.send("op", "PUT", f"/campaigns/{campaign_id}", CAMPAIGN | {"bid_nanos": 7})
    api.send("op", "PUT", f"/campaigns/{campaign_id}", CAMPAIGN | {"bid_nanos": 7})  # changes nothing
    api.send("acme", "POST", f"/campaigns/{campaign_id}/pause")
    created, changed, paused = api.entries("op", item_id=campaign_id)
    assert (created["by"], created["key_id"], created["kind"], created["before"]) == (
        "account",
        api.key_id["acme"],
        "campaign",
        None,
    )
    assert created["after"]["bid_nanos"] == CAMPAIGN["bid_nanos"] and created["at"] == "2026-03-01T12:00:00Z"
    assert (changed["by"], changed["key_id"], changed["at"]) == ("operator", api.key_id["op"], "2026-03-01T12:00:01Z")
    assert changed["before"] == created["after"] and changed["after"]["bid_nanos"] == 7
    assert (paused["before"]["status"], paused["after"]["status"]) == ("active", "paused")
    assert paused["advertiser_id"] == "acme"


def test_each_kind_of_change_has_an_entry(api):
    campaign_id = api.send("acme", "POST", "/campaigns", CAMPAIGN)["campaign_id"]
    ad_id = api.send("acme", "POST", "/ads", AD | {"campaign_id": campaign_id})["ad_id"]
    api.send("acme", "POST", f"/ads/{ad_id}/pause")
    created = api.send("op", "POST", "/keys", {"name": "Cid"})
    api.send("op", "DELETE", f"/keys/{created['about']['key_id']}")
    api.send("op", "PUT", "/origins", {"origins": ["https://news.example"]})
    api.send("op", "POST", "/import", {})
    kinds = [(entry["kind"], entry["by"]) for entry in api.entries("op", after=3)]
    assert kinds == [
        ("campaign", "account"),
        ("ad", "account"),
        ("ad", "account"),
        ("key", "operator"),
        ("key", "operator"),
        ("origins", "operator"),
        ("import", "operator"),
    ]
    *_, revoked, origins, imported = api.entries("op")
    assert revoked["before"]["revoked_at_us"] == 0 < revoked["after"]["revoked_at_us"]
    assert (origins["before"], origins["after"]) == ([], ["https://news.example"])
    assert imported["after"] == {"campaigns": 1, "ads": 1} and imported["advertiser_id"] == "unknown"
    shown = json.dumps(api.entries("op"))
    assert not [secret for secret in [*api.secrets, created["key"].split(".")[1]] if secret in shown]


def test_account_reads_its_own_entries_alone(api):
    campaign_id = api.send("acme", "POST", "/campaigns", CAMPAIGN)["campaign_id"]
    api.send("bolt", "POST", "/campaigns", CAMPAIGN | {"name": "bolt's plan"})
    api.send("op", "POST", f"/campaigns/{campaign_id}/pause")
    entries = api.entries("acme")
    assert [(entry["kind"], entry["by"]) for entry in entries] == [
        ("key", "command"),
        ("campaign", "account"),
        ("campaign", "operator"),
    ]
    assert [entry["key_id"] for entry in entries] == [None, api.key_id["acme"], None], "an operator's key is not shown"
    assert api.entries("acme", advertiser_id="bolt") == []
    assert "bolt" not in json.dumps(entries)
    first = api.send("acme", "GET", "/audit", limit=1)
    rest = api.send("acme", "GET", "/audit", after=first["next"])
    assert [*first["items"], *rest["items"]] == entries and rest["next"] is None


def test_entry_is_neither_changed_nor_removed(manage_database):
    CampaignStore(manage_database).put_campaign(make_campaign())
    for statement in ("UPDATE audit SET after = ''", "DELETE FROM audit"):
        with pytest.raises(sqlite3.IntegrityError, match="only grows"):
            manage_database.connection.execute(statement)


def test_change_and_entry_are_one_transaction(manage_database, monkeypatch):
    store = CampaignStore(manage_database, Author(key_id="k"))
    store.put_campaign(make_campaign())

    def fail(*_):
        raise sqlite3.OperationalError("disk full")

    monkeypatch.setattr(audit, "append", fail)
    for change in (
        lambda: store.put_campaign(make_campaign(bid_nanos=9)),
        lambda: store.put_ad(make_ad()),
        lambda: ApiKeys(manage_database).create("Ann", 1),
        lambda: store.add([make_campaign("c2")], []),
    ):
        with pytest.raises(sqlite3.OperationalError):
            change()
    monkeypatch.undo()
    assert store.campaign("c1") == make_campaign() and store.ad("a1") is None and store.campaign("c2") is None
    assert ApiKeys(manage_database).all() == []
    assert len(audit.read(manage_database.connection)) == 1
