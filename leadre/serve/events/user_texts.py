"""A user's ID inside the texts that callers choose: an imp's ID, the publisher's names, an old record's request ID.

An ID of fewer than `MIN_BYTES` is in many texts by chance, so it is looked for as the user of a record alone.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Collection, Iterable
from typing import Any

import msgspec

from leadre.extended_ids import covering
from leadre.serve.events.records import RequestRecord, decode, encode, without_user

MIN_BYTES = 8
_LETTERS = string.ascii_lowercase + string.digits
# Fields of records, as they are on the disk, with texts of callers. All others are ours or an advertiser's.
_VALUES = ("asked_id", "asked", "placements", "key")
_IMP_IDS = "imp_id"


def long_enough(users: Iterable[str]) -> list[str]:
    """The IDs that are looked for inside other texts."""
    return [user for user in users if len(user.encode(errors="surrogatepass")) >= MIN_BYTES]


def scrub(fields: dict[str, Any], users: Collection[str]) -> None:
    """Replace each text of a caller that contains one of the IDs, in the decoded msgpack of a record.

    The new text is random and has as many bytes. Equal texts stay equal, so that imps keep their verdicts and bids.
    """
    texts = _Texts(long_enough(users))
    for name in _VALUES:
        if name in fields:
            fields[name] = texts.scrubbed(fields[name])
    if "verdicts" in fields:
        fields["verdicts"] = {texts.scrubbed(imp_id): row for imp_id, row in fields["verdicts"].items()}
    for bid in fields.get("bids", ()):
        bid[_IMP_IDS] = texts.scrubbed(bid[_IMP_IDS])


class _Texts:
    """Replacements of one record: text -> new text."""

    def __init__(self, users: Collection[str]) -> None:
        self._users = users
        self._new: dict[str, str] = {}

    def scrubbed(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            return {self.scrubbed(name): self.scrubbed(item) for name, item in value.items()}
        return [self.scrubbed(item) for item in value] if isinstance(value, list) else value

    def _text(self, text: str) -> str:
        if not any(user in text for user in self._users):
            return text
        if text not in self._new:
            self._new[text] = "".join(secrets.choice(_LETTERS) for _ in text.encode())
        return self._new[text]


def scrubbed_body(body: bytes, users: Collection[str]) -> bytes:
    """The msgpack of a record after `scrub`; it has the same length."""
    fields: dict[str, Any] = msgspec.msgpack.decode(body)
    scrub(fields, users)
    return msgspec.msgpack.encode(fields)


def anonymous(record: RequestRecord, user_ids: Iterable[str]) -> RequestRecord:
    """The record of a request; if it names no user, its texts of the caller contain no ID of the request either.

    ``user_ids``: the IDs in the request, also if consent or an erasure forbids their use. An erasure could not find
    them in such a record later.
    """
    users = () if record.user_id else long_enough(part for user_id in user_ids for part in covering(user_id))
    return _without_texts(record, users) if users else record


def erased(record: RequestRecord) -> RequestRecord:
    """The record without its user, whose ID is in none of its texts of the caller either."""
    return without_user(_without_texts(record, long_enough(covering(record.user_id))))


def _without_texts(record: RequestRecord, users: Collection[str]) -> RequestRecord:
    """The record after `scrub`; the same object if no text contains one of the IDs."""
    body = encode(record)
    if not any(user.encode() in body for user in users):
        return record
    scrubbed = decode(scrubbed_body(body, users))
    assert isinstance(scrubbed, RequestRecord)
    return scrubbed
