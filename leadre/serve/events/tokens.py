"""The tokens of a bid: the terms on which its events are accepted, one token for each kind of event.

A token is `VERSION.BODY`: the number of the key, and the fields as msgpack, encrypted by AES-256-SIV (RFC 5297) with
the kind of event as associated data, in URL-safe base64. Its holder can neither read nor change it, nor report another
kind of event with it. SIV needs no unique nonce: equal tokens are equal texts, and nothing else follows from them. A
token carries the ad's ID and no address: a click leads to the landing page that is stored with the ad.

Tokens of earlier releases, `VERSION.BODY.MAC` with HMAC-SHA256 (RFC 2104), serve every kind and are read until they
expire.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, Self
from urllib.parse import urlsplit

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from leadre.errors import ExpiredError, ForgedError, InputError
from leadre.serve.events import durable
from leadre.serve.events.records import AssumedRate
from leadre.types import BidType, EventKind
from leadre.units import US_PER_DAY, US_PER_HOUR, US_PER_S

KEY_BYTES = 32
NONCE_BYTES = 12
MAX_CHARS = 4096  # of a token; a longer one is rejected unread
GRACE_US = 600 * US_PER_S  # from the end of a bid's ``exp`` to the end of its token: a refused notice is sent again
CLICK_US = US_PER_HOUR  # from the end of the other events of a bid to the end of its clicks: a page stays open
# From the replacement of a key to its removal. Events of its tokens are accepted for a shorter time: a click is
# redirected for a week after its bid, and the conversions of an impression may take as long.
KEPT_US = 30 * US_PER_DAY
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Macros that the exchange expands, by kind of event. OpenRTB 2.6, section 4.4.
MACROS: Mapping[str, str] = {
    "win": "&price=${AUCTION_PRICE}",
    "bill": "&price=${AUCTION_PRICE}",
    "loss": "&reason=${AUCTION_LOSS}",
}
MIN_TO_WIN = "&min=${AUCTION_MIN_TO_WIN}"  # of wins and losses; Prebid.js does not expand it


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
    cap_day: int = 0  # of ``cap_id``: days since 1970
    bills_signed_price: bool = False  # a bill without a price costs ``price_cap_nanos``
    sender: str = ""  # keys under which the bid is open (`Party.sender`)
    rate_micro: int = 0  # of earlier releases: ``rate_nano`` in millionths
    rate_event: Literal["", "click", "conv"] = ""
    rate_slice: str = ""  # `leadre.serve.events.calibration.SLICES`
    has_fixed_price: bool = False  # a bill costs ``price_cap_nanos``, also if it states another price
    open_nanos: int = 0  # of the sender's open bids, for this bid; 0 in tokens of releases up to November 2026
    rate_nano: int = 0  # billionths: the probability of ``rate_event`` for one impression, as the bid assumed

    @property
    def shown_until_us(self) -> int:
        """The end of the time in which the bid may be shown."""
        return self.expires_at_us - GRACE_US

    @property
    def rate(self) -> AssumedRate | None:
        """The rate that the bid assumed; None without one."""
        if not self.rate_event:
            return None
        return AssumedRate(self.rate_event, self.rate_nano or 1_000 * self.rate_micro)

    def ends_at_us(self, kind: EventKind) -> int:
        """The time of the last event of a kind."""
        return self.expires_at_us + (CLICK_US if kind == "click" else 0)


class TokenKey(NamedTuple):
    """A secret key, and when a rotation made it: 0 for a first key, and for one of an older release."""

    secret: bytes
    created_us: int = 0


class TokenKeys:
    """Secret keys by version: the highest version encrypts, every version decrypts.

    Keys of a file follow it: a rotation by another process is adopted by `follow`, and at the latest by `check` of the
    first token with a new version. So no process refuses a token that another one has made with a key of the file.
    """

    def __init__(self, keys: Mapping[int, bytes]) -> None:
        self._path: Path | None = None
        self._file: tuple[int, ...] = ()  # identity of the file that was read
        self._use({version: TokenKey(secret) for version, secret in keys.items()})

    @classmethod
    def open(cls, path: Path) -> Self:
        """The keys in a file, one `VERSION HEX CREATED_US` a line. A missing file is created with a first key.

        The time is missing in files of older releases. InputError for a file with any other line.
        """
        if not path.exists():
            _write(path, {1: TokenKey(secrets.token_bytes(KEY_BYTES))})
        file = _identity(path)
        stored = _read(path)
        keys = cls({version: key.secret for version, key in stored.items()})
        keys._use(stored)
        keys._path = path
        keys._file = file
        return keys

    def follow(self) -> None:
        """Read the file again if another process has replaced it. InputError for a damaged one; the keys then stay."""
        if self._path is not None and (file := _identity(self._path)) != self._file:
            self._use(_read(self._path))
            self._file = file

    def rotate(self, path: Path, now_us: int, *, kept_us: int = KEPT_US) -> Self:
        """Add a key to the file, which the bidder's processes adopt. The caller holds a lock against other rotations.

        A key is removed ``kept_us`` after a later one has replaced it: no process accepts its tokens from then on.
        """
        newest = self.version + 1
        keys = self._keys | {newest: TokenKey(secrets.token_bytes(KEY_BYTES), now_us)}
        kept = {newest: keys[newest]}
        for version in self.versions:
            later = [key.created_us for other, key in keys.items() if other > version and key.created_us]
            if kept_us and now_us - min(later) < kept_us:
                kept[version] = keys[version]
        _write(path, kept)
        return self.open(path)

    @property
    def versions(self) -> list[int]:
        """The versions of the keys, oldest first."""
        return sorted(self._keys)

    def _use(self, keys: Mapping[int, TokenKey]) -> None:
        assert keys and all(len(key.secret) == KEY_BYTES for key in keys.values()), "keys of 32 bytes"
        # A key of its own for each algorithm: the secret itself signed the tokens of earlier releases.
        self._ciphers = {
            version: AESSIV(hmac.digest(key.secret, b"AES-256-SIV", "sha512")) for version, key in keys.items()
        }
        self._keys = dict(keys)
        self.version = max(keys)

    def encrypt(self, token: Token, kind: EventKind) -> str:
        """The token for events of a kind, as text that is safe in a URL without quoting."""
        return self.encrypt_each(token, [kind])[kind]

    def encrypt_each(self, token: Token, kinds: Sequence[EventKind]) -> dict[EventKind, str]:
        """`encrypt` for several kinds."""
        data = _ENCODER.encode(token)
        encrypt = self._ciphers[self.version].encrypt
        return {kind: f"{self.version}.{_base64(encrypt(data, [_purpose(kind)]))}" for kind in kinds}

    def check(self, text: str, kind: EventKind, now_us: int, late_us: int = 0) -> Token:
        """Verify and decode a token for an event of a kind. ``late_us``: accept it for so long after its end.

        ForgedError, or ExpiredError for a genuine token whose time is over.
        """
        match = _FORM.fullmatch(text) if len(text) <= MAX_CHARS else None
        version = int(match[2]) if match else 0
        if version not in self._keys and match is not None:
            with contextlib.suppress(InputError, OSError):  # the task that follows the file reports them
                self.follow()
        if match is None or version not in self._keys:
            raise ForgedError("the token is not one of ours, or its key was retired")
        try:
            if match[4] is None:
                body = self._ciphers[version].decrypt(_bytes(match[3]), [_purpose(kind)])
            elif hmac.compare_digest(_mac(self._keys[version].secret, match[1]), match[4]):
                body = _bytes(match[3])
            else:
                raise InvalidTag
        except (InvalidTag, ValueError) as error:
            raise ForgedError("the token was changed, or is for another kind of event") from error
        try:
            token = _DECODER.decode(body)
        except msgspec.DecodeError as error:
            raise ForgedError(f"the token was written by another release ({error})") from error
        ended_at_us = token.ends_at_us(kind)
        if now_us > ended_at_us + late_us:
            raise ExpiredError(f"the token ended {(now_us - ended_at_us) / US_PER_S:.0f} s ago")
        return token


def nonce() -> bytes:
    """Random bytes that separate the events of one bid from those of another."""
    return os.urandom(NONCE_BYTES)  # as `secrets` does, with less around it


def event_url(public_url: str, kind: EventKind, token: str, *, min_to_win: bool = False) -> str:
    """The URL that reports an event, with a token for its kind.

    ``min_to_win``: wins and losses report the price that the bid needed, as first-price exchanges know it.
    InputError unless ``public_url`` is https, or http of this machine.
    """
    macro = MIN_TO_WIN if min_to_win and kind in ("win", "loss") else ""
    return f"{_checked(public_url)}/e/{kind}?t={token}{MACROS.get(kind, '')}{macro}"


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
_FORM = re.compile(r"(([1-9][0-9]{0,8})\.([A-Za-z0-9_-]+))(?:\.([A-Za-z0-9_-]{43}))?", re.ASCII)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _purpose(kind: EventKind) -> bytes:
    """The associated data of a token. A view comes with the token of its impression: it charges nothing."""
    return b"imp" if kind == "view" else kind.encode()


def _bytes(text: str) -> bytes:
    """The inverse of `_base64`. ValueError for text that `_base64` does not write, such as unused bits that are set."""
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if _base64(data) != text:
        raise ValueError("not canonical base64")
    return data


def _mac(key: bytes, body: str) -> str:
    return _base64(hmac.digest(key, body.encode(), hashlib.sha256))


def _read(path: Path) -> dict[int, TokenKey]:
    """The keys of a file. InputError for any other file."""
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    form = re.compile(rf"(\d{{1,9}}) ([0-9a-f]{{{2 * KEY_BYTES}}})(?: (\d{{1,18}}))?")
    matches = [form.fullmatch(line) for line in lines]
    keys = {int(match[1]): TokenKey(bytes.fromhex(match[2]), int(match[3] or 0)) for match in matches if match}
    if not keys or len(keys) < len(lines):
        raise InputError(f"{path}: wants lines of a version and a key of {KEY_BYTES} bytes in hex; restore the file")
    return keys


def _write(path: Path, keys: Mapping[int, TokenKey]) -> None:
    """Replace the file, readable by its owner alone."""
    lines = [f"{version} {key.secret.hex()} {key.created_us}\n" for version, key in sorted(keys.items())]
    durable.replace(path, "".join(lines).encode(), mode=0o600)


def _identity(path: Path) -> tuple[int, ...]:
    """Numbers that differ after a replacement of the file."""
    about = path.stat()
    return about.st_ino, about.st_mtime_ns, about.st_size
