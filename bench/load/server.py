"""A bidder under load: `leadre serve` on free ports, its counters, its processor time; and the load generator."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.manage import auth
from leadre.serve.paths import StatePaths

HERE = Path(__file__).parent
START_S = 120.0
TICKS_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    """A running bidder. ``first_bid_s``: seconds from its start to its first bid, None without a ``first`` request."""

    process: subprocess.Popen[bytes]
    port: int
    key: str
    first_bid_s: float | None

    def bid(self, body: str, timeout_s: float = 10.0) -> tuple[int, bytes, float]:
        """(status, body, milliseconds) of one request on a connection of its own."""
        start_s = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request("POST", "/openrtb2/bid", body)
            answer = connection.getresponse()
            return answer.status, answer.read(), 1000 * (time.perf_counter() - start_s)
        finally:
            connection.close()

    def count(self, metric: str) -> float:
        """The value of a counter of /metrics; ``metric``: name and labels as /metrics prints them."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", "/metrics", headers={"authorization": f"Bearer {self.key}"})
        text = connection.getresponse().read().decode()
        connection.close()
        line = re.search(rf"^{re.escape(metric)} (\S+)$", text, re.M)
        return float(line[1]) if line else 0.0

    def ready(self) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", "/readyz")
        reply: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return reply

    def cpu_s(self) -> list[float]:
        """Processor seconds so far of the supervisor's children in the order of their start: writer, worker, ..."""
        seconds_of = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                fields = (path / "stat").read_text().rpartition(") ")[2].split()
                is_role = b"spawn_main" in (path / "cmdline").read_bytes()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid and is_role:
                seconds_of[int(path.name)] = (int(fields[11]) + int(fields[12])) / TICKS_S
        return [seconds_of[pid] for pid in sorted(seconds_of)]


@contextmanager
def serving(work: Path, run: str, state: Path, flags: Sequence[str] = (), first: str = "") -> Iterator[Server]:
    """`leadre serve` of a run with its state in a folder, until the block ends; ``first``: a request to wait for."""
    state.mkdir(parents=True, exist_ok=True)
    records = ManageDatabase(StatePaths(folder=state, store="").manage_database)
    _, key = auth.ApiKeys(records).create("bench", time.time_ns() // 1000)
    records.close()
    port, manage_port = free_ports()
    ports = ["--port", str(port), "--manage-port", str(manage_port)]
    command = [sys.executable, "-m", "leadre", "serve", "--work", str(work), "--run", run, "--state", str(state)]
    start_s = time.perf_counter()
    process = subprocess.Popen([*command, *ports, *flags], stdout=subprocess.DEVNULL)
    try:
        server = Server(process, port, key, None)
        while not _is_up(server, first):
            assert process.poll() is None, f"the bidder ended with {process.returncode}"
            assert time.perf_counter() - start_s < START_S, "the bidder did not come up"
            time.sleep(0.02)
        yield Server(process, port, key, time.perf_counter() - start_s if first else None)
    finally:
        process.terminate()
        process.wait(60)


def _is_up(server: Server, first: str) -> bool:
    try:
        if first:
            status, body, _ = server.bid(first)
            return status == 200 and b'"impid"' in body
        return bool(server.ready())
    except OSError:
        return False


def free_ports() -> tuple[int, int]:
    with socket.socket() as bids, socket.socket() as management:
        bids.bind(("127.0.0.1", 0))
        management.bind(("127.0.0.1", 0))
        return bids.getsockname()[1], management.getsockname()[1]


def load(server: Server, template: dict[str, Any], rate: float, seconds: int, **users: Any) -> dict[str, Any]:
    """Run `load.mjs` for a round: its report, with processor milliseconds a request.

    ``users``: the option `users` or `user_ids` of `load.mjs`.
    """
    orders = {
        "url": f"http://127.0.0.1:{server.port}/openrtb2/bid",
        "body": json.dumps(template, separators=(",", ":")),
        "rate": round(rate),
        "seconds": seconds,
        "inside_ms": template["tmax"],
        **users,
    }
    before = server.cpu_s()
    done = subprocess.run(
        ["node", str(installed() / "load.mjs")], input=json.dumps(orders).encode(), stdout=subprocess.PIPE, check=True
    )
    report: dict[str, Any] = json.loads(done.stdout)
    after = server.cpu_s()
    for name, start_s, end_s in zip(("writer_ms", "worker_ms"), before, after, strict=False):
        report[name] = 1000 * (end_s - start_s) / report["asked"]
    return report


def installed() -> Path:
    """The folder with `load.mjs` and the node_modules of its lock file, outside the repository."""
    names = ("package.json", "package-lock.json", ".npmrc", "load.mjs")
    cache = Path(os.environ.get("LEADRE_NODE", "~/.cache/leadre")).expanduser()
    mark = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in names)).hexdigest()[:16]
    folder = cache / f"load-{mark}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=cache))
        for name in names:
            shutil.copy(HERE / name, part)
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=part, check=True, stdout=2)
        part.rename(folder)
    return folder
