"""OpenAPI description of the routes of `leadre.serve.processes.http`.

The schemas of bodies come from the types that decode and encode them, so they cannot drift from the code. A test sends
requests generated from the description to a running bidder, and compares its routes with those of the application.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from leadre import __version__, telemetry
from leadre.serve.bidding.account_explanation import AccountExplanation
from leadre.serve.bidding.explanation import Explanation
from leadre.serve.manage import auth
from leadre.serve.processes.event_reading import Conversion
from leadre.serve.processes.recommend import RecommendRequest, RecommendResponse
from leadre.serve.protocol import openrtb_schema as wire
from leadre.types import EventKind

TYPES = (
    wire.Request,
    wire.Response,
    RecommendRequest,
    RecommendResponse,
    Explanation,
    AccountExplanation,
    Conversion,
)
ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
NO_KEY = {"description": "No key in force.", "content": {"application/json": {"schema": ERROR}}}
NO_SCOPE = {"description": "The key lacks the scope.", "content": {"application/json": {"schema": ERROR}}}
NO_KEYS = {"description": "The keys cannot be read.", "content": {"application/json": {"schema": ERROR}}}
LIMITED = {"description": "The address has sent too many requests without a key in force."}
BID_REQUEST = {
    "id": "r1",
    "tmax": 200,
    "user": {"id": "household-6"},
    "site": {"domain": "news.example"},
    "imp": [{"id": "1", "banner": {"w": 300, "h": 250}}],
}

Json = dict[str, Any]


def _key(scope: auth.Scope) -> list[dict[str, list[str]]]:
    """The requirement of a key with a scope."""
    return [{"key": [scope]}]


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
            "/v1/conversions": {"post": _conversion()},
            "/e/{kind}": {"get": _event("getEvent"), "post": _event("postEvent")},
            "/healthz": {"get": _health()},
            "/readyz": {"get": _ready()},
            "/metrics": {"get": _metrics()},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A key with the scope: `leadre serve key`."}
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
RATE = {"description": "The sender has sent too many requests; `Retry-After` has the seconds to wait. No body."}
BAD_CODING = {"description": "The body has a content coding other than gzip."}


def _bid() -> Json:
    token = "the token of a configured caller that cannot send it as `Authorization: Bearer`"
    request = _bid_request()
    return request | {
        "parameters": [*request["parameters"], _parameter("caller", "query", {"type": "string"}, token)],
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
            "401": {"description": "Callers are configured, and the request is of none of them. No body."},
            "403": {"description": "The token is a caller's, but the address or the certificate is not. No body."},
            "429": RATE,
        },
    }


def _auction() -> Json:
    return _bid_request() | {
        "operationId": "auction",
        "summary": "A page's bid request, sent by Prebid.js",
        "description": "As `/openrtb2/bid`, with the auction macros filled in, because a page fills none. A no-bid has"
        " a body with its reason `nbr`. The `Origin` must be registered.",
        "responses": {
            "200": {"description": "Bids, the reason for none, or `{}` from an overloaded worker."}
            | _content({"anyOf": [_ref("Response"), {"type": "object", "maxProperties": 0}]}),
            "400": BAD_REQUEST,
            "415": BAD_CODING,
            "403": {"description": "The page's origin is not registered, or not stated."} | _content(ERROR),
            "429": RATE,
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
        " `tmax_ms` 0 is the default of the bidder. `gdpr` to `country` are the signals of"
        ' OpenRTB: of the flags, null and "" are absent, 0, "0", false and "false" are no, all else is yes.',
        "security": _key("recommend"),
        "requestBody": {"required": True}
        | _content(_ref("RecommendRequest"), example={"user_id": "household-6", "count": 3}),
        "responses": {
            "200": {"description": "The ads, best first, or the reason for none."}
            | _content(_ref("RecommendResponse")),
            "400": {"description": "A field is invalid; `error` names it."} | _content(ERROR),
            "401": NO_KEY,
            "403": NO_SCOPE,
            "429": LIMITED,
            "503": NO_KEYS,
        },
    }


def _explain() -> Json:
    return {
        "operationId": "explain",
        "summary": "A recent request, explained",
        "description": "Candidates with their values and verdicts, bids with their propensities, versions of all"
        " artifacts; an account gets its own candidates and bids alone, in fewer fields."
        " The last 20,000 requests are known, each a moment after its answer.",
        "security": _key("explain"),
        "parameters": [
            _parameter("request_id", "path", {"type": "string", "minLength": 1}, "the bidder's ID or the caller's")
        ],
        "responses": {
            "200": {"description": "The explanation; `units` has the meaning of its fields."}
            | _content({"anyOf": [_ref("Explanation"), _ref("AccountExplanation")]}),
            "401": NO_KEY,
            "403": NO_SCOPE,
            "429": LIMITED,
            "404": {"description": "No recent request has this ID."} | _content(ERROR),
            "503": {"description": "The writer is away, or the keys cannot be read; send the request again."}
            | _content(ERROR),
        },
    }


def _conversion() -> Json:
    outcome = {
        "type": "object",
        "properties": {"outcome": {"enum": ["new", "known"]}},
        "required": ["outcome"],
    }
    return {
        "operationId": "convert",
        "summary": "A conversion from an advertiser's server",
        "description": "Requires a key of the account whose ad was clicked, or an operator's. The landing page has got"
        " the click ID. An `event_id` counts once in 48 hours; of one click the first conversion is charged, further"
        " ones are recorded. A value above the campaign's `max_value_nanos` counts as that.",
        "security": _key("convert"),
        "requestBody": {"required": True}
        | _content(
            _ref("Conversion"), example={"click_id": "1.x", "event_id": "order-1", "value_nanos": 19_990_000_000}
        ),
        "responses": {
            "200": {"description": "On the disk; `known`: the `event_id` had come before."} | _content(outcome),
            "400": {"description": "A field is invalid; `error` names it."} | _content(ERROR),
            "401": NO_KEY,
            "403": {"description": "The key lacks the scope, or the click ID is forged, too old or another account's."}
            | _content(ERROR),
            "422": {"description": "The writer cannot process this conversion. Do not send it again."}
            | _content(ERROR),
            "429": LIMITED,
            "503": {"description": "The writer is away, or the keys cannot be read; send it again."} | _content(ERROR),
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
            _parameter("t", "query", text, "the token of the bid for this kind; of `conv` the click ID"),
            _parameter("price", "query", text, "of `win` and `bill`: the CPM paid, from `${AUCTION_PRICE}`"),
            _parameter("reason", "query", text, "of `loss`: the code from `${AUCTION_LOSS}`"),
            _parameter("min", "query", text, "of `win` and `loss`: the CPM to win, from `${AUCTION_MIN_TO_WIN}`"),
            _parameter("value_nanos", "query", text, "of `conv`: its money, in billionths of the currency"),
        ],
        "responses": {
            "200": {"description": "Counted; a transparent pixel (`bill`, `imp`, `view`)."}
            | _content({"type": "string", "format": "binary"}, "image/gif"),
            "204": {"description": "Counted."},
            "302": {"description": "A click: to the landing page with a click ID, even if it could not be counted."},
            "400": {"description": "A `bill` without a price that can be billed; the true one still counts."},
            "403": {"description": "The token is missing, forged, of another kind or too old."},
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
    counting = {
        "type": "boolean",
        "description": "Whether the writer still counts old events; reports get 503 until then.",
    }
    body = {
        "type": "object",
        "properties": {
            "status": {"enum": ["ready", "degraded"]},
            "away": parts,
            "failing_tasks": names,
            "counting": counting,
            "clock": {"type": "string", "description": "Why the machine's time is in doubt; empty if it is not."},
            "stopped": stopped,
        },
        "required": ["status", "away", "failing_tasks", "clock", "counting", "stopped"],
    }
    answer = {"description": "The worker bids; `away` lists the parts that it does without."} | _content(body)
    return {"operationId": "ready", "summary": "Whether the worker bids", "responses": {"200": answer}}


def _metrics() -> Json:
    answer = {"description": "The text format of Prometheus."} | _content({"type": "string"}, "text/plain")
    return {
        "operationId": "metrics",
        "summary": "Metrics of all workers together",
        "security": _key("metrics"),
        "responses": {"200": answer, "401": NO_KEY, "403": NO_SCOPE, "429": LIMITED, "503": NO_KEYS},
    }
