"""Bodies of HTTP messages: read with a limit, unpacked, and packed for a client that accepts gzip."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from leadre.errors import BadRequest

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MAX_BODY_BYTES = 256 << 10  # also of an unpacked body
MAX_GZIP_MEMBERS = 16  # of one body; each costs a decompressor
MIN_GZIP_BYTES = 4096  # a shorter body gains little from gzip
GZIP_MAGIC = b"\x1f\x8b"  # no JSON begins with it
GZIP = (b"gzip", b"x-gzip")  # RFC 9110, section 8.4.1.3: two names of one coding


class UnsupportedCoding(BadRequest):
    """The body has a content coding other than gzip: status 415."""


def header(scope: Scope, name: bytes) -> bytes:
    """All values of a header, joined by commas as RFC 9110, section 5.3, permits; b"" if the request has none."""
    return b",".join([value for key, value in scope["headers"] if key == name])


def parameter(scope: Scope, name: str) -> str:
    """The last value of a parameter of the URL; "" without one."""
    query: dict[str, str] = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    return query.get(name, "")


async def body_of(scope: Scope, receive: Receive) -> bytes:
    """The request body, unpacked.

    Raises BadRequest if it is too long or its gzip is damaged, UnsupportedCoding for another content coding.
    """
    parts = []
    length = 0
    while True:
        message = await receive()
        part = message.get("body", b"")
        length += len(part)
        if length > MAX_BODY_BYTES:
            raise BadRequest("body", f"has more than {MAX_BODY_BYTES} bytes", "too_long")
        parts.append(part)
        if not message.get("more_body"):
            break
    body = b"".join(parts)
    return unpacked(body) if _is_packed(scope, body) else body


def _is_packed(scope: Scope, body: bytes) -> bool:
    """Whether the body is gzip by its header, or by the query, to which Prebid.js adds ``gzip=1``."""
    names = header(scope, b"content-encoding").lower().split(b",")
    codings = [name for name in map(bytes.strip, names) if name not in (b"", b"identity")]
    if codings and (len(codings) > 1 or codings[0] not in GZIP):
        raise UnsupportedCoding("body", "has a content coding other than gzip", "coding")
    if codings or b"gzip" not in scope["query_string"]:
        return bool(codings)
    return parameter(scope, "gzip").lower() in ("1", "true") and body.startswith(GZIP_MAGIC)


def unpacked(body: bytes) -> bytes:
    """The content of a gzip file of one or more members (RFC 1952). BadRequest if it is damaged or too long."""
    parts = []
    left = MAX_BODY_BYTES
    for _ in range(MAX_GZIP_MEMBERS):
        member = zlib.decompressobj(wbits=31)
        try:
            part = member.decompress(body, left + 1)
        except zlib.error as error:
            raise BadRequest("body", f"is no gzip ({error})", "gzip") from error
        left -= len(part)
        if left < 0:
            raise BadRequest("body", f"has more than {MAX_BODY_BYTES} bytes unpacked", "too_long")
        if not member.eof:
            raise BadRequest("body", "is gzip that is cut short", "gzip")
        parts.append(part)
        body = member.unused_data
        if not body:
            return b"".join(parts)
    raise BadRequest("body", f"has more than {MAX_GZIP_MEMBERS} members of gzip", "gzip")


def accepts_gzip(scope: Scope) -> bool:
    """Whether Accept-Encoding permits gzip (RFC 9110, section 12.5.3): by name or by ``*``, and not with ``q=0``."""
    return _permits_gzip(header(scope, b"accept-encoding"))


@lru_cache(maxsize=64)  # callers are few
def _permits_gzip(accepted: bytes) -> bool:
    weights = {}
    for item in accepted.lower().split(b","):
        name, *parameters = (part.strip() for part in item.split(b";"))
        weights[name] = not any(_is_zero_weight(parameter) for parameter in parameters)
    return next((weights[name] for name in (*GZIP, b"*") if name in weights), False)


def _is_zero_weight(parameter: bytes) -> bool:
    name, _, value = parameter.partition(b"=")
    return name.strip() == b"q" and value.strip().rstrip(b"0") in (b"", b".", b"0.")


def packed(body: bytes, scope: Scope) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """(the body, the headers that describe it): gzip if the body is long and the client accepts it."""
    if len(body) <= MIN_GZIP_BYTES or not accepts_gzip(scope):
        return body, []
    return gzip.compress(body, 1), [(b"content-encoding", b"gzip")]
