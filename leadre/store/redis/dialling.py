"""Connecting with a time limit that holds: name resolution has none of its own, and would block a bid for seconds.

A thread resolves the host, connects and shakes hands; the caller waits as long as its time limit allows. A connection
that is ready later is kept for the next call.
"""

from __future__ import annotations

import socket
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future

import redis
from redis.connection import Connection, SSLConnection


class Dialler:
    """Connections to one server, one attempt at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attempt: Future[socket.socket] | None = None

    def connect(self, dial: Callable[[], socket.socket], timeout_s: float | None) -> socket.socket:
        """The socket of ``dial()``, or of an earlier attempt that was late. TimeoutError, or what ``dial`` raises."""
        if not self._lock.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise TimeoutError("another thread connects to this server")
        try:
            attempt = self._attempt = self._attempt or _started(dial)
            try:
                return attempt.result(timeout_s)
            finally:
                if attempt.done():
                    self._attempt = None
        finally:
            self._lock.release()


def _started(dial: Callable[[], socket.socket]) -> Future[socket.socket]:
    """The result of a call in a thread of its own, which does not keep the process from its end."""
    future: Future[socket.socket] = Future()

    def run() -> None:
        try:
            future.set_result(dial())
        except (redis.RedisError, OSError, UnicodeError) as error:  # a host that is no name is a UnicodeError
            future.set_exception(error if not isinstance(error, UnicodeError) else OSError(str(error)))

    threading.Thread(target=run, name="leadre-redis-dial", daemon=True).start()
    return future


_DIALLERS: dict[tuple[object, ...], Dialler] = defaultdict(Dialler)


class DialledConnection(Connection):
    """A plain connection of redis-py that is dialled in a thread."""

    def _connect(self) -> socket.socket:
        dialler = _DIALLERS[type(self), self.host, self.port, self.socket_timeout]
        return dialler.connect(super()._connect, self.socket_connect_timeout)


class DialledSSLConnection(SSLConnection):
    """The same with TLS."""

    def _connect(self) -> socket.socket:
        dialler = _DIALLERS[type(self), self.host, self.port, self.socket_timeout]
        return dialler.connect(super()._connect, self.socket_connect_timeout)


def dialled(pool: redis.ConnectionPool) -> redis.ConnectionPool:
    """The pool, whose connections to a host are dialled in a thread; those to a Unix socket need none."""
    classes = {Connection: DialledConnection, SSLConnection: DialledSSLConnection}
    pool.connection_class = classes.get(pool.connection_class, pool.connection_class)
    return pool
