"""A bidder under load: `leadre serve` on free ports, what it counted, what it cost; and the load generator."""

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
    """A bidder that answers. ``first_bid_s``: from its start to its first bid, None where ``first`` was not asked."""

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
        """A counter of /metrics as it is written there: name and labels."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", "/metrics", headers={"authorization": f"Bearer {self.key}"})
        text = connection.getresponse().read().decode()
        connection.close()
        found = re.search(rf"^{re.escape(metric)} (\S+)$", text, re.M)
        return float(found[1]) if found else 0.0

    def ready(self) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", "/readyz")
        told: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return told

    def cpu_s(self) -> list[float]:
        """Processor seconds so far of the supervisor's children in the order of their start: writer, worker, ..."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                fields = (path / "stat").read_text().rpartition(") ")[2].split()
                is_role = b"spawn_main" in (path / "cmdline").read_bytes()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid and is_role:
                found[int(path.name)] = (int(fields[11]) + int(fields[12])) / TICKS_S
        return [found[pid] for pid in sorted(found)]


@contextmanager
def serving(work: Path, run: str, state: Path, flags: Sequence[str] = (), first: str = "") -> Iterator[Server]:
    """`leadre serve` of a run with its state in a folder, until the block ends; ``first``: a request to wait for."""
    state.mkdir(parents=True, exist_ok=True)
    records = ManageDatabase(StatePaths(folder=state, store="").book)
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
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def load(server: Server, template: dict[str, Any], rate: float, seconds: int, **users: Any) -> dict[str, Any]:
    """What `load.mjs` says of a round, and our milliseconds a request; ``users``: its `users` or `user_ids`."""
    wanted = {
        "url": f"http://127.0.0.1:{server.port}/openrtb2/bid",
        "body": json.dumps(template, separators=(",", ":")),
        "rate": round(rate),
        "seconds": seconds,
        "inside_ms": template["tmax"],
        **users,
    }
    before = server.cpu_s()
    done = subprocess.run(
        ["node", str(installed() / "load.mjs")], input=json.dumps(wanted).encode(), stdout=subprocess.PIPE, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    after = server.cpu_s()
    for name, start_s, end_s in zip(("writer_ms", "worker_ms"), before, after, strict=False):
        found[name] = 1000 * (end_s - start_s) / found["asked"]
    return found


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
