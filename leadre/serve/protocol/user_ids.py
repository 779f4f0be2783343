"""The IDs of a user in a bid request, and texts that mean "no ID". Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from urllib.parse import unquote

from leadre.serve.protocol import openrtb_schema as wire
from leadre.store.contract import EVERYBODY

MAX_IDS = 32  # of one request that are looked up
MAX_EXTENDED = 100  # extended IDs of one request that are read

# People without an ID, or who opted out, are sent under these texts, in any case; they are not one person.
_PLACEHOLDERS = [
    *("", "null", "undefined", "none", "nil", "nan", "false", "(null)", "<null>", "[object object]", "na", "n/a"),
    *("optout", "opt-out", "opt_out", "opted-out", "opted_out", "unknown", "anonymous", "-1"),
    EVERYBODY,
]
_ZEROS = r"[0\-{}]+"  # also a UUID of zeros, in any notation
# An unfilled macro: ${X}, $X, {{X}}, {X}, [X], %%X%%, __X__, <X>, #X#, @X@
_MACRO = r"\$.*|\{.*\}|\[.*\]|%%.*%%|__.*__|<.*>|#.*#|@.*@"
# The source of an extended ID: a domain. Nothing is tried twice (`++`), as the text may be long and hostile.
_SOURCE = r"(?:[^:.]++(?:\.[^:.]++)++:)?+"
_TEXTS = "|".join([*map(re.escape, _PLACEHOLDERS), _ZEROS, _MACRO])
_no_id = re.compile(rf"\s*+{_SOURCE}\s*+(?:{_TEXTS})\s*", re.IGNORECASE | re.DOTALL).fullmatch


def user_ids(user: wire.User, device: wire.Device) -> tuple[str, ...]:
    """The user's IDs, in the order in which the bidder looks for a known one, without placeholders.

    First the bidder's own (``buyeruid``), then extended IDs as ``source:id`` in the order of their text, as their array
    has no order, then the exchange's (``user.id``), then the advertising ID of the device (``ifa``).
    """
    own, exchange, device_id = map(_checked, (user.buyeruid, user.id, device.ifa))
    extended = [
        f"{source}:{checked}"
        for source, user_id in islice(_extended(user), MAX_EXTENDED)
        if (checked := _checked(user_id))
    ]
    ids = [own, *sorted(extended), exchange, device_id]
    return tuple(dict.fromkeys(filter(None, ids)))[:MAX_IDS]


def is_placeholder(user_id: str) -> bool:
    """Whether a text means "no ID": empty, one of `_PLACEHOLDERS`, zeros, or an unfilled macro.

    So does an extended ID of such a text, as ``source:id``.
    """
    return _no_id(user_id) is not None or ("%" in user_id and _no_id(unquote(user_id)) is not None)


def _checked(user_id: str | None) -> str:
    return "" if user_id is None or is_placeholder(user_id) else user_id


def _extended(user: wire.User) -> Iterator[tuple[str, str | None]]:
    """(source, ID) of the extended IDs in both places."""
    for copy in (user, user.ext):
        for eid in (copy.eids if copy is not None else None) or ():
            for uid in eid.uids or ():
                yield eid.source or "", uid.id
