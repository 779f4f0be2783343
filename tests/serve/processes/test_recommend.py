"""Requests of POST /v1/recommend."""

from __future__ import annotations

import json

import msgspec
import pytest

from leadre.serve.processes.recommend import RecommendRequest


@pytest.mark.parametrize("body", [{"gpp_sid": [2**70]}, {"gpp_sid": [-(2**31) - 1]}, {"tmax_ms": 2**70}, {"count": 21}])
def test_numbers_that_no_record_can_hold_are_refused(body):
    with pytest.raises(msgspec.ValidationError, match="Expected `int`"):
        msgspec.json.decode(json.dumps(body), type=RecommendRequest)


def test_signals_of_a_recommendation_are_those_of_a_bid_request():
    request = msgspec.json.decode('{"gpp_sid": [7], "coppa": 1, "gdpr": "0"}', type=RecommendRequest).bid_request("r")
    assert (request.signals.gpp_sid, request.signals.coppa, request.signals.gdpr) == ((7,), True, False)
