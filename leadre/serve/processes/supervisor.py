"""The processes of one bidder: started in order, started anew when they die, stopped in the opposite order.

Every process is its own group, so that an interrupt from the keyboard reaches the supervisor alone, and ends by itself
when the supervisor has gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from leadre import progress, telemetry
from leadre.errors import InputError
from leadre.serve.plan import Plan
from leadre.serve.processes import roles as processes

BACKLOG = 2048
DRAIN_S = 10.0  # how long a process may take to end
AGAIN_S = 0.5  # before a process that died is started anew; twice as long each time, up to LONGEST_S
LONGEST_S = 30.0
LIVED_S = 60.0  # whoever lived so long begins with AGAIN_S again


@dataclass
class _Role:
    """A process that should run."""

    name: str
    target: Callable[..., None]
    arguments: tuple[Any, ...]
    process: BaseProcess | None = None
    started_s: float = 0.0
    not_before_s: float = 0.0
    again_s: float = AGAIN_S


def run(plan: Plan) -> None:
    """Run until SIGTERM or an interrupt. InputError where a port is taken."""
    listening = _listen(plan.host, plan.port)
    managing = _listen(plan.host, plan.manage_port)
    with tempfile.TemporaryDirectory(prefix="leadre-metrics-") as metrics:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics  # children inherit it
        roles = [_Role("writer", processes.write, (plan,))]
        roles += [_Role(f"worker {n}", processes.bid, (plan, listening)) for n in range(1, plan.workers + 1)]
        roles.append(_Role("management", processes.manage, (plan, managing)))
        if plan.model is not None:  # last, as bids need not wait for what takes longest
            roles.append(_Role("model", processes.generate, (plan,)))
        stopping = [False]
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.__setitem__(0, True))
        try:
            while not stopping[0]:
                _tend(roles)
        finally:
            for role in [*roles[1:], roles[0]]:  # the writer hears everybody's last words
                _end(role)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        raise InputError(f"{host}:{port}: cannot be listened on ({error.strerror or error}); choose another") from error
    return listening


def _tend(roles: list[_Role]) -> None:
    """Start what does not run, then wait a moment for one to die."""
    now_s = time.monotonic()
    for role in roles:
        if role.process is None and now_s >= role.not_before_s:
            context = multiprocessing.get_context("spawn")
            role.process = context.Process(target=role.target, args=role.arguments, name=role.name)
            role.process.start()
            role.started_s = time.monotonic()
    alive = {role.process.sentinel: role for role in roles if role.process is not None}
    for sentinel in wait(list(alive), timeout=0.2):
        role = alive[sentinel]  # type: ignore[index]
        assert role.process is not None
        role.process.join()
        assert role.process.pid is not None
        telemetry.forget(role.process.pid)
        lived_s = time.monotonic() - role.started_s
        role.again_s = AGAIN_S if lived_s > LIVED_S else min(2 * role.again_s, LONGEST_S)
        role.not_before_s = time.monotonic() + role.again_s
        progress.say(f"serve: {role.name} ended with {role.process.exitcode}; starting it anew")
        role.process = None


def _end(role: _Role) -> None:
    if role.process is None or not role.process.is_alive():
        return
    role.process.terminate()
    role.process.join(DRAIN_S)
    if role.process.is_alive():
        progress.say(f"serve: {role.name} did not end in {DRAIN_S:.0f} s and is killed")
        role.process.kill()
        role.process.join()
