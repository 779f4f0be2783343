"""Supervisor: starts a bidder's processes in order, restarts those that end, and stops them in reverse order.

Each process is a process group of its own, so that a keyboard interrupt reaches the supervisor alone. A process whose
supervisor has ended ends too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from leadre import progress, telemetry
from leadre.background import TaskHealth, Tasks
from leadre.clock import Clock, SystemClock
from leadre.errors import FaultError, InputError
from leadre.serve.plan import Plan
from leadre.serve.processes import readiness, reserve, roles

BACKLOG = 2048  # connections that wait to be accepted
POLL_S = 0.2
DRAIN_S = 10.0  # how long a process may take to end
MIN_RESTART_S = 0.5  # delay before the first restart; it doubles with each further one
MAX_RESTART_S = 30.0
STABLE_S = 60.0  # a process that lived longer restarts after `MIN_RESTART_S` again


@dataclass
class _Role:
    """A process that should run. Times are monotonic."""

    name: str
    target: Callable[..., None]
    arguments: tuple[Any, ...]
    process: BaseProcess | None = None
    started_s: float = 0.0
    not_before_s: float = 0.0
    restart_s: float = MIN_RESTART_S
    is_first: bool = True


def run(plan: Plan) -> None:
    """Run the bidder until SIGTERM or a keyboard interrupt. InputError if a port is taken.

    Exits with status 2 if the first writer refuses the state folder. A later one is restarted like any process: bids
    go on, and events are refused, until an operator has repaired the state.
    """
    clock = SystemClock()
    bid_socket = _listen(plan.host, plan.port)
    manage_socket = _listen(plan.host, plan.manage_port)
    with tempfile.TemporaryDirectory(prefix="leadre-metrics-") as metrics:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics  # child processes inherit it
        writer = _Role("writer", roles.run_writer, (plan,))
        others = [
            _Role(f"worker {number}", roles.run_worker, (plan, bid_socket)) for number in range(1, plan.workers + 1)
        ]
        tables = _Role("tables", roles.run_table_writer, (plan,))
        others.append(_Role("management", roles.run_management, (plan, manage_socket)))
        if plan.model is not None:  # last, as it takes longest and bids do not need it
            others.append(_Role("model", roles.run_model_server, (plan,)))
        health = TaskHealth("supervisor", clock)
        Tasks(clock).start_thread("reserve of the disk", reserve.FILL_S, lambda: reserve.fill(plan.paths.reserve))
        stopping = [False]
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.__setitem__(0, True))
        announcing = readiness.start(plan, bid_socket.getsockname()[1], manage_socket.getsockname()[1], clock)
        try:
            while not stopping[0]:
                with contextlib.suppress(FaultError):
                    health.attempt(lambda: _keep_running([writer, *others, tables], clock))
                    continue
                time.sleep(health.delay_s(POLL_S))
            progress.say("serve: stops; requests in progress are answered first")
        finally:
            announcing.set()
            for role in [*others, writer, tables]:  # the last records of all others are written, then in the tables
                _end(role)
    progress.say("serve: stopped")


def _listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket. InputError if the address cannot be used."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        raise InputError(
            f"{host}:{port}: the address cannot be listened on ({error.strerror or error}); choose another"
        ) from error
    return listening


def _keep_running(processes: list[_Role], clock: Clock) -> None:
    """Start every process that does not run and is due, then wait up to `POLL_S` for one to end."""
    now_s = clock.monotonic_s()
    for role in processes:
        if role.process is None and now_s >= role.not_before_s:
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=role.target, args=role.arguments, name=role.name)
            role.not_before_s = now_s + role.restart_s  # if the system refuses another process
            process.start()
            role.process = process
            role.started_s = clock.monotonic_s()
    alive = {role.process.sentinel: role for role in processes if role.process is not None}
    for sentinel in wait(list(alive), timeout=POLL_S):
        role = alive[sentinel]  # type: ignore[index]
        assert role.process is not None
        role.process.join()
        assert role.process.pid is not None
        telemetry.forget(role.process.pid)
        now_s = clock.monotonic_s()
        is_stable = now_s - role.started_s > STABLE_S
        role.restart_s = MIN_RESTART_S if is_stable else min(2 * role.restart_s, MAX_RESTART_S)
        role.not_before_s = now_s + role.restart_s
        if role.process.exitcode == roles.REFUSED and role.is_first:
            sys.exit(2)  # the writer has reported the reason
        role.is_first = False
        progress.say(f"serve: {role.name} ended with status {role.process.exitcode} and restarts")
        role.process = None


def _end(role: _Role) -> None:
    """Terminate a process, and kill it if it runs longer than `DRAIN_S`."""
    if role.process is None or not role.process.is_alive():
        return
    role.process.terminate()
    role.process.join(DRAIN_S)
    if role.process.is_alive():
        progress.say(f"serve: {role.name} did not end within {DRAIN_S:.0f} s and is killed")
        role.process.kill()
        role.process.join()
