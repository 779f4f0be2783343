"""Requests to erase users: each is finished, by this process or the next one, in as few passes as there can be."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgspec
import pytest

from leadre.errors import PeerError, StorageError
from leadre.serve.events import event_log, records
from leadre.serve.events.erased import ErasedUsers
from leadre.serve.events.log_writer import EventLog
from leadre.serve.paths import StatePaths
from leadre.serve.processes import erasures as module
from leadre.serve.processes.erasures import Erasures
from leadre.store import open_store
from leadre.store.contract import Profile, ProfileEvent

from ..bidder import Bidder, until
from ..events.test_event_log import event

USERS = ("u-1", "u-2", "u-3")


class Served:
    """A state with two records and a profile of each user, and a writer that hides users."""

    def __init__(self, folder):
        self.paths = StatePaths(folder=folder, store=f"lmdb:{folder / 'lists'}")
        self.log = EventLog(self.paths.events)
        self.log.append([event(number, user) for number in range(2) for user in (*USERS, "kept")], 1)
        self.erased = ErasedUsers(self.paths.erased)
        self.store = open_store(self.paths.store)
        for user in (*USERS, "kept"):
            self.store.write_profiles(Profile(user, (ProfileEvent("o1", 1, "ad"),), ()))
        self.hidden = []
        self.lock = threading.Lock()
        self.is_away = False
        self.passes = []

    def hide(self, user):
        if self.is_away:
            raise PeerError("the writer is away")
        with self.lock:  # the writer handles one request after the other
            self.hidden.append(user)
            self.erased.add(user)
            self.log.rotate()

    def erasures(self):
        return Erasures(self.paths, self.store, self.hide)

    def named(self):
        return {records.user_of(entry.record) for entry in event_log.read(self.paths.events)} - {""}

    def waiting(self):
        return msgspec.json.decode(self.paths.to_erase.read_bytes())


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PROPAGATE_S", 0.0)
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    served = Served(tmp_path)
    yield served
    served.log.close()
    served.store.close()


def requested(erasures, pool, users):
    """Requests of these users, all waiting."""
    futures = [pool.submit(erasures.erase, user) for user in users]
    until(lambda: set(erasures._results) == set(users), "waiting")
    return futures


def test_users_that_wait_are_erased_in_one_pass(served, monkeypatch):
    passes = []
    erasures = served.erasures()
    one_pass = erasures._pass
    monkeypatch.setattr(erasures, "_pass", lambda users: passes.append(list(users)) or one_pass(users))
    with ThreadPoolExecutor(4) as pool:
        futures = requested(erasures, pool, USERS)
        assert sorted(served.hidden) == sorted(USERS), "unreadable before the pass"
        assert sorted(served.waiting()) == sorted(USERS)
        erasures.run()
        assert [future.result() for future in futures] == [{"events": 2, "store": 1}] * 3
    assert [sorted(users) for users in passes] == [sorted(USERS)]
    assert served.named() == {"kept"} and served.waiting() == []
    assert served.store.read_profile("u-1") is None and served.store.read_profile("kept") is not None


def test_next_process_finishes_what_was_requested(served):
    """The first one dies between the request and the pass; the user is hidden again, as the writer may not have it."""
    with ThreadPoolExecutor(1) as pool:
        first = served.erasures()
        future = requested(first, pool, ["u-2"])[0]
        second = served.erasures()
        second.run()
        assert served.named() == {"u-1", "u-3", "kept"} and served.waiting() == []
        first.run()
        assert future.result() == {"events": 0, "store": 0}


def test_failed_pass_is_repeated_and_its_callers_know(served, monkeypatch):
    erasures = served.erasures()
    erase = served.store.erase

    def refuse(*users):
        raise StorageError("disk full")

    monkeypatch.setattr(served.store, "erase", refuse)
    with ThreadPoolExecutor(1) as pool:
        future = requested(erasures, pool, ["u-1"])[0]
        with pytest.raises(StorageError):
            erasures.run()
        with pytest.raises(StorageError, match="disk full"):
            future.result()
    assert served.waiting() == ["u-1"]
    monkeypatch.setattr(served.store, "erase", erase)
    erasures.run()
    assert served.waiting() == [] and served.store.read_profile("u-1") is None


def test_unexpected_error_leaves_no_caller_waiting(served, monkeypatch):
    erasures = served.erasures()
    monkeypatch.setattr(erasures, "_pass", lambda users: 1 // 0)
    with ThreadPoolExecutor(1) as pool:
        future = requested(erasures, pool, ["u-1"])[0]
        with pytest.raises(ZeroDivisionError):
            erasures.run()
        with pytest.raises(PeerError, match="repeated"):
            future.result()
    assert served.waiting() == ["u-1"]


def test_request_is_stored_although_the_writer_is_away(served):
    served.is_away = True
    erasures = served.erasures()
    with pytest.raises(PeerError):
        erasures.erase("u-1")
    assert served.waiting() == ["u-1"]
    with pytest.raises(PeerError):
        erasures.run()
    served.is_away = False
    erasures.run()
    assert served.waiting() == [] and "u-1" not in served.named()


def test_damaged_list_of_waiting_users_is_an_error_with_its_remedy(served):
    served.paths.to_erase.write_bytes(b"x")
    with pytest.raises(StorageError, match=r"to-erase.json: damaged .* delete it and request its erasures again"):
        served.erasures()


@pytest.mark.slow
def test_management_that_is_killed_finishes_the_erasure_when_it_is_back(work, tmp_path):
    with Bidder(work, tmp_path / "state", "--generate", "false", "--workers", "1") as bidder:
        bidder.ask(user={"id": "household-1"}).raise_for_status()
        headers = {"authorization": f"Bearer {bidder.operator}"}
        url = f"http://127.0.0.1:{bidder.manage_port}/users"
        paths = StatePaths(folder=bidder.state, store=bidder.store_spec)
        until(lambda: any("household-1" in str(e.record) for e in event_log.read(paths.events)), "logged")

        with ThreadPoolExecutor(1) as pool:
            deleting = pool.submit(bidder.http.delete, url, params={"user_id": "household-1"}, headers=headers)
            until(lambda: paths.to_erase.exists() and b"household-1" in paths.to_erase.read_bytes(), "requested")
            bidder.kill("management")
            with pytest.raises(httpx.TransportError):  # no reply
                deleting.result()
        until(lambda: b"household-1" not in paths.to_erase.read_bytes(), "erased", bidder.said)
        export = bidder.http.get(url, params={"user_id": "household-1"}, headers=headers)
        assert export.json() == {"profile": None, "list": None, "events": []}
        assert all(b"household-1" not in path.read_bytes() for path in event_log.segments(paths.events)[:-1])
