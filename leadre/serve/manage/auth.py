"""API keys of the management API, and the web origins whose pages may request bids.

A key is ``<key_id>.<secret>``: the ID selects the row, the secret is 256 random bits. Only the SHA-256 of the secret is
stored. A slow hash would protect passwords, which can be guessed; random secrets cannot, so it would only slow down
each call. A key is shown once, when it is created; a lost key is revoked and replaced.
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
NO_HASH = bytes(SECRET_BYTES)  # the hash to compare with if the key ID is unknown; no known secret has it


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key without its secret. An operator's key has ``advertiser_id`` "" and authorises every call."""

    key_id: str
    name: str
    advertiser_id: str
    created_at_us: int
    revoked_at_us: int  # 0 = not revoked

    @property
    def is_operator(self) -> bool:
        return not self.advertiser_id


class ApiKeys:
    """The keys in ``manage.db``. Thread-safe. A revoked key is refused from the next call on."""

    def __init__(self, database: ManageDatabase) -> None:
        self._database = database

    def create(self, name: str, now_us: int, advertiser_id: str = "") -> tuple[ApiKey, str]:
        """Create a key: (stored key, its text, to show once). InputError for an empty name or an invalid advertiser."""
        name = text.clean(name, MAX_NAME_CHARS)
        if not name:
            raise InputError("name: is empty; name the holder of the key, so that it can be revoked when they leave")
        if advertiser_id:
            check_id("key", "advertiser_id", advertiser_id)
        key_id = secrets.token_hex(8)
        secret = secrets.token_urlsafe(SECRET_BYTES)
        with self._database.writing():
            self._database.connection.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?, 0)", [key_id, _hash(secret), name, advertiser_id, now_us]
            )
        key = ApiKey(key_id=key_id, name=name, advertiser_id=advertiser_id, created_at_us=now_us, revoked_at_us=0)
        return key, f"{key_id}.{secret}"

    def find(self, presented: str) -> ApiKey | None:
        """The key whose text is ``presented``; None for a wrong or revoked one."""
        with self._database.lock:
            return find(self._database.connection, presented)

    def revoke(self, key_id: str, now_us: int) -> ApiKey:
        """Revoke a key at once; idempotent. MissingError for an unknown ID."""
        with self._database.lock:
            if not any(key.key_id == key_id for key in self.all()):
                raise MissingError(f"no key has the ID {key_id!r}")
            with self._database.writing():
                self._database.connection.execute(
                    "UPDATE keys SET revoked_at_us = ? WHERE key_id = ? AND revoked_at_us = 0", [now_us, key_id]
                )
            return next(key for key in self.all() if key.key_id == key_id)

    def have_operator(self) -> bool:
        """Whether an operator's key exists that is not revoked."""
        return any(key.is_operator and not key.revoked_at_us for key in self.all())

    def all(self) -> list[ApiKey]:
        """All keys, revoked ones included, by time of creation."""
        query = (
            "SELECT key_id, name, advertiser_id, created_at_us, revoked_at_us FROM keys ORDER BY created_at_us, key_id"
        )
        with self._database.lock:
            return [_key(row) for row in self._database.connection.execute(query)]


def find(connection: sqlite3.Connection, presented: str) -> ApiKey | None:
    """The key whose text is ``presented``; None for a wrong or revoked one. Compares hashes in constant time."""
    key_id, _, secret = presented.partition(".")
    query = "SELECT key_id, name, advertiser_id, created_at_us, revoked_at_us, hash FROM keys WHERE key_id = ?"
    row = connection.execute(query, [key_id]).fetchone() if key_id.isascii() else None
    is_right = hmac.compare_digest(_hash(secret), NO_HASH if row is None else row[-1])
    key = None if row is None else _key(row)
    return key if is_right and key is not None and not key.revoked_at_us else None


def check_exposure(host: str, keys: ApiKeys) -> None:
    """InputError if a server would accept connections from other machines while no operator's key is in force.

    ``host`` is the address to listen on; a name other than localhost counts as reachable from other machines.
    """
    try:
        is_local = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        is_local = host == "localhost"
    if not is_local and not keys.have_operator():
        raise InputError(
            f"host = {host!r} is reachable from other machines, and no operator's key is in force;"
            " create one with `leadre serve key --name NAME`, or listen on 127.0.0.1"
        )


def checked_origin(origin: str) -> str:
    """A web origin (RFC 6454) as browsers send it: in lower case, without a default port. InputError for other text."""
    valid = "an origin such as 'https://news.example' or 'http://127.0.0.1:8000', without a path"
    fault = InputError(f"origin = {origin[:100]!r}; it must be {valid}")
    try:
        parts = urlsplit(origin)
        host = parts.hostname
        port = parts.port
    except ValueError as error:
        raise fault from error
    is_plain = re.fullmatch(r"(?i)https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d+)?", origin) is not None
    if not is_plain or host is None or len(origin) > 300:
        raise fault
    bracketed = f"[{host}]" if ":" in host else host
    is_default = port is None or port == {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{bracketed}" + ("" if is_default else f":{port}")


def put_origins(database: ManageDatabase, origins: list[str]) -> list[str]:
    """Replace the registered origins; returns them as stored, sorted. Idempotent. InputError for other text."""
    checked = sorted({checked_origin(origin) for origin in origins})
    with database.lock:
        if checked != sorted(read_origins(database.connection)):
            with database.writing():
                database.connection.execute("DELETE FROM origins")
                database.connection.executemany("INSERT INTO origins VALUES (?)", [(origin,) for origin in checked])
    return checked


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
