"""A state folder has one bidder; a start that cannot succeed is one line with exit status 2."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing

import httpx
import pytest

from .bidder import Bidder, event_urls, until


def serve(work, state, *flags):
    """(exit status, stderr) of a `leadre serve` that ends by itself."""
    command = [sys.executable, "-m", "leadre", "serve", "--work", str(work), "--run", "served", "--generate", "false"]
    command += ["--state", str(state), "--port", "0", "--manage-port", "1", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def own(work, tmp_path_factory):
    """A bidder whose state other processes attack."""
    with Bidder(work, tmp_path_factory.mktemp("own") / "state", "--generate", "false") as bidder:
        yield bidder


def test_second_bidder_is_refused_and_the_first_continues(work, own):
    status, err = serve(work, own.state)
    assert status == 2 and err.count("\n") == 1
    assert f"a bidder runs on this state folder; stop it first, or choose another --state (process {own.pid})" in err
    (bid,) = own.bids()
    assert own.http.get(event_urls(bid)["imp"]).status_code == 200, "the socket of the writer is still there"
    assert own.away() == []


def test_locked_management_database_is_503_while_the_bidder_runs(own):
    name, _ = own.campaign()
    headers = {"authorization": f"Bearer {own.operator}"}
    url = f"http://127.0.0.1:{own.manage_port}/campaigns/{name}/pause"
    with closing(sqlite3.connect(own.state / "manage.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = httpx.post(url, headers=headers, timeout=60)
        assert answer.status_code == 503 and "locked" in answer.json()["detail"]
        assert own.bids()
    until(lambda: httpx.post(url, headers=headers, timeout=60).is_success, "paused")


def test_locked_management_database_is_one_line_at_start(work, tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    with closing(sqlite3.connect(state / "manage.db")) as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("CREATE TABLE x (y)")
        other.execute("BEGIN IMMEDIATE")
        status, err = serve(work, state)
    assert status == 2 and err.count("\n") == 1 and "manage.db" in err and "locked" in err


def test_path_too_long_for_a_socket_is_one_line_at_start(work, tmp_path):
    status, err = serve(work, tmp_path / ("x" * 90))
    assert status == 2 and err.count("\n") == 1 and "choose a shorter --state" in err


def test_state_folder_that_cannot_be_made_is_one_line_at_start(work, tmp_path):
    (tmp_path / "file").write_text("")
    status, err = serve(work, tmp_path / "file" / "state")
    assert status == 2 and err.count("\n") == 1 and "choose another --state" in err
