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
from leadre.serve.events import durable, user_texts
from leadre.serve.events.outcomes import CONVERSION_US
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

    def erase(self, user_id: str) -> None:
        """Delete the content of requests that contain the user's ID. StorageError if the disk refuses."""
        texts = [msgspec.json.encode(user)[1:-1] for user in user_texts.long_enough([user_id])]
        if texts and self._path.exists():
            lines = self._path.read_bytes().splitlines(keepends=True)
            kept = [_emptied(line) if any(text in line for text in texts) else line for line in lines]
            if kept != lines:
                durable.replace(self._path, b"".join(kept), mode=0o600, sync=self._sync)

    def _without_user(self, request: WriterRequest) -> object:
        """The content of a request as plain values: an event has the terms of its token, without the user."""
        if isinstance(request, AppendRequest):
            records = map(user_texts.erased, request.records)
            return [msgspec.structs.replace(record, caller_request_id="") for record in records]
        if not isinstance(request, EventRequest):
            return {}
        try:
            token = self._token_keys.check(
                request.token, request.token_kind or request.kind, request.at_us, CONVERSION_US
            )
        except TokenError as error:
            return {"kind": request.kind, "token": str(error)}
        terms = msgspec.structs.asdict(msgspec.structs.replace(token, user_id="", cap_id=""))
        return {"kind": request.kind, "at_us": request.at_us, "price_nanos": request.price_nanos, "terms": terms}


def _emptied(line: bytes) -> bytes:
    """A line of the file with its time and kind alone."""
    fields = msgspec.json.decode(line)
    return (
        msgspec.json.encode({"at_us": fields["at_us"], "kind": fields["kind"], "why": "erased", "request": {}}) + b"\n"
    )
