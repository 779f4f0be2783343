"""Claim: neither start, flush, erasure nor booking of the writer depends on the length of its history.

    python bench/writer.py --folder /tmp/history --requests 100000

Builds a state folder with a log of ``--requests`` requests and three events each, over ``--days`` days until now;
``--only build`` ends there, and a folder that exists is used as it is. Requests, events and their order are those of
serving. All measurements are of copies, in which closed files are links unless a user is erased; ``--only`` selects
some of them:

flush
- ``flush_ms_small``, ``flush_ms_large``: processor time of `training.compact` for 1,000 new requests and their events,
  behind a log of 1,000 requests and behind the whole log; ``flush_read_mb_...``: what it read

first, from the start of a writer without a snapshot of the counts
- ``first_start_s``: to the acknowledgement of the first event; ``counted_s``: until the counts have the whole log

load
- ``start_s``, ``start_cpu_s``: of a start with a snapshot of the counts, to the acknowledgement of the first event, in
  wall time and in processor time of the writer;
- ``events_per_s``, ``booking_p99_ms``, ``booking_max_ms``: events acknowledged at the writer's socket, while
  ``--rate`` events a second are sent for ``--seconds``, and their latency; meanwhile the table writer flushes;
- ``erase_s``: meanwhile, from the request to erase a user with 300 requests to the writer's reply, after which no reply
  and no record names this user; not with ``--no-erase``;
- ``bytes_gone_s``: from the same request until no file of log or tables contains the user's ID; another process erases
  it, as the management process does;
- ``rss_mb``, ``tables_rss_mb``: the greatest resident memory of the processes of the writer and of the table writer.

Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.context import SpawnProcess
from pathlib import Path

import polars as pl
from writer_history import build, grow, requests_in, times_of
from writer_records import ERASED, USERS, ads, paths_of, token_of

from leadre.clock import SystemClock
from leadre.errors import PeerError
from leadre.serve.events import erasure, event_log, training
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import (
    CountsReply,
    CountsRequest,
    EraseReply,
    EraseRequest,
    EventReply,
    EventRequest,
    WriterReply,
    WriterRequest,
)
from leadre.serve.ipc.socket import Client
from leadre.serve.paths import StatePaths
from leadre.serve.plan import Plan, Timing
from leadre.serve.processes import process_setup, roles
from leadre.serve.settings import Settings

FLUSHED = 1_000  # requests behind the tables in the measurement of a flush
FLUSHES = 3


def copy_of(source: StatePaths, folder: Path, *, erases: bool = False) -> StatePaths:
    """A copy of a state folder. Files that no process overwrites are links; an erasure overwrites closed segments."""
    shutil.rmtree(folder, ignore_errors=True)
    closed = {*source.tables.glob("*/*.parquet")}
    if not erases:
        closed.update(event_log.segments(source.events)[:-1])

    def copy(old: str, new: str) -> None:
        if Path(old) in closed:
            os.link(old, new)
        else:
            shutil.copy2(old, new)

    shutil.copytree(source.folder, folder, copy_function=copy)
    return paths_of(folder)


def flush_figures(paths: StatePaths, count: int, name: str) -> dict[str, float]:
    """Median processor time and bytes read of a compaction of `FLUSHED` new requests behind a log of ``count``."""
    times = []
    read = []
    for _ in range(FLUSHES):
        grow(paths, requests_in(paths) + FLUSHED, times_of(count, 0))
        before = bytes_read()
        started_s = time.process_time()
        training.compact(paths.events, paths.tables, ads())
        times.append(time.process_time() - started_s)
        read.append(bytes_read() - before)
    return {
        f"flush_ms_{name}": round(1e3 * statistics.median(times), 1),
        f"flush_read_mb_{name}": round(statistics.median(read) / (1 << 20), 1),
    }


def bytes_read() -> int:
    """Bytes that this process has read from files so far, cached or not."""
    return int(Path("/proc/self/io").read_text().split()[1])


def has_user(paths: StatePaths, clean: dict[Path, tuple[int, int]]) -> bool:
    """Whether a file of log or tables contains the user; ``clean`` are files that were read without (inode, size)."""
    files = [*event_log.segments(paths.events), *sorted(paths.tables.glob("*/*.parquet"))]
    for path in files:
        try:
            stat = path.stat()
            if clean.get(path) == (stat.st_ino, stat.st_size):
                continue
            if path.suffix == ".log":
                has = ERASED.encode() in path.read_bytes()
            else:
                has = ERASED in pl.read_parquet(path, columns=["user_id"])["user_id"]
        except FileNotFoundError:
            continue
        if has:
            return True
        clean[path] = (stat.st_ino, stat.st_size)
    return False


def resident_mb(pid: int) -> float:
    """The greatest resident memory of a process so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def processor_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Load:
    """Events at a constant rate; ``latencies_s`` are those of acknowledged events."""

    def __init__(self, client: Client[WriterRequest, WriterReply], keys: TokenKeys) -> None:
        self._client = client
        self._keys = keys
        self._tasks: set[asyncio.Task[None]] = set()
        self.latencies_s: list[float] = []
        self.failed = 0

    def event(self, number: int) -> EventRequest:
        now_us = SystemClock().now_us()
        token = token_of(number, f"user-{number % USERS:08d}", now_us)
        return EventRequest(kind="bill", token=self._keys.encrypt(token, "bill"), at_us=now_us, price_nanos=1_500_000)

    async def run(self, events: Sequence[EventRequest], rate: float) -> float:
        """Send ``rate`` events a second; returns the acknowledged events of a second."""
        started_s = time.perf_counter()
        for number, event in enumerate(events):
            wait_s = started_s + number / rate - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            task = asyncio.create_task(self._send(event))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.gather(*self._tasks)
        return len(self.latencies_s) / (time.perf_counter() - started_s)

    async def _send(self, event: EventRequest) -> None:
        started_s = time.perf_counter()
        try:
            reply = await self._client.request(event, timeout_s=600)
        except PeerError:  # more than 1 MiB waits unread at the writer's socket
            self.failed += 1
            return
        assert reply == EventReply("new"), reply
        self.latencies_s.append(time.perf_counter() - started_s)


def start_writer(plan: Plan) -> SpawnProcess:
    """Start the process of the writer."""
    plan.paths.writer_socket.unlink(missing_ok=True)
    process = multiprocessing.get_context("spawn").Process(target=roles.run_writer, args=(plan,), name="writer")
    process.start()
    return process


async def first_booking(client: Client[WriterRequest, WriterReply], load: Load) -> None:
    """Wait until the writer acknowledges an event."""
    event = load.event(10**13)
    while True:
        try:
            assert isinstance(await client.request(event, timeout_s=600), EventReply)
            return
        except PeerError:
            await asyncio.sleep(0.02)


def erase_late(paths: StatePaths) -> None:
    """Erase the user from log and tables at the priority that the management process gives an erasure."""
    os.nice(process_setup.NICE)
    erasure.erase(paths, [ERASED])


async def erase(paths: StatePaths, delay_s: float) -> tuple[float, float]:
    """(time until the reply, time until the bytes are gone) of an erasure that begins after ``delay_s``."""
    await asyncio.sleep(delay_s)
    client: Client[WriterRequest, WriterReply] = Client(paths.writer_socket, WriterReply)
    started_s = time.perf_counter()
    reply = await client.request(EraseRequest(ERASED), timeout_s=3600)
    erase_s = time.perf_counter() - started_s
    assert isinstance(reply, EraseReply), reply
    process = multiprocessing.get_context("spawn").Process(target=erase_late, args=(paths,))
    process.start()
    clean: dict[Path, tuple[int, int]] = {}
    while await asyncio.to_thread(has_user, paths, clean):
        await asyncio.sleep(0.5)
    await asyncio.to_thread(process.join)
    await client.close()
    return erase_s, time.perf_counter() - started_s


def plan_of(paths: StatePaths) -> Plan:
    return Plan(
        paths=paths,
        settings=Settings(public_url="https://ads.test"),
        host="127.0.0.1",
        port=0,
        manage_port=0,
        workers=0,
        timing=Timing(),
        tables=paths.tables,
        codebook=paths.folder,
        model=None,
        beam=1,
        retain_days=365,
    )


async def first_figures(paths: StatePaths) -> dict[str, float]:
    """Figures of a start without a snapshot of the counts."""
    paths.counts.unlink(missing_ok=True)
    client: Client[WriterRequest, WriterReply] = Client(paths.writer_socket, WriterReply)
    load = Load(client, TokenKeys.open(paths.token_keys))
    started_s = time.perf_counter()
    process = start_writer(plan_of(paths))
    try:
        await first_booking(client, load)
        start_s = time.perf_counter() - started_s
        while not await is_counted(client):
            await asyncio.sleep(0.5)
        await client.close()
        return {"first_start_s": round(start_s, 2), "counted_s": round(time.perf_counter() - started_s, 2)}
    finally:
        process.terminate()
        process.join()


async def is_counted(client: Client[WriterRequest, WriterReply]) -> bool:
    """Whether the counts of the writer have the whole log."""
    reply = await client.request(CountsRequest(), timeout_s=600)
    assert isinstance(reply, CountsReply), reply
    return reply.is_whole


async def load_figures(paths: StatePaths, rate: float, seconds: float, *, erases: bool) -> dict[str, float]:
    """Figures of a start, and of events at a constant rate while the table writer flushes and a user is erased."""
    plan = plan_of(paths)
    client: Client[WriterRequest, WriterReply] = Client(paths.writer_socket, WriterReply)
    load = Load(client, TokenKeys.open(paths.token_keys))
    events = [load.event(10**12 + number) for number in range(round(rate * seconds))]
    started_s = time.perf_counter()
    process = start_writer(plan)
    tables = multiprocessing.get_context("spawn").Process(target=roles.run_table_writer, args=(plan,), name="tables")
    try:
        assert process.pid is not None
        await first_booking(client, load)
        figures = {
            "start_s": round(time.perf_counter() - started_s, 2),
            "start_cpu_s": round(processor_s(process.pid), 2),
        }
        tables.start()
        assert tables.pid is not None
        erasing = asyncio.create_task(erase(paths, seconds / 4)) if erases else None
        events_per_s = await load.run(events, rate)
        if erasing is not None:
            erase_s, bytes_gone_s = await erasing
            figures |= {"erase_s": round(erase_s, 2), "bytes_gone_s": round(bytes_gone_s, 2)}
        await client.close()
        latencies_s = sorted(load.latencies_s)
        return figures | {
            "booking_p99_ms": round(1e3 * latencies_s[len(latencies_s) * 99 // 100], 1),
            "booking_max_ms": round(1e3 * latencies_s[-1], 1),
            "rss_mb": round(resident_mb(process.pid), 1),
            "tables_rss_mb": round(resident_mb(tables.pid), 1),
            "events_per_s": round(events_per_s),
            "refused": load.failed,
        }
    finally:
        for started in (process, tables):
            if started.pid is not None:
                started.terminate()
                started.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="state folder; a temporary one by default")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--days", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=3_000.0, help="events a second")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--snapshot", action=argparse.BooleanOptionalAction, default=True, help="of the counts")
    parser.add_argument("--erase", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--only", choices=("build", "flush", "first", "load"), nargs="+", default=("flush", "first", "load")
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(figures_of(options, options.folder or Path(scratch, "history"))))


def figures_of(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The figures of the selected measurements."""
    times = times_of(options.requests, options.days)
    history = build(folder, options.requests, times, has_snapshot=options.snapshot)
    copy = folder.with_name(f"{folder.name}-measured")
    figures: dict[str, float] = {"requests": options.requests}
    try:
        if "flush" in options.only:
            small = build(copy, FLUSHED, times_of(FLUSHED, options.days))
            figures |= flush_figures(small, FLUSHED, "small")
            figures |= flush_figures(copy_of(history, copy), options.requests, "large")
        if "first" in options.only:
            figures |= asyncio.run(first_figures(copy_of(history, copy)))
        if "load" in options.only:
            measured = copy_of(history, copy, erases=options.erase)
            figures |= asyncio.run(load_figures(measured, options.rate, options.seconds, erases=options.erase))
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return figures


if __name__ == "__main__":
    main()
