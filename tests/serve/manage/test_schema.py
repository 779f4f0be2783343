"""Requests made up from the API's own description, good and bad ones."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from leadre.serve.manage.api import manage_app
from leadre.serve.manage.auth import Keys

from .test_api import Around


@pytest.fixture
def described(desk, book, campaign, ad):
    book.put_campaign(campaign())
    book.put_ad(ad())
    _, key = Keys(desk).create("Ann", 1)
    app = manage_app(desk, Around().outside())
    refused = {"checks": {"negative_data_rejection": {"expected-statuses": ["400", "401", "404", "413", "422"]}}}
    return schemathesis.openapi.from_asgi(
        "/openapi.json", app, headers={"Authorization": f"Bearer {key}"}, config=schemathesis.Config.from_dict(refused)
    )


@pytest.mark.slow
@pytest.mark.parametrize("examples", [12, pytest.param(300, marks=pytest.mark.soak)])
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
def test_every_endpoint_does_as_it_is_described(described, mode, examples):
    tried = 0
    for found in described.get_all_operations():
        operation = found.ok()
        takes = [*operation.path_parameters, *operation.query, *operation.body]
        if mode is GenerationMode.NEGATIVE and not takes:
            continue  # nothing to get wrong

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def agrees(case):
            case.call_and_validate()

        agrees()
        tried += 1
    assert tried == (20 if mode is GenerationMode.POSITIVE else 17)
