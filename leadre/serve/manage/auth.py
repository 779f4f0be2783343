"""API keys of the management API, and the web origins whose pages may request bids.

A key is ``<key_id>.<secret>``: the ID selects the row, the secret is 256 random bits. Only the SHA-256 of the secret is
stored. A slow hash would protect passwords, which can be guessed; random secrets cannot, so it would only slow down
each call. A key is shown once, when it is created; a lost key is revoked and replaced.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import ipaddress
import re
import secrets
import sqlite3
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from leadre.data import text
from leadre.errors import InputError, MissingError
from leadre.serve.catalogue import audit
from leadre.serve.catalogue.audit import Author, Change
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.catalogue.validation import MAX_NAME_CHARS, check_id

SECRET_BYTES = 32
Scope = Literal["metrics", "explain", "recommend", "campaigns", "convert", "erase", "keys"]
SCOPES: tuple[Scope, ...] = typing.get_args(Scope)
ACCOUNT_SCOPES: tuple[Scope, ...] = ("explain", "campaigns", "convert", "keys")  # that a key of an account may have
DEFAULT_ACCOUNT_SCOPES: tuple[Scope, ...] = ("campaigns",)
_COLUMNS = "key_id, name, advertiser_id, scopes, created_at_us, revoked_at_us"
NO_HASH = bytes(SECRET_BYTES)  # the hash to compare with if the key ID is unknown; no known secret has it


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key without its secret. ``advertiser_id``: the only account that it opens; "" in an operator's key: all.

    ``scopes``: what it authorises there, in the order of `SCOPES`.
    """

    key_id: str
    name: str
    advertiser_id: str
    scopes: tuple[Scope, ...]
    created_at_us: int
    revoked_at_us: int  # 0 = not revoked

    @property
    def is_operator(self) -> bool:
        return not self.advertiser_id


class ApiKeys:
    """The keys in ``manage.db``. Thread-safe. A revoked key is refused from the next call on.

    ``author``: of the changes in the audit trail; None: a command on the bidder's machine.
    """

    def __init__(self, database: ManageDatabase, author: Author | None = None) -> None:
        self._database = database
        self._author = author or Author()

    def create(self, name: str, now_us: int, advertiser_id: str = "", scopes: Sequence[str] = ()) -> tuple[ApiKey, str]:
        """Create a key: (stored key, its text, to show once).

        ``scopes`` (): all for an operator's key, `DEFAULT_ACCOUNT_SCOPES` for an account's. InputError for an empty
        name, an invalid advertiser, or a scope that such a key cannot have.
        """
        name = text.clean(name, MAX_NAME_CHARS)
        if not name:
            raise InputError("name: is empty; name the holder of the key, so that it can be revoked when they leave")
        if advertiser_id:
            check_id("key", "advertiser_id", advertiser_id)
        key = ApiKey(
            key_id=secrets.token_hex(8),
            name=name,
            advertiser_id=advertiser_id,
            scopes=checked_scopes(scopes, advertiser_id),
            created_at_us=now_us,
            revoked_at_us=0,
        )
        secret = secrets.token_urlsafe(SECRET_BYTES)
        with self._database.writing():
            self._database.connection.execute(
                f"INSERT INTO keys (hash, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
                [_hash(secret), key.key_id, name, advertiser_id, " ".join(key.scopes), now_us, 0],
            )
            self._audit(None, key)
        return key, f"{key.key_id}.{secret}"

    def find(self, presented: str) -> ApiKey | None:
        """The key whose text is ``presented``; None for a wrong or revoked one."""
        with self._database.lock:
            return find(self._database.connection, presented)

    def revoke(self, key_id: str, now_us: int, advertiser_id: str = "") -> ApiKey:
        """Revoke a key at once; idempotent. ``advertiser_id``: only a key of this account; "" = any.

        MissingError for any other ID.
        """
        with self._database.lock:
            known = {key.key_id: key for key in self.all(advertiser_id)}
            if key_id not in known:
                raise MissingError("no key has this ID")
            before = known[key_id]
            if before.revoked_at_us:
                return before
            after = dataclasses.replace(before, revoked_at_us=now_us)
            with self._database.writing():
                self._database.connection.execute(
                    "UPDATE keys SET revoked_at_us = ? WHERE key_id = ?", [now_us, key_id]
                )
                self._audit(before, after)
            return after

    def have_operator(self) -> bool:
        """Whether an operator's key exists that is not revoked."""
        return any(key.is_operator and not key.revoked_at_us for key in self.all())

    def all(self, advertiser_id: str = "") -> list[ApiKey]:
        """All keys, or those of an account, revoked ones included, by time of creation."""
        where, values = ("WHERE advertiser_id = ?", [advertiser_id]) if advertiser_id else ("", [])
        query = f"SELECT {_COLUMNS} FROM keys {where} ORDER BY created_at_us, key_id"
        with self._database.lock:
            return [_key(row) for row in self._database.connection.execute(query, values)]

    def _audit(self, before: ApiKey | None, after: ApiKey) -> None:
        old = "" if before is None else msgspec.json.encode(before).decode()
        new = msgspec.json.encode(after).decode()
        change = Change(kind="key", item_id=after.key_id, advertiser_id=after.advertiser_id, before=old, after=new)
        audit.append(self._database.connection, self._author, [change])


def checked_scopes(scopes: Sequence[str], advertiser_id: str) -> tuple[Scope, ...]:
    """The scopes of a new key, each once; () means the usual ones. InputError for one that it cannot have."""
    allowed = ACCOUNT_SCOPES if advertiser_id else SCOPES
    for scope in scopes:
        if scope not in allowed:
            holder = "an account's key" if advertiser_id else "an operator's key"
            raise InputError(f"scopes: {holder} cannot have {scope[:100]!r}; it can have {', '.join(allowed)}")
    usual = DEFAULT_ACCOUNT_SCOPES if advertiser_id else SCOPES
    return tuple(scope for scope in allowed if scope in (scopes or usual))


def find(connection: sqlite3.Connection, presented: str) -> ApiKey | None:
    """The key whose text is ``presented``; None for a wrong or revoked one. Compares hashes in constant time."""
    key_id, _, secret = presented.partition(".")
    query = f"SELECT {_COLUMNS}, hash FROM keys WHERE key_id = ?"
    row = connection.execute(query, [key_id]).fetchone() if key_id.isascii() else None
    is_right = hmac.compare_digest(_hash(secret), NO_HASH if row is None else row[-1])
    key = None if row is None else _key(row)
    return key if is_right and key is not None and not key.revoked_at_us else None


def is_allowed(connection: sqlite3.Connection, presented: str, scope: Scope) -> ApiKey | None:
    """The key whose text is ``presented`` if it is in force and has the scope; else None.

    The caller compares ``advertiser_id`` of an account's key with the account that it acts for.
    """
    key = find(connection, presented)
    return key if key is not None and scope in key.scopes else None


def missing_scope(key: ApiKey, scope: str) -> str:
    """The refusal of a key that lacks a scope."""
    return f"this requires the scope {scope!r}; this key has {', '.join(key.scopes)}"


def check_exposure(host: str, keys: ApiKeys) -> None:
    """InputError if a server would accept connections from other machines while no operator's key is in force.

    ``host`` is the address to listen on; a name other than localhost counts as reachable from other machines.
    """
    if not is_loopback(host) and not keys.have_operator():
        raise InputError(
            f"host = {host!r} is reachable from other machines, and no operator's key is in force;"
            " create one with `leadre serve key --name NAME`, or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether an address or a name reaches this machine alone; a name other than localhost may reach others."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


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


def put_origins(database: ManageDatabase, origins: list[str], author: Author | None = None) -> list[str]:
    """Replace the registered origins; returns them as stored, sorted. Idempotent. InputError for other text.

    ``author``: of the change in the audit trail; None: a command on the bidder's machine.
    """
    checked = sorted({checked_origin(origin) for origin in origins})
    with database.lock:
        before = sorted(read_origins(database.connection))
        if checked != before:
            old, new = (msgspec.json.encode(names).decode() for names in (before, checked))
            with database.writing():
                database.connection.execute("DELETE FROM origins")
                database.connection.executemany("INSERT INTO origins VALUES (?)", [(origin,) for origin in checked])
                change = Change(kind="origins", item_id="", advertiser_id="", before=old, after=new)
                audit.append(database.connection, author or Author(), [change])
    return checked


def read_origins(connection: sqlite3.Connection) -> frozenset[str]:
    """The registered origins; a bid worker compares the header `Origin` with them byte by byte."""
    return frozenset(origin for (origin,) in connection.execute("SELECT origin FROM origins"))


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _key(row: Sequence[Any]) -> ApiKey:
    key_id, name, advertiser_id, scopes, created_at_us, revoked_at_us = row[:6]
    return ApiKey(
        key_id=key_id,
        name=name,
        advertiser_id=advertiser_id,
        scopes=tuple(scopes.split()),
        created_at_us=created_at_us,
        revoked_at_us=revoked_at_us,
    )
