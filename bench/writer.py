"""Claim: neither start, flush, erasure nor booking of the writer depends on the length of its history.

    python bench/writer.py --folder /tmp/history --requests 100000

Builds a state folder with a log of ``--requests`` requests and three events each, over ``--days`` days until now, and
continues a folder that has fewer. Requests, events and their order are those of serving; the records are encoded,
appended, posted and compacted by the code of the writer. Then measures:

- ``flush_ms_small``, ``flush_ms_large``: processor time of `training.compact` for 1,000 new requests and their events,
  behind a log of 1,000 requests and behind the whole log;
- ``start_s``, ``start_cpu_s``: of the second start of a writer, from the start of its process to the acknowledgement of
  the first event, in wall time and in processor time of the writer;
- ``events_per_s``, ``booking_p99_ms``, ``booking_max_ms``: events acknowledged at the writer's socket, while
  ``--rate`` events a second are sent for ``--seconds``, and their latency;
- ``erase_s``: meanwhile, from the request to erase a user with 300 requests to the writer's reply, after which no reply
  and no record names this user;
- ``bytes_gone_s``: from the same request until no file of log or tables contains the user's ID; another process erases
  it, as the management process does;
- ``rss_mb``: the greatest resident memory of the writer's process.

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
import time
from collections.abc import Sequence
from multiprocessing.context import SpawnProcess
from pathlib import Path

import polars as pl
from writer_history import ERASED, FLUSHED, USERS, ads, build, grow, paths_of, requests_in, token_of

from leadre.clock import SystemClock
from leadre.errors import PeerError
from leadre.serve.events import erasure, event_log, training
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import EraseReply, EraseRequest, EventReply, EventRequest, WriterReply, WriterRequest
from leadre.serve.ipc.socket import Client
from leadre.serve.paths import StatePaths
from leadre.serve.plan import Plan, Timing
from leadre.serve.processes import roles
from leadre.serve.settings import Settings


def flush_ms(paths: StatePaths, count: int, days: float, rounds: int) -> float:
    """Median processor time of a compaction of `FLUSHED` new requests behind a log of ``count``."""
    times = []
    for _ in range(rounds):
        grow(paths, requests_in(paths) + FLUSHED, days, spread=count)
        started_s = time.process_time()
        training.compact(paths.events, paths.tables, ads())
        times.append(time.process_time() - started_s)
    return 1e3 * statistics.median(times)


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
        return EventRequest(kind="bill", token=self._keys.sign(token), at_us=now_us, price="1.5")

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


async def erase(paths: StatePaths, delay_s: float) -> tuple[float, float]:
    """(time until the reply, time until the bytes are gone) of an erasure that begins after ``delay_s``."""
    await asyncio.sleep(delay_s)
    client: Client[WriterRequest, WriterReply] = Client(paths.writer_socket, WriterReply)
    started_s = time.perf_counter()
    reply = await client.request(EraseRequest(ERASED), timeout_s=3600)
    erase_s = time.perf_counter() - started_s
    assert isinstance(reply, EraseReply), reply
    values = (paths.events, paths.tables, paths.replacing, ERASED)
    process = multiprocessing.get_context("spawn").Process(target=erasure.erase, args=values)
    process.start()
    clean: dict[Path, tuple[int, int]] = {}
    while await asyncio.to_thread(has_user, paths, clean):
        await asyncio.sleep(0.5)
    await asyncio.to_thread(process.join)
    await client.close()
    return erase_s, time.perf_counter() - started_s


async def measure(paths: StatePaths, rate: float, seconds: float) -> dict[str, float]:
    plan = Plan(
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
    keys = TokenKeys.open(paths.token_keys)
    client: Client[WriterRequest, WriterReply] = Client(paths.writer_socket, WriterReply)
    load = Load(client, keys)
    events = [load.event(10**12 + number) for number in range(round(rate * seconds))]
    first = start_writer(plan)  # counts the log, as the history was built without a writer
    await first_booking(client, load)
    first.terminate()
    await asyncio.to_thread(first.join)
    started_s = time.perf_counter()
    process = start_writer(plan)
    try:
        assert process.pid is not None
        await first_booking(client, load)
        start_s = time.perf_counter() - started_s
        start_cpu_s = processor_s(process.pid)
        erasing = asyncio.create_task(erase(paths, seconds / 4))
        events_per_s = await load.run(events, rate)
        erase_s, bytes_gone_s = await erasing
        await client.close()
        latencies_s = sorted(load.latencies_s)
        return {
            "start_s": round(start_s, 2),
            "start_cpu_s": round(start_cpu_s, 2),
            "erase_s": round(erase_s, 2),
            "bytes_gone_s": round(bytes_gone_s, 2),
            "booking_p99_ms": round(1e3 * latencies_s[len(latencies_s) * 99 // 100], 1),
            "booking_max_ms": round(1e3 * latencies_s[-1], 1),
            "rss_mb": round(resident_mb(process.pid), 1),
            "events_per_s": round(events_per_s),
            "refused": load.failed,
        }
    finally:
        process.terminate()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="state folder; built or continued")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--days", type=float, default=2.0)
    parser.add_argument("--rate", type=float, default=3_000.0, help="events a second")
    parser.add_argument("--seconds", type=float, default=40.0)
    options = parser.parse_args()
    small = options.folder.with_name(f"{options.folder.name}-small")
    shutil.rmtree(small, ignore_errors=True)
    paths = build(options.folder, options.requests, options.days)
    flush_small = flush_ms(build(small, FLUSHED, options.days), FLUSHED, options.days, rounds=3)
    flush_large = flush_ms(paths, options.requests, options.days, rounds=3)
    figures: dict[str, float] = {
        "requests": options.requests,
        "flush_ms_small": round(flush_small, 1),
        "flush_ms_large": round(flush_large, 1),
    }
    measured = paths_of(options.folder.with_name(f"{options.folder.name}-measured"))  # a run erases a user
    shutil.rmtree(measured.folder, ignore_errors=True)
    shutil.copytree(paths.folder, measured.folder)
    figures |= asyncio.run(measure(measured, options.rate, options.seconds))
    shutil.rmtree(measured.folder)
    shutil.rmtree(small)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
