"""Passwords in URLs, hidden in all text that is shown or stored."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
_USER_INFO = re.compile(r"(?<=://)([^\s/:@]*):\S*@")  # a password may have ":", "/" and "@" in it
_SECRET = "password|passwd|pwd|secret|token|key"  # ends the name of a parameter
_PARAMETER = re.compile(rf"([?&#;](?:[\w.-]*[_.-])?(?:{_SECRET})=)[^&#\s]+", re.IGNORECASE)


def redact(text: str) -> str:
    """The text with `HIDDEN` for the password of each URL in it: ``redis://ada:***@host:6379/0``."""
    return _PARAMETER.sub(rf"\1{HIDDEN}", _USER_INFO.sub(rf"\1:{HIDDEN}@", text))


def redact_texts(value: Any) -> Any:
    """A value of JSON with `redact` for each text in it, however deep."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {name: redact_texts(item) for name, item in value.items()}
    return [redact_texts(item) for item in value] if isinstance(value, list) else value
