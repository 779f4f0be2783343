"""Entry points of a bidder's processes, which the supervisor starts. Each imports its own code after the start."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadre.clock import Clock, SystemClock
from leadre.serve.plan import Plan

if TYPE_CHECKING:
    from leadre.serve.processes.connections import Limits

GRACE_S = 5  # in which a server finishes the requests that it has begun
KEEP_ALIVE_S = 60
METRIC_FILES = ("counter", "histogram", "gauge_livemax")  # names of `prometheus_client`, for the kinds of `telemetry`
METRIC_BYTES = 256 << 10  # about 2,500 series of a kind; the library doubles the file beyond
REFUSED = 3  # exit status of a writer that refuses the state folder
SLOW_REPLY_S = 300.0  # of the management API: an import or an erasure takes a minute


def run_worker(plan: Plan, listening: socket.socket) -> None:
    """Run a bid worker until SIGTERM."""
    _set_up_process()
    from leadre.serve.processes.connections import Limits
    from leadre.serve.processes.http import App
    from leadre.serve.processes.worker import Worker

    clock = SystemClock()
    worker = Worker(plan.paths, plan.settings, plan.timing, has_model=plan.model is not None, clock=clock)
    app = App(worker, max_wait_s=plan.timing.shed_ms / 1000, management_url=plan.management_url)
    _run_server(app, listening, plan, Limits(connections=plan.network.max_connections), clock)


def run_management(plan: Plan, listening: socket.socket) -> None:
    """Run the management API and the status page until SIGTERM."""
    _set_up_process()
    from leadre.serve.processes import management
    from leadre.serve.processes.connections import Limits

    clock = SystemClock()
    app = management.app(plan.paths, plan.tables, plan.retain_days, clock)
    limits = Limits(connections=plan.network.max_connections, reply_s=SLOW_REPLY_S)
    _run_server(app, listening, plan, limits, clock)


def run_writer(plan: Plan) -> None:
    """Run the writer of money and events until SIGTERM; requests that arrived before it get their replies.

    The process exits with `REFUSED`, and changes no file, if it cannot open the state, as for a damaged event log.
    """
    _set_up_process()
    from leadre import progress
    from leadre.errors import InputError, StorageError
    from leadre.serve.ipc import socket as ipc
    from leadre.serve.ipc.messages import WriterRequest
    from leadre.serve.processes.writer import Writer
    from leadre.serve.processes.writer_state import WriterState

    async def main(stopped: asyncio.Event) -> None:
        clock = SystemClock()
        writer = Writer(lambda: WriterState(plan.paths, retain_days=plan.retain_days, clock=clock), clock)
        running = asyncio.create_task(writer.run())
        server = await ipc.serve(plan.paths.writer_socket, WriterRequest, writer.handle)
        stopping = asyncio.create_task(stopped.wait())
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
        server.close()
        if not running.done():
            await writer.drain()
        running.cancel()
        try:
            await running
        except asyncio.CancelledError:
            pass
        except (InputError, StorageError) as error:
            progress.say(f"serve: the writer ends: {error}")
            sys.exit(1 if writer.has_state else REFUSED)

    _run_until_sigterm(main)


def run_model_server(plan: Plan) -> None:
    """Run the language model until SIGTERM. The process exits with status 1 if an artifact is damaged."""
    _set_up_process()
    from leadre import artifact, progress
    from leadre.errors import ArtifactError, ClosedError
    from leadre.serve.ipc import socket as ipc
    from leadre.serve.ipc.messages import GenerateReply, GenerateRequest, ModelInfoReply, ModelInfoRequest

    assert plan.model is not None
    try:
        artifacts = (
            artifact.read(plan.tables, artifact.TABLES),
            artifact.read(plan.codebook, artifact.CODEBOOK),
            artifact.read(plan.model, artifact.MODEL),
        )
    except ArtifactError as error:
        progress.say(f"serve: bids go on without the language model: {error}")
        sys.exit(1)
    from leadre.serve.processes.model_server import ModelServer  # torch, which a refusal needs not

    async def main(stopped: asyncio.Event) -> None:
        with ModelServer(*artifacts, beam=plan.beam, clock=SystemClock()) as model_server:

            async def handle(request: ModelInfoRequest | GenerateRequest) -> ModelInfoReply | GenerateReply:
                try:
                    return await model_server.answer(request)
                except ClosedError:  # the engine has failed; the supervisor starts a new process
                    stopped.set()
                    raise

            server = await ipc.serve(plan.paths.model_server_socket, ModelInfoRequest | GenerateRequest, handle)
            await stopped.wait()
            server.close()

    _run_until_sigterm(main)


def _set_up_process() -> None:
    """Make the process a group of its own, named for `ps` and `top`, which ends when its supervisor has ended."""
    os.setpgrp()
    with contextlib.suppress(OSError):  # systems other than Linux have no /proc
        Path("/proc/self/comm").write_text(f"leadre {multiprocessing.current_process().name}"[:15])
    _allocate_metrics()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with_parent, args=(parent.join,), daemon=True).start()


def _allocate_metrics() -> None:
    """Allocate the files that `prometheus_client` maps for this process, before `leadre.telemetry` is imported.

    The library only sets their size: on a full disk, counting would be a SIGBUS, which ends the process. Without room
    for them the process counts in memory, where `/metrics` does not see it.
    """
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None or not hasattr(os, "posix_fallocate"):  # macOS has none
        return
    try:
        for kind in METRIC_FILES:
            file = os.open(Path(folder, f"{kind}_{os.getpid()}.db"), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(file, 0, METRIC_BYTES)
            finally:
                os.close(file)
    except OSError:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]


def _end_with_parent(wait_for_parent: Callable[[], None]) -> None:
    wait_for_parent()
    os.kill(os.getpid(), signal.SIGTERM)


def _run_until_sigterm(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run ``main`` with an event that SIGTERM sets."""

    async def run() -> None:
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        await main(stopped)

    asyncio.run(run())


def _run_server(app: Any, listening: socket.socket, plan: Plan, limits: Limits, clock: Clock) -> None:
    """Serve an ASGI application until SIGTERM."""
    import uvicorn

    from leadre.serve.processes import connections

    guard = connections.Connections(limits, clock)
    config = uvicorn.Config(
        connections.sweeping(app, guard),
        http=connections.protocol(guard),
        loop="uvloop",
        lifespan="on",
        ws="none",
        log_level="error",  # clients can cause warnings
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        proxy_headers=bool(plan.network.proxies),  # uvicorn would believe any process of this machine
        forwarded_allow_ips=list(plan.network.proxies),
    )
    uvicorn.Server(config).run(sockets=[listening])
