"""A running bidder agrees with the OpenAPI description of its routes, for generated requests and for real events."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.core.failures import Failure

from leadre.__main__ import main
from leadre.serve.manage.api import routes
from leadre.serve.processes import openapi
from leadre.serve.processes.http import App

from ..bidder import PAGE, bid_request, click_id, event_urls, until

REFUSALS = ["400", "401", "403", "404", "415", "429", "503"]
CHECKS = {
    # a wrong type in a field that only describes, or text for a number, is no reason to refuse a bid request
    "negative_data_rejection": {"expected-statuses": ["200", "204", *REFUSALS]},
    "positive_data_acceptance": {"expected-statuses": ["2xx", "302", *REFUSALS]},  # a schema checks no token and no ID
    "ignored_auth": {"enabled": False},  # test_promises sends wrong keys; many of them get status 429
    "unsupported_method": {"enabled": False},  # 404, like any other unknown route
}

SOAK_EXAMPLES = 300


def schema_of(description):
    config = {"checks": CHECKS, "generation": {"with-security-parameters": False}}
    return schemathesis.openapi.from_dict(description, config=schemathesis.Config.from_dict(config))


@pytest.fixture
def schema():
    return schema_of(openapi.describe())


@pytest.fixture
def key(bidder):
    return {"Authorization": f"Bearer {bidder.operator}", "Origin": PAGE}


def test_description_has_the_routes_of_the_application():
    app = App(SimpleNamespace(clock=None), max_wait_s=1.0, management_url="")
    described = {
        (method.upper(), path.partition("{")[0])
        for path, operations in openapi.describe()["paths"].items()
        for method in operations
    }
    assert described == {*app.exact, *app.prefixes} - {("GET", "/")}, "all but the page for people"


@pytest.mark.slow
@pytest.mark.parametrize("examples", [12, pytest.param(SOAK_EXAMPLES, marks=pytest.mark.soak)])
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
def test_routes_agree_with_their_description(bidder, schema, key, mode, examples):
    statuses = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # any text is a token, a price or an ID

        @settings(
            max_examples=examples,
            derandomize=examples < SOAK_EXAMPLES,  # the long test alone looks for new faults
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode))
        def agrees(case):
            statuses[case.call_and_validate(base_url=bidder.url, headers=key).status_code] += 1

        agrees()
    passed = statuses[200] + statuses[204] if mode is GenerationMode.POSITIVE else statuses[400]
    # Most tokens and IDs are made up. Hypothesis also draws constants of the imported modules, so the shares vary.
    assert passed > statuses.total() / 10, statuses


def test_answers_to_real_requests_agree_with_their_description(bidder, schema, key):
    def agrees(method, path, answer, status):
        assert answer.status_code == status, (path, answer.text)
        schema[path][method].validate_response(answer)
        return answer

    _, ad_id = bidder.campaign()
    bidder.list_for("described", ad_id)
    request = bid_request(user={"id": "described"})
    answer = agrees("POST", "/openrtb2/bid", bidder.http.post(f"{bidder.url}/openrtb2/bid", json=request), 200)
    (bid,) = answer.json()["seatbid"][0]["bid"]
    urls = event_urls(bid)
    for kind in ("win", "bill", "imp", "click"):
        expected = {"click": 302, "imp": 200, "bill": 200}.get(kind, 204)
        agrees("GET", "/e/{kind}", bidder.http.get(urls[kind]), expected)
    sold = {"click_id": click_id(bidder.http.get(urls["click"]).headers["location"]), "event_id": "described"}
    answer = bidder.http.post(f"{bidder.url}/v1/conversions", json=sold, headers=key)
    assert agrees("POST", "/v1/conversions", answer, 200).json() == {"outcome": "new"}
    answer = bidder.http.post(f"{bidder.url}/v1/conversions", json=sold | {"click_id": "1.x"}, headers=key)
    agrees("POST", "/v1/conversions", answer, 403)
    answer = bidder.http.post(f"{bidder.url}/openrtb2/bid?pretty=1", json={"id": "bad"})
    assert "imp" in agrees("POST", "/openrtb2/bid", answer, 400).json()["error"]
    agrees("GET", "/e/{kind}", bidder.http.get(f"{bidder.url}/e/imp?t=forged"), 403)
    url = f"{bidder.url}/v1/explain/{request['id']}"
    until(lambda: bidder.http.get(url, headers=key).is_success, "logged")
    agrees("GET", "/v1/explain/{request_id}", bidder.http.get(url, headers=key), 200)
    body = {"user_id": "described", "count": 1}
    answer = bidder.http.post(f"{bidder.url}/v1/recommend", json=body, headers=key)
    (recommended,) = agrees("POST", "/v1/recommend", answer, 200).json()["ads"]
    assert recommended["ad_id"] == ad_id


def test_response_that_differs_from_its_description_is_detected(bidder):
    description = openapi.describe()
    description["components"]["schemas"]["Response"]["required"].append("nonsense")
    answer = bidder.ask(test=1)
    assert answer.status_code == 200
    with pytest.raises(Failure, match="nonsense"):
        schema_of(description)["/openrtb2/bid"]["POST"].validate_response(answer)


def test_command_writes_both_descriptions(tmp_path):
    assert main(["serve", "openapi", "--to", str(tmp_path / "api")]) == 0
    files = {path.name: json.loads(path.read_text()) for path in (tmp_path / "api").iterdir()}
    assert files == {"bidder.json": openapi.describe(), "management.json": routes().openapi()}
