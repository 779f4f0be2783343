"""What serving remembers of users: generated lists, profiles, frequency caps. One contract, two stores."""

from __future__ import annotations

from pathlib import Path

from leadre.errors import InputError
from leadre.store.contract import Store


def spec_in(state: Path, given: str = "") -> str:
    """The name of the store that is ``given``, or else of the folder of lists in a bidder's folder."""
    return given or f"lmdb:{state / 'lists'}"


def open_store(spec: str, *, timeout_ms: float = 20.0) -> Store:
    """The store named by ``lmdb:FOLDER`` (made where missing) or ``redis://HOST:PORT/DB`` (also rediss:, unix:).

    ``timeout_ms`` is what an answer of a server may take; a folder needs none. InputError where the name is another.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind == "lmdb" and rest:
        from leadre.store.lmdb import LmdbStore

        return LmdbStore(Path(rest))
    if colon and kind in ("redis", "rediss", "unix") and rest:
        try:
            from leadre.store.redis import RedisStore
        except ModuleNotFoundError as error:
            raise InputError(f"store {spec!r} needs the package {error.name!r}: pip install 'leadre[redis]'") from error
        return RedisStore(spec, timeout_ms=timeout_ms)
    raise InputError(f"store {spec!r}: wants lmdb:FOLDER or redis://HOST:PORT/DB, such as lmdb:state/lists")
