"""Requests generated from the OpenAPI description of the management API, valid and invalid ones."""

from __future__ import annotations

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from leadre.clock import SystemClock
from leadre.serve.manage.api import manage_app
from leadre.serve.manage.attempts import AddressLimit
from leadre.serve.manage.auth import ApiKeys

from .test_api import FakeBackend

SOAK_EXAMPLES = 300


@pytest.fixture
def key(manage_database):
    return {"Authorization": f"Bearer {ApiKeys(manage_database).create('Ann', 1)[1]}"}


@pytest.fixture
def schema(manage_database, campaign_store, campaign, ad, key):
    campaign_store.put_campaign(campaign())
    campaign_store.put_ad(ad())
    app = manage_app(manage_database, FakeBackend().backend())
    app.state.failed_logins = AddressLimit(SystemClock(), burst=1e9, per_s=1.0)  # every call is repeated without a key
    refusals = ["400", "401", "404", "409", "413", "422"]
    checks = {
        "negative_data_rejection": {"expected-statuses": refusals},
        "positive_data_acceptance": {
            "expected-statuses": ["2xx", *refusals]
        },  # a schema checks no time zone and no date
    }
    return schemathesis.openapi.from_asgi(
        "/openapi.json",
        app,
        headers=key,
        config=schemathesis.Config.from_dict({"checks": checks, "generation": {"with-security-parameters": False}}),
    )


@pytest.mark.slow
@pytest.mark.parametrize("examples", [12, pytest.param(SOAK_EXAMPLES, marks=pytest.mark.soak)])
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
def test_endpoints_agree_with_their_openapi_description(schema, key, mode, examples):
    operations = 0
    statuses = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()
        parameters = [*operation.path_parameters, *operation.query, *operation.body]
        if mode is GenerationMode.NEGATIVE and not parameters:
            continue  # without a parameter no request is invalid

        @settings(
            max_examples=examples,
            derandomize=examples < SOAK_EXAMPLES,  # the long test alone looks for new faults
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode))
        def agrees(case):
            statuses[case.call_and_validate(headers=key).status_code] += 1

        agrees()
        operations += 1
    assert operations == (32 if mode is GenerationMode.POSITIVE else 26)
    passed = statuses[200] + statuses[201] if mode is GenerationMode.POSITIVE else statuses[422]
    assert passed > statuses.total() / 5, statuses  # else the code behind validation is untested
