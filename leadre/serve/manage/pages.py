"""Plain pages for people: the index of the bid port, and the reference of the management API.

Both work without the internet and without a key, and hold nothing that the source code does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from leadre import __version__
from leadre.creative import banner as creatives
from leadre.serve.manage.access import OPERATOR

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
ABOUT = "This server answers OpenRTB bid requests with display ads."


class Route(NamedTuple):
    """A route of the bid port. ``path`` ends with a word in capitals if any text may be there."""

    method: str
    path: str
    about: str
    credential: str = "none"


ROUTES = (
    Route(
        "POST",
        "/openrtb2/bid",
        "OpenRTB 2.5 or 2.6 bid request of an exchange; ?pretty=1 indents the response",
        "a token, once a caller is configured",
    ),
    Route("POST", "/openrtb2/auction", "the same for a page with Prebid.js", "a registered origin"),
    Route("OPTIONS", "/openrtb2/auction", "CORS preflight of that page", "a registered origin"),
    Route("POST", "/v1/recommend", "ads as plain JSON for a site's own code", "operator's key, recommend"),
    Route("GET", "/v1/explain/ID", "candidates of a recent request, with prices and verdicts", "any key, explain"),
    Route("POST", "/v1/conversions", "a conversion from an advertiser's server", "any key, convert"),
    Route("GET", "/e/KIND", "event of a bid: impression, click, conversion", "the token in the URL"),
    Route("POST", "/e/KIND", "the same", "the token in the URL"),
    Route("GET", "/metrics", "metrics of all workers, for Prometheus", "operator's key, metrics"),
    Route("GET", "/healthz", "200 while the worker lives"),
    Route("GET", "/readyz", "200 once the worker bids; lists the parts that are away"),
    Route("GET", "/", "this page; JSON for Accept: application/json"),
)


class Operation(NamedTuple):
    """An operation of the management API, from its OpenAPI description."""

    method: str
    path: str
    summary: str
    description: str
    fields: str  # names of query parameters and of the body's fields
    credential: str


def index(management_url: str) -> tuple[str, bytes]:
    """The index of the bid port as (HTML, JSON). ``management_url`` "": the visitor may not reach that port."""
    described = {
        "service": "LEADRE bidder",
        "version": __version__,
        "about": ABOUT,
        "management": management_url,
        "routes": [route._asdict() for route in ROUTES],
    }
    values = {"about": ABOUT, "routes": ROUTES, "management_url": management_url}
    return _render("index", values), msgspec.json.format(msgspec.json.encode(described), indent=2)


def reference(openapi: Mapping[str, Any], base_url: str) -> str:
    """HTML of the operations of an OpenAPI description, by tag. ``base_url`` ends with a slash."""
    operations = [
        (about["tags"][0], _operation(method, path, about, openapi))
        for path, methods in openapi["paths"].items()
        for method, about in methods.items()
    ]
    by_tag = itertools.groupby(operations, lambda row: row[0])
    tags = [(tag, [operation for _, operation in rows]) for tag, rows in by_tag]
    return _render("reference", {"about": openapi["info"]["description"], "tags": tags, "base_url": base_url})


def _operation(method: str, path: str, about: Mapping[str, Any], openapi: Mapping[str, Any]) -> Operation:
    credential = "none"
    if about.get("security"):
        scopes = [scope for scheme in about["security"] for names in scheme.values() for scope in names]
        holder = "operator's key" if OPERATOR in scopes else "any key"
        credential = ", ".join([holder, *(scope for scope in scopes if scope != OPERATOR)])
    names = [parameter["name"] for parameter in about.get("parameters", ()) if parameter["in"] == "query"]
    return Operation(
        method.upper(),
        path,
        about["summary"],
        about["description"],
        ", ".join([*names, *_body_fields(about, openapi)]),
        credential,
    )


def _body_fields(about: Mapping[str, Any], openapi: Mapping[str, Any]) -> Sequence[str]:
    """Names of the fields of an operation's JSON body; a required one ends with ``*``."""
    schema = about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    schema = openapi["components"]["schemas"].get(schema.get("$ref", "").rsplit("/", 1)[-1], schema)
    required = schema.get("required", ())
    return [f"{name}*" if name in required else name for name in schema.get("properties", ())]


def _render(template: str, values: Mapping[str, Any]) -> str:
    page = creatives.templates("leadre.serve.manage").get_template(f"{template}.html")
    return page.render(values, version=__version__)
