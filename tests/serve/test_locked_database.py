"""`manage.db` while another program has it locked, or after damage: 503 with a reason, bids go on, nothing restarts."""

from __future__ import annotations

import fcntl
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial

import httpx
import pytest

from .bidder import Bidder, event_urls, free_port, until

pytestmark = pytest.mark.slow
# Locks of SQLite's write-ahead log in the file -shm: writer, checkpoint, recovery and readers.
PATHS = ("/campaigns", "/keys", "/ads", "/origins", "/audit", "/reports/campaigns?since=2026-01-01T00:00:00Z")
PAGES = ("/", "/status/campaigns", "/status/ads")
WAL_LOCKS_START, WAL_LOCKS = 120, 8


@contextmanager
def locked(path):
    """Hold all locks of the database, so that no other process reads or writes it."""
    with path.with_name(f"{path.name}-shm").open("r+b") as shm:
        until(lambda: _locks(shm), "the lock")
        yield


def _locks(file) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, WAL_LOCKS, WAL_LOCKS_START)
    except OSError:
        return False
    return True


@pytest.fixture
def own_bidder(work, tmp_path):
    with Bidder(work, tmp_path / "state", "--generate", "false") as running:
        yield running


def test_keyed_requests_get_503_while_the_database_is_locked_and_processes_wait(own_bidder):
    bidder = own_bidder
    _, ad_id = bidder.campaign()
    bidder.list_for("u", ad_id)
    key = {"authorization": f"Bearer {bidder.operator}"}
    management = f"http://127.0.0.1:{bidder.manage_port}"
    browser = httpx.Client(base_url=management, timeout=30.0)  # its own cookies
    browser.post("/status/login", data={"key": bidder.operator})
    assert browser.get("/").status_code == 200
    requests = {
        "metrics": lambda: bidder.http.get(f"{bidder.url}/metrics", headers=key),
        "recommend": lambda: bidder.http.post(f"{bidder.url}/v1/recommend", json={"user_id": "u"}, headers=key),
        "explain": lambda: bidder.http.get(f"{bidder.url}/v1/explain/x", headers=key),
        "login": lambda: bidder.http.post(f"{management}/status/login", data={"key": bidder.operator}),
    }
    requests |= {path: partial(bidder.http.get, f"{management}{path}", headers=key) for path in PATHS}
    requests |= {f"page {path}": partial(browser.get, path) for path in PAGES}
    with locked(bidder.state / "manage.db"), ThreadPoolExecutor(len(requests)) as threads:
        waiting = {name: threads.submit(request) for name, request in requests.items()}
        assert bidder.bids(user={"id": "u"})
        assert not waiting["metrics"].done(), "no bid waits for the database"
        answers = {name: request.result() for name, request in waiting.items()}
        browser.close()
        for name, answer in answers.items():
            assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1"), (name, answer.text)
            assert "lock" in answer.text, name
        assert httpx.get(f"{management}/health").status_code == 200
        (bid,) = bidder.bids(user={"id": "u"})
        assert bidder.http.get(event_urls(bid)["imp"]).status_code == 200, "the writer books"
        assert bidder.away() == [] and "the writer's catalogue waits for its disk: manage.db: " in bidder.said()
        bidder.kill("worker")
        bidder.kill("management")
        bidder.kill("writer")
        for role in ("worker 1", "management", "writer"):
            until(lambda role=role: f"{role} waits: " in bidder.said(), "waiting", bidder.said)
    until(lambda: bidder.is_up(f"{bidder.url}/readyz"), "ready")
    until(lambda: bidder.is_up(f"{management}/health"), "managed")
    assert bidder.said().count(" and restarts") == 3, "those that the test killed"
    assert "Traceback" not in bidder.said()
    assert bidder.http.get(f"{bidder.url}/metrics", headers=key).status_code == 200


def test_change_gets_503_while_another_program_writes_and_others_read(bidder):
    with closing(sqlite3.connect(bidder.state / "manage.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        answer = bidder.http.put(
            f"http://127.0.0.1:{bidder.manage_port}/origins",
            json={"origins": ["https://locked.example"]},
            headers={"authorization": f"Bearer {bidder.operator}"},
        )
        assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1"), answer.text
        assert "locked" in answer.json()["detail"]
        assert bidder.manage("GET", "/campaigns")["items"]
        other.execute("ROLLBACK")
    bidder.campaign()


@pytest.mark.parametrize("start", [0, 4096])
def test_start_on_a_damaged_database_is_one_line(work, tmp_path, start):
    with Bidder(work, tmp_path / "state", "--generate", "false"):
        pass
    path = tmp_path / "state" / "manage.db"
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * (path.stat().st_size - start))
    command = [sys.executable, "-m", "leadre", "serve", "--work", str(work), "--run", "served", "--generate", "false"]
    command += ["--state", str(tmp_path / "state"), "--port", str(free_port()), "--manage-port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert str(path) in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
