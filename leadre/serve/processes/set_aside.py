"""Requests that the writer could not handle, set aside for an operator: JSON lines without users.

A request is set aside if it fails alone by an unexpected error. Its producer gets a final error, so this file is the
only trace of an event whose charge or count is missing.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from leadre import telemetry
from leadre.errors import TokenError
from leadre.serve.events import durable
from leadre.serve.events.outcomes import LATE_CONVERSION_US
from leadre.serve.events.records import without_user
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import AppendRequest, EventRequest, WriterRequest

MAX_BYTES = 64 << 20  # of the file; later requests are counted alone


class SetAsideRequests:
    """The file, appended to with a sync for each request, and `telemetry.SET_ASIDE`."""

    def __init__(self, path: Path, token_keys: TokenKeys, *, sync: durable.Sync = os.fsync) -> None:
        self._path = path
        self._token_keys = token_keys
        self._sync = sync

    def add(self, request: WriterRequest, why: str, now_us: int) -> None:
        """Append a request. StorageError if the disk refuses: the request may then be sent again."""
        kind = type(request).__name__
        line = {"at_us": now_us, "kind": kind, "why": why[:1000], "request": self._without_user(request)}
        try:
            with self._path.open("ab") as file:
                if file.tell() < MAX_BYTES:
                    file.write(msgspec.json.encode(line) + b"\n")
                    file.flush()
                    self._sync(file.fileno())
        except OSError as error:
            raise durable.failed(self._path, error) from error
        telemetry.SET_ASIDE.labels(kind).inc()

    def _without_user(self, request: WriterRequest) -> object:
        """The content of a request as plain values: an event has the terms of its token, without the user."""
        if isinstance(request, AppendRequest):
            return [without_user(record) for record in request.records]
        if not isinstance(request, EventRequest):
            return {}
        try:
            token = self._token_keys.check(request.token, request.at_us, LATE_CONVERSION_US)
        except TokenError as error:
            return {"kind": request.kind, "token": str(error)}
        terms = msgspec.structs.asdict(msgspec.structs.replace(token, user_id="", cap_id=""))
        return {"kind": request.kind, "at_us": request.at_us, "price": request.price, "terms": terms}
