"""Operators who are logged in to the status page.

A browser gets a random name for its session and nothing else; who that is stands in the memory of the management
process. So a session ends with its key, its logout, its time or that process, and there is nothing to sign or to leak.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass

from leadre.serve.manage.auth import ApiKeys
from leadre.units import US_PER_HOUR

LASTS_US = 12 * US_PER_HOUR
MAX_SESSIONS = 256  # sessions; the oldest goes
SECRET_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Session:
    """Whose key opened it, until when, and what a form must bring along to be from our own page."""

    key_id: str
    until_us: int
    csrf: str


class Sessions:
    """Any thread may call. ``keys`` says who may come in, and whether they still may."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, presented: str, now_us: int) -> str | None:
        """The name of a new session; None for a key that is not an operator's, or not in force."""
        key = self._keys.find(presented)
        if key is None or not key.is_operator:
            return None
        name, csrf = secrets.token_urlsafe(SECRET_BYTES), secrets.token_urlsafe(SECRET_BYTES)
        with self._lock:
            self._sessions[name] = Session(key_id=key.key_id, until_us=now_us + LASTS_US, csrf=csrf)
            while len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return name

    def find(self, name: str, now_us: int) -> Session | None:
        """A session that lasts and whose key is in force."""
        with self._lock:
            session = self._sessions.get(name)
        if session is None or now_us >= session.until_us:
            return None
        in_force = {key.key_id for key in self._keys.all() if not key.revoked_at_us}
        return session if session.key_id in in_force else None

    def end(self, name: str) -> None:
        with self._lock:
            self._sessions.pop(name, None)


def is_ours(session: Session, sent: str) -> bool:
    """Whether a form brought what only our own page knows."""
    return hmac.compare_digest(session.csrf.encode(), sent.encode("utf-8", "surrogatepass"))
