"""Extended IDs of users, `source:id`, under which exchanges send the IDs of other companies; the source is a domain.

The erasure of an ID covers it as an extended ID of every source too.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_extended = re.compile(r"[^:.]++(?:\.[^:.]++)++:(.+)", re.DOTALL).fullmatch


def covering(user_id: str) -> tuple[str, ...]:
    """The IDs of which an erasure covers this one: itself, and an extended ID's part behind its source."""
    match = _extended(user_id)
    return (user_id, match[1]) if match else (user_id,)


def covers(users: Collection[str], user_id: str) -> str:
    """The first of ``users`` of which an erasure covers an ID; "" if none does."""
    return next((user for user in covering(user_id) if user in users), "") if user_id else ""
