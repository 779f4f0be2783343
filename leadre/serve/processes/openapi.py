"""OpenAPI description of the routes of `leadre.serve.processes.http`.

The schemas of bodies come from the types that decode and encode them, so they cannot drift from the code. A test sends
requests generated from the description to a running bidder, and compares its routes with those of the application.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from leadre import __version__, telemetry
from leadre.serve.bidding.explanation import Explanation
from leadre.serve.processes.recommend import RecommendRequest, RecommendResponse
from leadre.serve.protocol import openrtb_schema as wire
from leadre.types import EventKind

TYPES = (wire.Request, wire.Response, RecommendRequest, RecommendResponse, Explanation)
KEY: list[dict[str, list[str]]] = [{"key": []}]
ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
NO_KEY = {"description": "No operator's key.", "content": {"application/json": {"schema": ERROR}}}
LIMITED = {"description": "The address has sent too many requests without an operator's key."}
BID_REQUEST = {
    "id": "r1",
    "tmax": 200,
    "user": {"id": "household-6"},
    "site": {"domain": "news.example"},
    "imp": [{"id": "1", "banner": {"w": 300, "h": 250}}],
}

Json = dict[str, Any]


def describe() -> Json:
    """The description of a bidder's port, OpenAPI 3.1, ready for JSON."""
    _, schemas = msgspec.json.schema_components(TYPES, ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "LEADRE bidder",
            "version": __version__,
            "description": "Bids, recommendations, explanations, events and health. Bodies have at most 256 KiB,"
            " unpacked too; a request may be packed with gzip. Any other route gets status 404.",
        },
        "servers": [{"url": "http://127.0.0.1:8080"}],
        "paths": {
            "/openrtb2/bid": {"post": _bid()},
            "/openrtb2/auction": {"post": _auction(), "options": _preflight()},
            "/v1/recommend": {"post": _recommend()},
            "/v1/explain/{request_id}": {"get": _explain()},
            "/e/{kind}": {"get": _event("getEvent"), "post": _event("postEvent")},
            "/healthz": {"get": _health()},
            "/readyz": {"get": _ready()},
            "/metrics": {"get": _metrics()},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An operator's key: `leadre serve key`."}
            },
        },
    }


def _content(schema: Json, media: str = "application/json", **more: object) -> Json:
    return {"content": {media: {"schema": schema, **more}}}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _parameter(name: str, place: str, schema: Json, description: str) -> Json:
    is_required = place == "path"
    return {"name": name, "in": place, "required": is_required, "schema": schema, "description": description}


def _bid_request() -> Json:
    """The parameters and the body of a bid request."""
    packed = "`1` or `true`: the body is gzip, which Prebid.js states here and in no header"
    pretty = "`1`: in several lines, for people; with a body for a no-bid and for a bad request"
    return {
        "parameters": [
            _parameter("pretty", "query", {"type": "string"}, pretty),
            _parameter("gzip", "query", {"type": "string"}, packed),
        ],
        "requestBody": {"required": True} | _content(_ref("Request"), example=BID_REQUEST),
    }


# With `pretty` it has a body, which OpenAPI cannot tie to a parameter.
BAD_REQUEST = {"description": "Not a bid request. No body; with `pretty`, an object whose `error` names the field."}
BAD_CODING = {"description": "The body has a content coding other than gzip."}


def _bid() -> Json:
    return _bid_request() | {
        "operationId": "bid",
        "summary": "An exchange's bid request",
        "description": "OpenRTB 2.6, and 2.5 in its `ext`. The schema has the fields that are read; others are skipped."
        " The answer comes before `tmax`.",
        "responses": {
            "200": {"description": "Bids; for a test (`test` 1) and with `pretty` also the reason `nbr` for none."}
            | _content(_ref("Response")),
            "204": {"description": "No bid."},
            "400": BAD_REQUEST,
            "415": BAD_CODING,
        },
    }


def _auction() -> Json:
    return _bid_request() | {
        "operationId": "auction",
        "summary": "A page's bid request, sent by Prebid.js",
        "description": "As `/openrtb2/bid`, with the auction macros filled in, because a page fills none. A no-bid has"
        " a body with its reason `nbr`. A request with an `Origin` is answered to registered origins alone.",
        "responses": {
            "200": {"description": "Bids, the reason for none, or `{}` from an overloaded worker."}
            | _content({"anyOf": [_ref("Response"), {"type": "object", "maxProperties": 0}]}),
            "400": BAD_REQUEST,
            "415": BAD_CODING,
            "403": {"description": "The page's origin is not registered."} | _content(ERROR),
        },
    }


def _preflight() -> Json:
    return {
        "operationId": "preflight",
        "summary": "A browser's question before the request of a page",
        "responses": {
            "204": {"description": "The origin is registered."},
            "403": {"description": "The origin is not registered."},
        },
    }


def _recommend() -> Json:
    return {
        "operationId": "recommend",
        "summary": "Ads for a page of the site itself",
        "description": "Plain JSON without an auction. The site renders the ads and requests their event URLs."
        " `tmax_ms` 0 is the default of the bidder. `gdpr` and `consent` are those of OpenRTB.",
        "security": KEY,
        "requestBody": {"required": True}
        | _content(_ref("RecommendRequest"), example={"user_id": "household-6", "count": 3}),
        "responses": {
            "200": {"description": "The ads, best first, or the reason for none."}
            | _content(_ref("RecommendResponse")),
            "400": {"description": "A field is invalid; `error` names it."} | _content(ERROR),
            "401": NO_KEY,
            "429": LIMITED,
        },
    }


def _explain() -> Json:
    return {
        "operationId": "explain",
        "summary": "A recent request, explained",
        "description": "Candidates with their values and verdicts, bids with their propensities, versions of all"
        " artifacts. The last 20,000 requests are known, each a moment after its answer.",
        "security": KEY,
        "parameters": [
            _parameter("request_id", "path", {"type": "string", "minLength": 1}, "the bidder's ID or the caller's")
        ],
        "responses": {
            "200": {"description": "The explanation; `units` has the meaning of its fields."}
            | _content(_ref("Explanation")),
            "401": NO_KEY,
            "429": LIMITED,
            "404": {"description": "No recent request has this ID."} | _content(ERROR),
            "503": {"description": "The writer is away; send the request again."} | _content(ERROR),
        },
    }


def _event(name: str) -> Json:
    text = {"type": "string"}
    return {
        "operationId": name,
        "summary": "An event of a bid",
        "description": "The URLs are in the bid: `nurl`, `burl`, and those of the page in `adm`. An event is on the"
        " disk before it is acknowledged; a repeated event counts once.",
        "parameters": [
            _parameter("kind", "path", {"enum": list(get_args(EventKind))}, "the kind of the event"),
            _parameter("t", "query", text, "the signed token of the bid"),
            _parameter("price", "query", text, "of `win` and `bill`: the CPM paid, from `${AUCTION_PRICE}`"),
            _parameter("reason", "query", text, "of `loss`: the code from `${AUCTION_LOSS}`"),
            _parameter("event_id", "query", text, "of `conv`: the advertiser's own ID, which counts once in 48 hours"),
            _parameter("value_nanos", "query", text, "of `conv`: its money, in billionths of the currency"),
        ],
        "responses": {
            "200": {"description": "Counted; a transparent pixel (`imp`, `view`)."}
            | _content({"type": "string", "format": "binary"}, "image/gif"),
            "204": {"description": "Counted."},
            "302": {"description": "A click: to the landing page of the ad, even if it could not be counted."},
            "403": {"description": "The token is missing, forged or too old."},
            "429": {"description": "The address has sent too many such events, or too many with no valid token."},
            "404": {"description": "No such kind."},
            "422": {"description": "Not counted: the writer cannot process this event. Do not send it again."},
            "503": {"description": "Not counted; send the event again."},
        },
    }


def _health() -> Json:
    answer = {"description": "The process lives."} | _content({"const": "ok"}, "text/plain")
    return {"operationId": "health", "summary": "Whether the process lives", "responses": {"200": answer}}


def _ready() -> Json:
    parts = {"type": "array", "items": {"enum": list(telemetry.PARTS)}}
    names = {"type": "array", "items": {"type": "string"}, "description": "Background tasks that keep failing."}
    stopped = {"type": "array", "items": {"type": "string"}, "description": "Campaigns that do not bid meanwhile."}
    body = {
        "type": "object",
        "properties": {
            "status": {"enum": ["ready", "degraded"]},
            "away": parts,
            "failing_tasks": names,
            "stopped": stopped,
        },
        "required": ["status", "away", "failing_tasks", "stopped"],
    }
    answer = {"description": "The worker bids; `away` lists the parts that it does without."} | _content(body)
    return {"operationId": "ready", "summary": "Whether the worker bids", "responses": {"200": answer}}


def _metrics() -> Json:
    answer = {"description": "The text format of Prometheus."} | _content({"type": "string"}, "text/plain")
    return {
        "operationId": "metrics",
        "summary": "Metrics of all workers together",
        "security": KEY,
        "responses": {"200": answer, "401": NO_KEY, "429": LIMITED},
    }
