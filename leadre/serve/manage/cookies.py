"""Cookies of a request: only the status page's own reaches the framework.

`http.cookies` of Python 3.11 takes time quadratic in the length of a quoted value, and FastAPI parses the cookies of
every request. The session's value has no quotes, so one linear search finds it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

SESSION_COOKIE = "leadre_session"
_SESSION = re.compile(rb"(?:^|;)[ \t]*" + SESSION_COOKIE.encode() + rb"=([A-Za-z0-9_-]{1,64})[ \t]*(?=;|$)")

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Any, Any], Awaitable[None]]


class SessionCookieOnly:
    """ASGI middleware that replaces the Cookie headers of a request by the session's cookie, if they have one."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            cookies = b";".join(value for name, value in scope["headers"] if name == b"cookie")
            if cookies:
                others = [(name, value) for name, value in scope["headers"] if name != b"cookie"]
                match = _SESSION.search(cookies)
                own = [(b"cookie", SESSION_COOKIE.encode() + b"=" + match[1])] if match else []
                scope = {**scope, "headers": [*others, *own]}
        await self._app(scope, receive, send)
