"""A bidder that is started again whenever it ends, as by a service manager; the test shifts its wall clock."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import httpx

from ..bidder import Bidder

RESTART_S = 1.0
ROLES = ("worker", "writer", "tables", "management", "model")


class ShiftedClock:
    """The wall clock of the bidder's processes: the machine's, and a shift in whole seconds.

    ``folder``, which is created, is first on the path of these processes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(Path(__file__).parents[1] / "shifted", folder)
        self.shift(0)

    def shift(self, seconds: int) -> None:
        """Set the shift of all processes at once."""
        new = self.folder / f"new-{threading.get_ident()}"
        new.write_text(f"{seconds} 0 -")
        new.rename(self.folder / "shift")


class KeptBidder(Bidder):
    """For a ``with``. Its output is in ``output``, a file on another disk than its state.

    ``endings`` counts the exit statuses of supervisors that ended before `stop`.
    """

    def __init__(self, work: Path, state: Path, output: Path, clock: ShiftedClock, *flags: str) -> None:
        super().__init__(work, state, *flags)
        self.output = output
        self.endings: Counter[int] = Counter()
        self._clock = clock
        self._command: list[str] = []
        self._is_kept = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.http.close()

    def start(self) -> None:
        super().start()
        self._is_kept.set()
        self._keeper.start()

    def stop(self) -> int:
        """Send SIGTERM and wait; returns the exit status."""
        self._is_kept.clear()
        if self._keeper.is_alive():
            self._keeper.join()
        return super().stop()

    def spawn(self, command: list[str]) -> None:
        self._command = command
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env=self.environment(), text=True, errors="replace"
            )

    def environment(self) -> dict[str, str]:
        usual = super().environment()
        path = os.pathsep.join((str(self._clock.folder), usual["PYTHONPATH"]))
        temporary = {"TMPDIR": str(self.state.parent / "tmp")}  # the metrics, on the same disk
        return usual | temporary | {"PYTHONPATH": path}

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def pids(self, role: str) -> list[int]:
        """The processes of a role; none while the supervisor is away."""
        try:
            return super().pids(role)
        except FileNotFoundError:
            return []

    def is_whole(self) -> bool:
        """Whether every worker reports that no part is away."""
        try:
            replies = [httpx.get(f"{self.url}/readyz", timeout=5.0).json() for _ in range(8)]
        except (httpx.HTTPError, ValueError):
            return False
        return all(reply["status"] == "ready" for reply in replies)

    def descriptors(self) -> dict[str, int]:
        """Role -> the most open descriptors of one of its processes."""
        return {role: max(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids(role)) for role in ROLES}

    def kill_supervisor(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def _keep(self) -> None:
        while self._is_kept.is_set():
            assert self._process is not None
            status = self._process.poll()
            if status is None:
                time.sleep(0.1)
            else:
                self.endings[status] += 1
                time.sleep(RESTART_S)
                self.spawn(self._command)
