"""Messages of drivers without the secrets that they repeat."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote

from leadre.redact import HIDDEN, redact


def hide(text: str, secrets: Iterable[str]) -> str:
    """The text in one line, with `HIDDEN` for each secret and for passwords in URLs."""
    line = redact(" ".join(text.split()))
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        line = line.replace(secret, HIDDEN)
    return line


def of_address(address: str) -> set[str]:
    """The password of ``scheme://user:password@host``, as written and decoded.

    An unquoted ``@`` may be part of it, so each text up to one counts.
    """
    after_user = address.partition("://")[2].partition(":")[2]
    written = {after_user[:at] for at, character in enumerate(after_user) if character == "@"}
    return written | {unquote(password) for password in written}
