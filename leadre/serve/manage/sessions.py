"""Sessions of operators on the status page.

The browser stores a random session ID and nothing else; the management process holds the session in memory. A session
ends when its key is revoked, at logout, after `LASTS_US`, or with the process. No signature is needed, and a cookie
reveals nothing.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass

from leadre.serve.manage.auth import ApiKeys, Scope
from leadre.units import US_PER_HOUR

LASTS_US = 12 * US_PER_HOUR
NEEDED_SCOPES: tuple[Scope, ...] = ("metrics", "explain", "campaigns")  # for what the page shows and changes
MAX_SESSIONS = 256  # the oldest session is removed
SECRET_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Session:
    """The key that opened the session, its end, and the CSRF token that forms of our page contain."""

    key_id: str
    until_us: int
    csrf: str


class Sessions:
    """All open sessions; ``keys`` decides which key may open one, and whether it is still in force. Thread-safe."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, presented: str, now_us: int) -> str | None:
        """The ID of a new session; None unless ``presented`` is an operator's key in force with the `NEEDED_SCOPES`."""
        key = self._keys.find(presented)
        if key is None or not key.is_operator or not set(NEEDED_SCOPES) <= set(key.scopes):
            return None
        session_id = secrets.token_urlsafe(SECRET_BYTES)
        csrf = secrets.token_urlsafe(SECRET_BYTES)
        with self._lock:
            self._sessions[session_id] = Session(key_id=key.key_id, until_us=now_us + LASTS_US, csrf=csrf)
            while len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return session_id

    def find(self, session_id: str, now_us: int) -> Session | None:
        """The session; None if it is over, or its key is no longer in force."""
        with self._lock:
            session = self._sessions.get(session_id)
        if session is None or now_us >= session.until_us:
            return None
        in_force = {key.key_id for key in self._keys.all() if not key.revoked_at_us}
        return session if session.key_id in in_force else None

    def end(self, session_id: str) -> None:
        with self._lock:
            self._sessions.pop(session_id, None)


def is_own_form(session: Session, csrf: str) -> bool:
    """Whether a form has the CSRF token of the session, which only our own page contains."""
    return hmac.compare_digest(session.csrf.encode(), csrf.encode("utf-8", "surrogatepass"))
