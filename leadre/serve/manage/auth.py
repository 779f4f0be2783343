"""Who may call the management API, and which web pages may ask for bids.

A key is ``<key_id>.<secret>``: the ID finds the row, the secret is 256 random bits. Only their SHA-256 is stored. That
is enough, as there is no dictionary of such secrets to try; a slow hash protects what people make up, and here would
only make every call slow. A key is shown once, when it is made; one that is lost is revoked and replaced.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import sqlite3
from dataclasses import dataclass
from urllib.parse import urlsplit

from leadre.data import text
from leadre.errors import InputError, MissingError
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.catalogue.validation import MAX_NAME_CHARS, check_id

SECRET_BYTES = 32
NOBODY = bytes(SECRET_BYTES)  # stands in for the hash of a key that is not there


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """What is known of a key. ``advertiser_id`` "" is the operator, who may do everything."""

    key_id: str
    name: str
    advertiser_id: str
    created_at_us: int
    revoked_at_us: int  # 0 = in force

    @property
    def is_operator(self) -> bool:
        return not self.advertiser_id


class ApiKeys:
    """The keys in ``manage.db``. Any thread may call; a revoked key opens nothing from the next call on."""

    def __init__(self, records: ManageDatabase) -> None:
        self._records = records

    def create(self, name: str, now_us: int, advertiser_id: str = "") -> tuple[ApiKey, str]:
        """(what is stored, the key itself, to be shown once). ``advertiser_id`` "" makes an operator's key."""
        name = text.clean(name, MAX_NAME_CHARS)
        if not name:
            raise InputError("name: say who will hold the key, so that it can be revoked when they leave")
        if advertiser_id:
            check_id("key", "advertiser_id", advertiser_id)
        key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(SECRET_BYTES)
        with self._records.writing():
            self._records.connection.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?, 0)", [key_id, _hash(secret), name, advertiser_id, now_us]
            )
        key = ApiKey(key_id=key_id, name=name, advertiser_id=advertiser_id, created_at_us=now_us, revoked_at_us=0)
        return key, f"{key_id}.{secret}"

    def find(self, presented: str) -> ApiKey | None:
        """Whose key this is; None for a wrong or revoked one."""
        with self._records.lock:
            return find(self._records.connection, presented)

    def revoke(self, key_id: str, now_us: int) -> ApiKey:
        """From now on it opens nothing; a second time changes nothing. MissingError for an unknown one."""
        with self._records.lock:
            if not any(key.key_id == key_id for key in self.all()):
                raise MissingError(f"no key has the ID {key_id!r}")
            with self._records.writing():
                self._records.connection.execute(
                    "UPDATE keys SET revoked_at_us = ? WHERE key_id = ? AND revoked_at_us = 0", [now_us, key_id]
                )
            return next(key for key in self.all() if key.key_id == key_id)

    def have_operator(self) -> bool:
        """Whether an operator's key is in force."""
        return any(key.is_operator and not key.revoked_at_us for key in self.all())

    def all(self) -> list[ApiKey]:
        """Revoked ones too, in the order of their making."""
        query = (
            "SELECT key_id, name, advertiser_id, created_at_us, revoked_at_us FROM keys ORDER BY created_at_us, key_id"
        )
        with self._records.lock:
            return [_key(row) for row in self._records.connection.execute(query)]


def find(connection: sqlite3.Connection, presented: str) -> ApiKey | None:
    """Whose key this is; None for a wrong or revoked one. How long it takes says nothing about the secret."""
    key_id, _, secret = presented.partition(".")
    query = "SELECT key_id, name, advertiser_id, created_at_us, revoked_at_us, hash FROM keys WHERE key_id = ?"
    row = connection.execute(query, [key_id]).fetchone() if key_id.isascii() else None
    is_right = hmac.compare_digest(_hash(secret), NOBODY if row is None else row[-1])
    key = None if row is None else _key(row)
    return key if is_right and key is not None and not key.revoked_at_us else None


def check_exposure(host: str, keys: ApiKeys) -> None:
    """InputError where a server would listen to other machines before any operator's key exists.

    ``host`` is the address to listen on; a name other than localhost counts as reachable from outside.
    """
    try:
        is_local = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        is_local = host == "localhost"
    if not is_local and not keys.have_operator():
        raise InputError(
            f"host = {host!r} is reachable from other machines, and no operator's key is in force;"
            " make one with `leadre serve --stage key --name NAME`, or listen on 127.0.0.1"
        )


def checked_origin(origin: str) -> str:
    """A web origin (RFC 6454) as browsers send it: scheme and host in lower case, no default port. InputError."""
    wanted = "an origin such as 'https://news.example' or 'http://127.0.0.1:8000', without a path"
    fault = InputError(f"origin = {origin[:100]!r}; it must be {wanted}")
    try:
        parts = urlsplit(origin)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise fault from error
    is_plain = re.fullmatch(r"(?i)https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d+)?", origin) is not None
    if not is_plain or host is None or len(origin) > 300:
        raise fault
    shown = f"[{host}]" if ":" in host else host
    is_default = port is None or port == {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{shown}" + ("" if is_default else f":{port}")


def put_origins(records: ManageDatabase, origins: list[str]) -> list[str]:
    """Register exactly these, for CORS; returns them as stored. Repeating it changes nothing."""
    wanted = sorted({checked_origin(origin) for origin in origins})
    with records.lock:
        if wanted != sorted(read_origins(records.connection)):
            with records.writing():
                records.connection.execute("DELETE FROM origins")
                records.connection.executemany("INSERT INTO origins VALUES (?)", [(origin,) for origin in wanted])
    return wanted


def read_origins(connection: sqlite3.Connection) -> frozenset[str]:
    """The registered origins; a bid worker compares the header `Origin` with them byte by byte."""
    return frozenset(origin for (origin,) in connection.execute("SELECT origin FROM origins"))


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _key(row: tuple[str, str, str, int, int]) -> ApiKey:
    key_id, name, advertiser_id, created_at_us, revoked_at_us = row[:5]
    return ApiKey(
        key_id=key_id,
        name=name,
        advertiser_id=advertiser_id,
        created_at_us=created_at_us,
        revoked_at_us=revoked_at_us,
    )
