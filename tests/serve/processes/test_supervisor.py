"""The supervisor starts a process again that the system has refused to start."""

import time
from multiprocessing.context import SpawnProcess

import pytest

from leadre.clock import ManualClock
from leadre.serve.processes import supervisor


def test_process_that_the_system_refuses_to_start_is_started_later(monkeypatch):
    start = SpawnProcess.start
    refusals = [BlockingIOError(11, "Resource temporarily unavailable")]

    def start_later(process):
        if refusals:
            raise refusals.pop()
        start(process)

    monkeypatch.setattr(SpawnProcess, "start", start_later)
    clock = ManualClock()
    role = supervisor._Role("worker 1", time.sleep, (3600,))
    with pytest.raises(BlockingIOError):
        supervisor._keep_running([role], clock)
    assert role.process is None
    supervisor._keep_running([role], clock)
    assert role.process is None, "it waits before it tries again"
    clock.advance(supervisor.MIN_RESTART_S)
    supervisor._keep_running([role], clock)
    assert role.process is not None and role.process.pid
    role.process.kill()
    role.process.join()
