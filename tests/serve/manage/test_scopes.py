"""Scopes of keys in the management API: each operation has one, and a key grants none that it lacks."""

from __future__ import annotations

import pytest

from leadre.serve.manage.auth import SCOPES, ApiKeys

from .test_access import OPEN, TwoAccountApi, operations


@pytest.fixture
def api(tmp_path):
    with TwoAccountApi(tmp_path) as created:
        yield created


@pytest.mark.parametrize("missing", SCOPES)
def test_key_without_the_scope_is_refused_with_its_name(api, missing):
    """The other scopes open all other operations, each of which has a scope."""
    keys = ApiKeys(api.records)
    _, key = keys.create("Eve", 1, scopes=[scope for scope in SCOPES if scope != missing])
    refused = 0
    for operation in operations(api.client, api.headers["operator"]):
        if operation.path in OPEN:
            continue
        assert set(operation.scopes) & set(SCOPES), operation.name
        call = next(operation.calls(api.revocable, ("acme",)))
        before = api.rows()
        headers = {"Authorization": f"Bearer {key}"}
        sent = {} if call.body is None else {"json": call.body}
        answer = api.client.request(call.method, call.path, params=call.query, headers=headers, **sent)
        is_refused = answer.status_code == 403 and "scopes: " not in answer.text  # of the key to create
        assert is_refused == (missing in operation.scopes), (call, answer.text)
        if is_refused:
            assert f"the scope '{missing}'" in answer.json()["detail"] and api.rows() == before, call
            refused += 1
    assert (refused > 0) == (missing in ("campaigns", "erase", "keys", "metrics"))


def test_key_grants_no_scope_that_it_lacks(api):
    keys = ApiKeys(api.records)
    holders = {"operator": keys.create("Eve", 1, scopes=["keys"])[1]}
    holders["account"] = keys.create("Bob", 1, "acme", ["keys", "campaigns"])[1]
    for holder, scopes in (("operator", []), ("operator", ["erase"]), ("account", ["convert"])):
        headers = {"Authorization": f"Bearer {holders[holder]}"}
        answer = api.client.post("/keys", json={"name": "x", "scopes": scopes}, headers=headers)
        assert answer.status_code == 403 and "scopes: " in answer.text, answer.text
    headers = {"Authorization": f"Bearer {holders['account']}"}
    created = api.client.post("/keys", json={"name": "x"}, headers=headers).json()
    assert created["about"]["advertiser_id"] == "acme" and created["about"]["scopes"] == ["campaigns"]
    answer = api.client.post("/keys", json={"name": "x", "scopes": ["metrics"]}, headers=headers)
    assert answer.status_code == 422 and "an account's key cannot have 'metrics'" in answer.text
