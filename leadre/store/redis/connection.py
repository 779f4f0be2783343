"""Connection to the server: commands and scripts with a time limit; errors are raised as StoreDown.

A call fails after ``timeout_ms``, a bulk call (thousands of lists) after ten seconds. No call is retried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from leadre.errors import InputError, StoreDown
from leadre.redact import redact
from leadre.store.redis.dialling import dialled

BULK_TIMEOUT_MS = 10_000.0
PAGE = 1000  # records per bulk command


class RedisConnection:
    """Two clients of ``url``, one with a short timeout and one for bulk calls. InputError if ``url`` is no address.

    The first command connects.
    """

    def __init__(self, url: str, *, timeout_ms: float) -> None:
        self._url = url
        try:
            self.client = _connect(url, timeout_ms)
            self.bulk_client = _connect(url, BULK_TIMEOUT_MS)
        except ValueError as error:
            raise InputError(f"store at {redact(url)!r}: {error}; wants redis://HOST:PORT/DB") from error
        self._scripts: dict[str, Any] = {}

    def script(self, lua: str, keys: Sequence[bytes | str], arguments: Sequence[bytes | str | int]) -> Any:
        """Run a Lua script on the server, by its hash; the client sends the text again if the server lacks it."""
        if lua not in self._scripts:
            self._scripts[lua] = self.client.register_script(lua)
        with self.errors():
            return self._scripts[lua](keys=keys, args=arguments)

    def command(self, *words: bytes | str | int) -> Any:
        with self.errors():
            return self.client.execute_command(*words)  # type: ignore[no-untyped-call]

    def bulk(self, *words: bytes | str | int) -> Any:
        with self.errors():
            return self.bulk_client.execute_command(*words)  # type: ignore[no-untyped-call]

    def scan(self, pattern: str) -> list[bytes]:
        """All keys of a pattern; the server looks at every key."""
        with self.errors():
            return list(self.bulk_client.scan_iter(match=pattern, count=PAGE))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise errors of the client and the network as StoreDown."""
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise StoreDown(f"store at {redact(self._url)}: {error}; is the server up?") from error

    def close(self) -> None:
        self.client.close()
        self.bulk_client.close()


def _connect(url: str, timeout_ms: float) -> redis.Redis:
    """A client without retries: by default it would retry for seconds."""
    timeout_s = timeout_ms / 1000
    pool = redis.ConnectionPool.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
    )
    return redis.Redis(connection_pool=dialled(pool))
