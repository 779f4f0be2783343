"""What each process of a bidder does; the supervisor starts them. Each loads what it needs itself."""

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

from leadre.serve.plan import Plan


def bid(plan: Plan, listening: socket.socket) -> None:
    """A bid worker."""
    _begin()
    from leadre.serve.processes.http import App, Stamped
    from leadre.serve.processes.worker import Worker

    timing = plan.timing
    worker = Worker(
        plan.paths,
        plan.settings,
        has_model=plan.model is not None,
        network_ms=timing.network_ms,
        default_tmax_ms=timing.tmax_ms,
        shed_ms=timing.shed_ms,
    )
    _serve(App(worker), listening, http=Stamped)


def manage(plan: Plan, listening: socket.socket) -> None:
    """The management API."""
    _begin()
    from leadre.serve.processes import management

    _serve(management.app(plan.paths, plan.tables, plan.retain_days), listening)


def write(plan: Plan) -> None:
    """The writer of money and events."""
    _begin()
    from leadre.serve.ipc import socket as ipc
    from leadre.serve.ipc.messages import WriterRequest
    from leadre.serve.processes.writer import Writer
    from leadre.serve.processes.writer_state import WriterState

    async def main(stopped: asyncio.Event) -> None:
        writer = Writer(lambda: WriterState(plan.paths, retain_days=plan.retain_days))
        running = asyncio.create_task(writer.run())
        server = await ipc.serve(plan.paths.writer, WriterRequest, writer.answer)
        stopping = asyncio.create_task(stopped.wait())
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
        server.close()
        if not running.done():
            await writer.drain()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running  # raises what stopped it

    _until_told(main)


def generate(plan: Plan) -> None:
    """The language model."""
    _begin()
    from leadre import artifact, progress
    from leadre.errors import ArtifactError, ClosedError
    from leadre.serve.ipc import socket as ipc
    from leadre.serve.ipc.messages import GenerateReply, GenerateRequest, ModelInfoReply, ModelInfoRequest
    from leadre.serve.processes.model_server import ModelServer

    assert plan.model is not None
    try:
        parts = (
            artifact.read(plan.tables, artifact.TABLES),
            artifact.read(plan.codebook, artifact.CODEBOOK),
            artifact.read(plan.model, artifact.MODEL),
        )
    except ArtifactError as error:
        progress.say(f"serve: bids go on without the language model: {error}")
        sys.exit(1)

    async def main(stopped: asyncio.Event) -> None:
        with ModelServer(*parts, beam=plan.beam) as generator:

            async def answer(question: ModelInfoRequest | GenerateRequest) -> ModelInfoReply | GenerateReply:
                try:
                    return await generator.answer(question)
                except ClosedError:  # its engine has failed; a new process has a new one
                    stopped.set()
                    raise

            server = await ipc.serve(plan.paths.generator, ModelInfoRequest | GenerateRequest, answer)
            await stopped.wait()
            server.close()

    _until_told(main)


def _begin() -> None:
    """Be a group of one's own, with a name for `ps` and `top`, and end when the supervisor has gone."""
    os.setpgrp()
    with contextlib.suppress(OSError):  # where there is no /proc
        Path("/proc/self/comm").write_text(f"leadre {multiprocessing.current_process().name}"[:15])
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.join,), daemon=True).start()


def _follow(wait_for_parent: Callable[[], None]) -> None:
    wait_for_parent()
    os.kill(os.getpid(), signal.SIGTERM)


def _until_told(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run until SIGTERM."""

    async def run() -> None:
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        await main(stopped)

    asyncio.run(run())


def _serve(app: object, listening: socket.socket, **options: object) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        loop="uvloop",
        lifespan="on",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=60,
        **options,  # type: ignore[arg-type]
    )
    uvicorn.Server(config).run(sockets=[listening])
