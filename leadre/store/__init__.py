"""Store of users' generated lists, profiles and frequency caps: one contract, on LMDB or Redis."""

from __future__ import annotations

from pathlib import Path

from leadre import extras
from leadre.errors import InputError
from leadre.redact import redact
from leadre.store.contract import Store


def spec_in(state: Path, spec: str = "") -> str:
    """Return ``spec``, or the default store of a bidder's state folder if it is empty: ``lmdb:STATE/lists``."""
    return spec or f"lmdb:{state / 'lists'}"


def open_store(spec: str, *, timeout_ms: float = 20.0, lock_ms: float | None = None) -> Store:
    """Open ``lmdb:FOLDER`` (created if missing) or ``redis://HOST:PORT/DB`` (also rediss:, unix:).

    ``timeout_ms`` limits each call to a server; LMDB does not use it. ``lock_ms`` limits the wait of a bid's calls for
    a lock of LMDB, None: for ever. InputError for any other ``spec``.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind == "lmdb" and rest:
        from leadre.store.lmdb.store import LmdbStore

        return LmdbStore(Path(rest), lock_s=None if lock_ms is None else lock_ms / 1000)
    if colon and kind in ("redis", "rediss", "unix") and rest:
        extras.require(f"store {redact(spec)!r}", "redis")
        from leadre.store.redis.store import RedisStore

        return RedisStore(spec, timeout_ms=timeout_ms)
    raise InputError(f"store {redact(spec)!r}: wants lmdb:FOLDER or redis://HOST:PORT/DB, such as lmdb:state/lists")
