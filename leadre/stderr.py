"""Standard error that never blocks: a process that serves must not wait for a reader of its messages.

A pipe whose reader has stopped, or a terminal that is paused, blocks every write once it is full. `decouple` puts a
bounded queue and a thread between a process and its stderr. Text beyond the queue is dropped and counted.
"""

from __future__ import annotations

import atexit
import io
import os
import sys
import threading
from collections import deque
from collections.abc import Callable

MAX_QUEUED_CHARS = 1 << 20
DRAIN_S = 1.0  # that the end of the process waits for its last messages


class QueuedText(io.TextIOBase):
    """A text stream that writes to a descriptor in a thread; ``write`` returns at once.

    ``on_drop`` is called for each text that is dropped.
    """

    def __init__(
        self, descriptor: int, *, max_chars: int = MAX_QUEUED_CHARS, on_drop: Callable[[], object] = int
    ) -> None:
        self._descriptor = descriptor
        self._max_chars = max_chars
        self._on_drop = on_drop
        self._changed = threading.Condition()
        self._parts: deque[str] = deque()
        self._chars = 0  # queued, and of the part that the thread writes now
        self._dropped = 0  # parts
        threading.Thread(target=self._drain, name="leadre-stderr", daemon=True).start()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Queue the text, or drop it if the queue is full. The number of dropped texts comes before the next one."""
        with self._changed:
            has_room = not self._chars or self._chars + len(text) <= self._max_chars
            if has_room:
                if self._dropped:
                    self._append(f"leadre: {self._dropped:,} messages dropped, as nothing read stderr\n")
                    self._dropped = 0
                self._append(text)
                self._changed.notify_all()
            else:
                self._dropped += 1
        if not has_room:
            self._on_drop()
        return len(text)

    def drain(self, timeout_s: float) -> bool:
        """Wait until all is written; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._chars, timeout_s)

    def _append(self, text: str) -> None:
        self._parts.append(text)
        self._chars += len(text)

    def _drain(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._parts)
                text = self._parts.popleft()
            _write_all(self._descriptor, text.encode("utf-8", "backslashreplace"))
            with self._changed:
                self._chars -= len(text)
                self._changed.notify_all()


def decouple(on_drop: Callable[[], object] = int) -> None:
    """Write the stderr of this process through a `QueuedText`. Its end waits up to `DRAIN_S` for the last messages."""
    if isinstance(sys.stderr, QueuedText):
        return
    sys.stderr.flush()
    queued = QueuedText(2, on_drop=on_drop)
    sys.stderr = queued
    atexit.register(queued.drain, DRAIN_S)


def _write_all(descriptor: int, data: bytes) -> None:
    """Write the data, unless nothing reads it or its disk is full."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except OSError:
            return
