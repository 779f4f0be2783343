"""The page of all HTTP routes, from the OpenAPI descriptions of bidder and management API."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

INTRODUCTION = """# HTTP

A bidder has two ports: one for bids, recommendations, events and health, and one for the management API and the status
page. [openapi/bidder.json](openapi/bidder.json) and [openapi/management.json](openapi/management.json) describe them in
OpenAPI 3.1, for generators of clients; `leadre serve openapi` writes the same files. Routes with a key need the header
`Authorization: Bearer KEY`.
"""


def page(descriptions: Mapping[str, Schema]) -> str:
    """The page in Markdown. ``descriptions``: name -> OpenAPI description."""
    lines = [INTRODUCTION]
    for name, description in descriptions.items():
        lines += [*_head(description), *_operations(name, description), *_schemas(name, description)]
    return "\n".join(lines) + "\n"


def _head(description: Schema) -> Iterator[str]:
    info = description["info"]
    servers = [server["url"] for server in description.get("servers", ())]
    yield from (f"## {info['title']}", "", *(f"`{url}`\n" for url in servers), info["description"], "")


def _operations(name: str, description: Schema) -> Iterator[str]:
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            lock = " (key)" if operation.get("security") else ""
            yield from (f"### {method.upper()} {path} {{#{name}-{operation['operationId']}}}", "")
            yield from (_text(operation) + lock, "")
            yield from _parameters(name, operation.get("parameters", ()))
            yield from _body(name, operation.get("requestBody"))
            yield from _responses(name, operation["responses"])


def _text(operation: Schema) -> str:
    """Summary and description; FastAPI makes a summary of the function's name, which is no news."""
    summary = str(operation.get("summary", ""))
    if operation["operationId"].startswith(summary.lower().replace(" ", "_")):
        summary = ""
    texts = (summary, str(operation.get("description", "")))
    return " ".join(text.rstrip(".") + "." for text in texts if text)


def _parameters(name: str, parameters: list[Schema]) -> Iterator[str]:
    if parameters:
        yield from ("| parameter | in | type | meaning |", "|---|---|---|---|")
        for parameter in parameters:
            schema = parameter["schema"]
            kind = _kind(name, schema) + (", required" if parameter.get("required") else "")
            text = parameter.get("description") or schema.get("description", "")
            yield f"| `{parameter['name']}` | {parameter['in']} | {kind} | {text} |"
        yield ""


def _body(name: str, body: Schema | None) -> Iterator[str]:
    for media, content in (body or {"content": {}})["content"].items():
        yield from (f"Body: {_kind(name, content['schema'])}, `{media}`.", "")
        if "example" in content:
            yield from ("```json", json.dumps(content["example"], indent=2), "```", "")


def _responses(name: str, responses: Mapping[str, Schema]) -> Iterator[str]:
    yield from ("| status | body | meaning |", "|---|---|---|")
    for status, response in responses.items():
        bodies = [
            _kind(name, content["schema"]) if content.get("schema") else f"`{media}`"
            for media, content in response.get("content", {}).items()
        ]
        text = response["description"].replace("Successful Response", "Success.")  # FastAPI's default
        yield f"| {status} | {', '.join(bodies) or 'none'} | {text} |"
    yield ""


def _schemas(name: str, description: Schema) -> Iterator[str]:
    """A heading for each type of a body, with a table of its fields."""
    yield from (f"### Types of {description['info']['title']}", "")
    for title, schema in description["components"]["schemas"].items():
        yield from (f"#### {_short(title)} {{#{_anchor(name, title)}}}", "", schema.get("description", ""), "")
        required = schema.get("required", ())
        if "properties" not in schema:
            yield from (_kind(name, schema), "")
            continue
        yield from ("| field | type | default | meaning |", "|---|---|---|---|")
        for field, inner in schema["properties"].items():
            default = (
                "required" if field in required else f"`{json.dumps(inner['default'])}`" if "default" in inner else ""
            )
            yield f"| `{field}` | {_kind(name, inner)} | {default} | {inner.get('description', '')} |"
        yield ""


def _kind(name: str, schema: Schema) -> str:
    """A type in words: ``list of text``, ``whole number or null``, a link to a type with fields."""
    if "$ref" in schema:
        title = schema["$ref"].rpartition("/")[2]
        return f"[{_short(title)}](#{_anchor(name, title)})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(name, option) for option in schema["anyOf"]))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return f"list of {' and '.join(_kind(name, item) for item in schema['prefixItems'])}"
        return f"list of {_kind(name, schema.get('items', {}))}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object with values of {_kind(name, schema['additionalProperties'])}"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    kind = schema.get("type", "any JSON")
    return words.get(kind, str(kind)) + _bounds(schema)


def _bounds(schema: Schema) -> str:
    """The limits of a number or a length in words."""
    limits = {
        "minimum": "at least {}",
        "exclusiveMinimum": "above {}",
        "maximum": "at most {}",
        "exclusiveMaximum": "below {}",
        "minLength": "at least {} characters",
        "maxLength": "at most {} characters",
    }
    words = [
        text.format(schema[limit]) for limit, text in limits.items() if limit in schema and abs(schema[limit]) < 2**31
    ]
    return "".join(f", {word}" for word in words)


def _short(title: str) -> str:
    """``Page_AdResponse_`` -> ``Page of AdResponse``."""
    outer, _, inner = title.rstrip("_").partition("_")
    return f"{outer} of {inner}" if inner else outer


def _anchor(name: str, title: str) -> str:
    return f"{name}-{title.lower().strip('_')}"
