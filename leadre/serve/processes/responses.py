"""Responses of a bid worker: raw ASGI messages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from leadre.serve.processes.bodies import Receive, Scope

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Handler = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")
TEXT: tuple[bytes, bytes] = (b"content-type", b"text/plain")
RETRY: tuple[bytes, bytes] = (b"retry-after", b"1")


async def reply(send: Send, status: int, body: bytes = b"", headers: Headers | None = None) -> None:
    """Send a complete response."""
    length = [] if status in (204, 304) else [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*length, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})


def indented(body: bytes) -> bytes:
    """JSON in several lines, for people."""
    return msgspec.json.format(body, indent=2)
