"""The process that counts a part of the log, of which a starting writer lacks the counts: bookings do not wait.

The writer counts the records that it appends itself. It adds the totals of the other process when they come, as sums
need no order; statuses of ads are those at the end of that part, and the writer logs no status before it has them.
"""

from __future__ import annotations

import multiprocessing

import msgspec

from leadre import telemetry
from leadre.errors import FaultError
from leadre.serve.processes import log_counting
from leadre.serve.processes.count_snapshot import CountSnapshot
from leadre.serve.processes.log_counting import LogPart


class HistoryCount:
    """A process that counts a part of the log. It ends with the process that made it."""

    def __init__(self, part: LogPart) -> None:
        context = multiprocessing.get_context("spawn")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=log_counting.run, args=(sender, part), name="history", daemon=True)
        self._process.start()
        sender.close()

    def poll(self) -> CountSnapshot | None:
        """The counts; None until they are complete. FaultError if the process failed: it will not return any."""
        if not self._receiver.poll():
            return None
        try:
            reply = msgspec.msgpack.decode(self._receiver.recv_bytes(), type=CountSnapshot | str)
        except EOFError:
            reply = "its process was killed"
        self.stop()
        if isinstance(reply, str):
            raise FaultError(f"the history is not counted: {reply}")
        return reply

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._receiver.close()
        assert self._process.pid is not None
        telemetry.forget(self._process.pid)
