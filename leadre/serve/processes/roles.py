"""Entry points of a bidder's processes, which the supervisor starts. Each imports its own code after the start."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadre.clock import Clock, SystemClock
from leadre.serve.plan import Plan
from leadre.serve.processes import process_setup

if TYPE_CHECKING:
    from leadre.serve.processes.connections import Limits

GRACE_S = 5  # in which a server finishes the requests that it has begun
KEEP_ALIVE_S = 60
REFUSED = 78  # exit status of a writer that refuses the state folder; uvicorn's own for a failed start is 3
DATABASE_RETRY_S = 1.0  # between two attempts to read the management database
SWITCH_S = 0.0005  # between two threads of the writer
NEW_OBJECTS_S = 0.2  # between two reads of new ads by the model server
SLOW_REPLY_S = 300.0  # of the management API: an import or an erasure takes a minute


def run_worker(plan: Plan, listening: socket.socket) -> None:
    """Run a bid worker until SIGTERM."""
    process_setup.use_one_blas_thread()
    process_setup.set_up()
    _wait_for_database(plan.paths.manage_database)
    from leadre.serve.processes.connections import Limits
    from leadre.serve.processes.http import App
    from leadre.serve.processes.identification import Identification
    from leadre.serve.processes.worker import Worker

    clock = SystemClock()
    worker = Worker(
        plan.paths,
        plan.settings,
        plan.timing,
        has_model=plan.model is not None,
        clock=clock,
        ranks=plan.ranks,
    )
    identification = Identification(plan.network, plan.pages, plan.workers, clock, plan.page_key)
    app = App(
        worker,
        max_wait_s=plan.timing.shed_ms / 1000,
        management_url=plan.management_url,
        identification=identification,
    )
    _run_server(app, listening, plan, Limits(connections=plan.network.max_connections), clock)


def run_management(plan: Plan, listening: socket.socket) -> None:
    """Run the management API and the status page until SIGTERM."""
    process_setup.set_up()
    _wait_for_database(plan.paths.manage_database)
    from leadre.serve.processes import management
    from leadre.serve.processes.connections import Limits

    clock = SystemClock()
    app = management.app(plan.paths, plan.tables, plan.retain_days, clock, reviews_accounts=plan.reviews_accounts)
    limits = Limits(connections=plan.network.max_connections, reply_s=SLOW_REPLY_S)
    _run_server(app, listening, plan, limits, clock)


def run_writer(plan: Plan) -> None:
    """Run the writer of money and events until SIGTERM; requests that arrived before it get their replies.

    The process exits with `REFUSED`, and changes no file, if it cannot open the state, as for a damaged event log.
    """
    process_setup.set_up()
    _wait_for_database(plan.paths.manage_database)
    # The thread of batches passes the interpreter on at each call of disk and database, and waits until it is returned.
    sys.setswitchinterval(SWITCH_S)
    from leadre import progress
    from leadre.errors import InputError, StorageError
    from leadre.serve.ipc import socket as ipc
    from leadre.serve.ipc.messages import WriterRequest
    from leadre.serve.processes.writer import Writer
    from leadre.serve.processes.writer_state import WriterState

    async def main(stopped: asyncio.Event) -> None:
        clock = SystemClock()
        exp_s = plan.settings.exp_s
        writer = Writer(lambda: WriterState(plan.paths, retain_days=plan.retain_days, exp_s=exp_s, clock=clock), clock)
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


def run_table_writer(plan: Plan) -> None:
    """Run the table writer until SIGTERM; then the tables have all records that the writer has written."""
    process_setup.set_up()
    os.nice(process_setup.NICE)
    from leadre.serve.processes.table_writer import TableWriter

    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    TableWriter(plan.paths, retain_days=plan.retain_days, clock=SystemClock()).run(stopped)


def run_model_server(plan: Plan) -> None:
    """Run the language model until SIGTERM. The process exits with status 1 if an artifact is damaged."""
    process_setup.set_up()
    from leadre import artifact, progress
    from leadre.errors import ArtifactError, ClosedError, InputError
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
    from leadre.background import Tasks
    from leadre.serve.catalogue.database import MIGRATIONS
    from leadre.serve.processes.database_reader import DatabaseReader
    from leadre.serve.processes.model_server import ModelServer  # torch, which a refusal needs not

    _wait_for_database(plan.paths.manage_database)

    async def main(stopped: asyncio.Event) -> None:
        with ModelServer(*artifacts, beam=plan.beam, clock=SystemClock()) as model_server:

            async def handle(request: ModelInfoRequest | GenerateRequest) -> ModelInfoReply | GenerateReply:
                try:
                    return await model_server.answer(request)
                except ClosedError:  # the engine has failed; the supervisor starts a new process
                    stopped.set()
                    raise

            server = await ipc.serve(plan.paths.model_server_socket, ModelInfoRequest | GenerateRequest, handle)
            reader = DatabaseReader(plan.paths.manage_database, MIGRATIONS)
            tasks = Tasks(SystemClock(), (InputError, sqlite3.DatabaseError))
            tasks.start("new objects", NEW_OBJECTS_S, lambda: model_server.follow(reader))
            await stopped.wait()
            await tasks.stop()
            reader.close()
            server.close()

    _run_until_sigterm(main)


def _wait_for_database(path: Path) -> None:
    """Wait until the management database can be opened. A process that ended would be started again and again."""
    from leadre import database, progress
    from leadre.errors import InputError
    from leadre.serve.catalogue.database import MIGRATIONS

    reported = ""
    while True:
        try:
            return database.connect(path, MIGRATIONS, read_only=True).close()
        except InputError as error:
            if str(error) != reported:
                progress.say(f"serve: {multiprocessing.current_process().name} waits: {error}")
            reported = str(error)
            time.sleep(DATABASE_RETRY_S)


def _run_until_sigterm(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run ``main`` with an event that SIGTERM sets."""
    import uvloop

    async def run() -> None:
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        await main(stopped)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


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
        forwarded_allow_ips=plan.network.trusted(),
    )
    uvicorn.Server(config).run(sockets=[listening])
