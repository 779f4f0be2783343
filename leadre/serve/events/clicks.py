"""Click IDs: by one, a landing page or its server reports the conversions of a click.

A click ID is the token of conversions, made as the click is redirected, and valid for `outcomes.CONVERSION_US`. It
exists only for a click.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

import msgspec

from leadre.serve.events.outcomes import CONVERSION_US
from leadre.serve.events.tokens import Token, TokenKeys

PARAMETER = "leadre_click"
_MACRO = re.compile(r"\{click_id\}|%7Bclick_id%7D", re.IGNORECASE)


def click_id(keys: TokenKeys, token: Token, now_us: int) -> str:
    """The ID of a click that comes with ``token``; "" without permission to measure."""
    if not token.may_measure:
        return ""
    return keys.encrypt(msgspec.structs.replace(token, expires_at_us=now_us + CONVERSION_US), "conv")


def landing_url(url: str, clicked: str) -> str:
    """The landing page with a click ID: in place of each macro ``{click_id}``, else as query parameter `PARAMETER`."""
    if _MACRO.search(url):
        return _MACRO.sub(clicked, url)
    if not clicked:
        return url
    parts = urlsplit(url)
    query = f"{parts.query}&{PARAMETER}={clicked}" if parts.query else f"{PARAMETER}={clicked}"
    return urlunsplit(parts._replace(query=query))
