"""Requests made up from the API's own description, good and bad ones."""

from __future__ import annotations

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from leadre.serve.manage.api import manage_app
from leadre.serve.manage.auth import ApiKeys

from .test_api import Around


@pytest.fixture
def key(desk):
    return {"Authorization": f"Bearer {ApiKeys(desk).create('Ann', 1)[1]}"}


@pytest.fixture
def described(desk, book, campaign, ad, key):
    book.put_campaign(campaign())
    book.put_ad(ad())
    app = manage_app(desk, Around().outside())
    refused = ["400", "401", "404", "409", "413", "422"]
    checks = {
        "negative_data_rejection": {"expected-statuses": refused},
        "positive_data_acceptance": {"expected-statuses": ["2xx", *refused]},  # a schema knows no zones and no dates
    }
    return schemathesis.openapi.from_asgi(
        "/openapi.json",
        app,
        headers=key,
        config=schemathesis.Config.from_dict({"checks": checks, "generation": {"with-security-parameters": False}}),
    )


@pytest.mark.slow
@pytest.mark.parametrize("examples", [12, pytest.param(300, marks=pytest.mark.soak)])
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
def test_every_endpoint_does_as_it_is_described(described, key, mode, examples):
    tried = 0
    statuses = Counter()
    for result in described.get_all_operations():
        operation = result.ok()
        takes = [*operation.path_parameters, *operation.query, *operation.body]
        if mode is GenerationMode.NEGATIVE and not takes:
            continue  # nothing to get wrong

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def agrees(case):
            statuses[case.call_and_validate(headers=key).status_code] += 1

        agrees()
        tried += 1
    assert tried == (20 if mode is GenerationMode.POSITIVE else 17)
    passed = statuses[200] + statuses[201] if mode is GenerationMode.POSITIVE else statuses[422]
    assert passed > statuses.total() / 5, statuses  # else the code behind validation is untested
