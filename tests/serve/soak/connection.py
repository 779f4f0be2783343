"""One kept connection a thread to a server, with a short timeout."""

from __future__ import annotations

import http.client
import threading
from email.message import Message

TIMEOUT_S = 3.0  # less than the time for which a worker is stopped


class Unanswered(Exception):
    """The server hung up, refused the connection, or did not respond in time."""


class Connections:
    """Connections to a port of this machine. Any thread may use it."""

    def __init__(self, port: int, timeout_s: float = TIMEOUT_S) -> None:
        self._port = port
        self._timeout_s = timeout_s
        self._local = threading.local()
        self._open: list[http.client.HTTPConnection] = []

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """(status, body) of the response. Unanswered: the request may have been handled."""
        status, content, _ = self.exchange(method, path, body, headers)
        return status, content

    def exchange(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, Message]:
        """(status, body, headers) of the response. Unanswered as from `send`."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._timeout_s)
            self._local.connection = connection
            self._open.append(connection)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read(), response.headers
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Unanswered(str(error) or type(error).__name__) from error

    def close(self) -> None:
        """Close the connections of all threads."""
        for connection in self._open:
            connection.close()
