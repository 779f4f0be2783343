"""Background tasks survive any error, are counted by name, and report a series of failures once a minute."""

import asyncio
import os
import sys
import threading
from queue import Queue

import pytest

from leadre import telemetry
from leadre.background import FAILING_AFTER, MAX_DELAY_S, REPORT_S, TaskHealth, Tasks
from leadre.clock import ManualClock
from leadre.errors import FaultError, PeerError

GENEROUS_S = 60.0  # guards against a hang


def failures(name):
    return telemetry.TASK_FAILURES.labels(name)._value.get()


def fail():
    raise OverflowError("Integer value out of range")


def test_task_continues_after_an_unexpected_error_and_is_counted():
    tasks = Tasks(ManualClock(), (PeerError,))
    errors = [OverflowError("too large"), PeerError("away"), AssertionError()]
    before = failures("renew")

    async def main():
        is_over = asyncio.Event()

        async def renew():
            if errors:
                raise errors.pop(0)
            is_over.set()

        tasks.start("renew", 0.0, renew)
        await asyncio.wait_for(is_over.wait(), GENEROUS_S)
        await tasks.stop()

    asyncio.run(main())
    assert failures("renew") - before == 2, "a peer that is away is no failure"


def test_thread_continues_after_an_unexpected_error():
    errors = [RuntimeError("x"), ZeroDivisionError()]
    is_over = threading.Event()

    def sample():
        if errors:
            raise errors.pop(0)
        is_over.set()

    Tasks(ManualClock()).start_thread("sample", 0.0, sample)
    assert is_over.wait(GENEROUS_S)


def test_stop_ends_a_task_in_the_middle_of_its_work():
    async def main():
        tasks = Tasks(ManualClock())
        is_running = asyncio.Event()
        is_cancelled = False

        async def wait():
            nonlocal is_cancelled
            is_running.set()
            try:
                await asyncio.sleep(GENEROUS_S)
            except asyncio.CancelledError:
                is_cancelled = True
                raise

        tasks.start("wait", 0.0, wait)
        await is_running.wait()
        await tasks.stop()
        return is_cancelled

    assert asyncio.run(main())


def test_task_that_keeps_failing_is_listed_until_it_succeeds():
    tasks = Tasks(ManualClock())
    for _ in range(FAILING_AFTER - 1):
        tasks.attempt("compact", fail)
    assert tasks.failing() == []
    tasks.attempt("compact", fail)
    assert tasks.failing() == ["compact"] and telemetry.FAILING_TASKS.labels("compact")._value.get() == 1
    tasks.attempt("compact", list)
    assert tasks.failing() == [] and telemetry.FAILING_TASKS.labels("compact")._value.get() == 0


def test_delay_doubles_with_each_failure_and_is_bounded():
    health = TaskHealth("renew", ManualClock())
    delays_s = []
    for _ in range(30):
        with pytest.raises(FaultError, match="renew: OverflowError"):
            health.attempt(fail)
        delays_s.append(health.delay_s(0.05))
    assert delays_s[:3] == [0.1, 0.2, 0.4] and delays_s[-1] == MAX_DELAY_S
    health.attempt(list)
    assert health.delay_s(0.05) == 0.05


def test_series_of_failures_is_reported_once_an_interval_with_its_traceback(capsys):
    clock = ManualClock()
    tasks = Tasks(clock)
    for _ in range(50):
        tasks.attempt("renew", fail)
    err = capsys.readouterr().err
    assert err.count("renew failed") == 1 and "in fail" in err and "Integer value out of range" in err
    clock.advance(REPORT_S)
    tasks.attempt("renew", fail)
    assert "renew failed, 51 in a row" in capsys.readouterr().err


def test_stop_ends_a_task_that_swallows_a_cancellation():
    """As `asyncio.wait_for` of Python 3.11 does if its call ends in the same turn."""
    cancelled = []

    async def swallow():
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            cancelled.append(True)
            if len(cancelled) > 1:
                raise

    async def main():
        tasks = Tasks(ManualClock())
        tasks.start("swallows", 0.0, swallow)
        await asyncio.sleep(0)
        await tasks.stop()

    asyncio.run(main())
    assert len(cancelled) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one niceness for all threads of a process")
def test_thread_has_its_niceness_and_its_process_keeps_another() -> None:
    seen: Queue[int] = Queue()
    tasks = Tasks(ManualClock())
    tasks.start_thread("late", 60.0, lambda: seen.put(os.getpriority(os.PRIO_PROCESS, 0)), nice=3)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert seen.get(timeout=GENEROUS_S) == before + 3
