"""The signed token of a bid: the terms on which its events are accepted, and for how long.

A token is `VERSION.BODY.MAC`: the number of the key, the fields as msgpack, and HMAC-SHA256 (RFC 2104) over version and
body; body and MAC are URL-safe base64. Its holder can read it and cannot change it. It carries the ad's ID and no
address: a click leads to the landing page that is stored with the ad.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import msgspec

from leadre.errors import ExpiredError, ForgedError, InputError
from leadre.serve.events import durable
from leadre.types import BidType, EventKind
from leadre.units import US_PER_S

KEY_BYTES = 32
NONCE_BYTES = 12
MAX_CHARS = 4096  # of a token; a longer one is rejected unread
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Macros that the exchange expands, by kind of event. OpenRTB 2.6, section 4.4.
MACROS: Mapping[str, str] = {
    "win": "&price=${AUCTION_PRICE}",
    "bill": "&price=${AUCTION_PRICE}",
    "loss": "&reason=${AUCTION_LOSS}",
}


class Token(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The terms of one bid. A new field is the last one and has a default, so that tokens of the last release are read.

    The fields are encoded by position: their names may change, their order may not.
    """

    bid_id: str
    request_id: str
    imp_id: str
    ad_id: str
    campaign_id: str
    user_id: str  # "" if it may not be stored
    charge_type: BidType
    price_cap_nanos: int  # the highest price of the impression
    charge_nanos: int  # the advertiser's price of a click (cpc) or a conversion (cpa)
    currency: str
    lease_id: int  # that pays, 0 = none
    reserved_nanos: int  # of the lease, for this bid
    cap_id: str  # the reservation under the user's frequency cap, "" = none
    issued_at_us: int
    expires_at_us: int
    nonce: bytes
    is_test: bool
    may_measure: bool  # count impressions, views, clicks
    may_profile: bool  # store them with the user


class TokenKeys:
    """Signing keys by version: the highest version signs, every version verifies."""

    def __init__(self, keys: Mapping[int, bytes]) -> None:
        assert keys and all(len(key) == KEY_BYTES for key in keys.values()), "keys of 32 bytes"
        self._keys = dict(keys)
        self.version = max(keys)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The keys in a file, one `VERSION HEX` a line. A missing file is created with a first key.

        InputError for a file with any other line.
        """
        if not path.exists():
            _write(path, {1: secrets.token_bytes(KEY_BYTES)})
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
        matches = [re.fullmatch(rf"(\d{{1,9}}) ([0-9a-f]{{{2 * KEY_BYTES}}})", line) for line in lines]
        keys = {int(match[1]): bytes.fromhex(match[2]) for match in matches if match}
        if not keys or len(keys) < len(lines):
            raise InputError(
                f"{path}: wants lines of a version and a key of {KEY_BYTES} bytes in hex; restore the file"
            )
        return cls(keys)

    def rotate(self, path: Path, keep: int = 2) -> Self:
        """Add a key to the file and keep the newest ``keep`` keys; tokens of older keys are rejected from then on."""
        assert keep >= 1
        keys = self._keys | {self.version + 1: secrets.token_bytes(KEY_BYTES)}
        _write(path, dict(sorted(keys.items())[-keep:]))
        return self.open(path)

    def sign(self, token: Token) -> str:
        """The token as text, safe in a URL without quoting."""
        body = f"{self.version}.{_base64(_ENCODER.encode(token))}"
        return f"{body}.{_mac(self._keys[self.version], body)}"

    def check(self, text: str, now_us: int, late_us: int = 0) -> Token:
        """Verify and decode a token. ``late_us``: the time after its end for which it is still accepted.

        ForgedError, or ExpiredError for a genuine token whose time is over.
        """
        match = _FORM.fullmatch(text) if len(text) <= MAX_CHARS else None
        key = self._keys.get(int(match[2])) if match else None
        if match is None or key is None:
            raise ForgedError("the token is not one of ours, or its key was retired")
        if not hmac.compare_digest(_mac(key, match[1]), match[4]):
            raise ForgedError("the token was changed")
        try:
            token = _DECODER.decode(base64.urlsafe_b64decode(match[3] + "=" * (-len(match[3]) % 4)))
        except (msgspec.DecodeError, ValueError) as error:
            raise ForgedError(f"the token was written by another release ({error})") from error
        if now_us > token.expires_at_us + late_us:
            raise ExpiredError(f"the token ended {(now_us - token.expires_at_us) / US_PER_S:.0f} s ago")
        return token


def nonce() -> bytes:
    """Random bytes that separate the events of one bid from those of another."""
    return secrets.token_bytes(NONCE_BYTES)


def event_url(public_url: str, kind: EventKind, token: str) -> str:
    """The URL that reports an event. InputError unless ``public_url`` is https, or http of this machine."""
    return f"{_checked(public_url)}/e/{kind}?t={token}{MACROS.get(kind, '')}"


@lru_cache(maxsize=8)
def _checked(public_url: str) -> str:
    """The URL without a slash at its end; cached, as every bid needs it several times."""
    parts = urlsplit(public_url)
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
    if not is_safe or not parts.hostname or parts.query or parts.fragment:
        raise InputError(
            f"public_url = {public_url!r}: give an https address without query, e.g. https://ads.example.com"
        )
    return public_url.rstrip("/")


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Token)
_FORM = re.compile(r"(([1-9][0-9]{0,8})\.([A-Za-z0-9_-]+))\.([A-Za-z0-9_-]{43})", re.ASCII)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _mac(key: bytes, body: str) -> str:
    return _base64(hmac.digest(key, body.encode(), hashlib.sha256))


def _write(path: Path, keys: Mapping[int, bytes]) -> None:
    """Replace the file, readable by its owner alone."""
    durable.replace(path, "".join(f"{version} {key.hex()}\n" for version, key in keys.items()).encode(), mode=0o600)
