"""Contract suite of the stores; test_store.py runs it for each of them. Some tests start further processes."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leadre.errors import InputError
from leadre.store import open_store
from leadre.store.contract import EVERYBODY, MAX_RECENT, Cap, Profile, ProfileEvent, StoredList, dump
from leadre.units import US_PER_DAY

DAY = 20_000
NOON_US = DAY * US_PER_DAY + US_PER_DAY // 2
UNUSUAL_USERS = ["a", "a:b", "a\nb", "B", "é", "日本", "x" * 400]
INVALID_USERS = ["", "a\0b", "x" * 401, "\ud800"]


def stored_list(version, *ads, at_us=1):
    return StoredList(version, at_us, ads, tuple(-0.5 * rank for rank in range(len(ads))))


def process(code, *arguments):
    """Start another Python that opens `store` from the first argument and runs `code`."""
    start = "import json, sys, time\nfrom leadre.store import open_store\nfrom leadre.store.contract import *\n"
    code = start + "store = open_store(sys.argv[1], timeout_ms=2000)\n" + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def printed_json(child):
    """Wait for the other process; return the JSON that it printed."""
    out, _ = child.communicate(timeout=150)
    assert child.returncode == 0
    return json.loads(out)


class StoreFixtures:
    """Base of the suites; subclasses define the fixture `spec`: an `open_store` argument that names an empty store."""

    @pytest.fixture
    def store(self, spec):
        opened = open_store(spec, timeout_ms=2000)
        yield opened
        opened.close()

    def reserve(self, store, user="u", limit=3, day=DAY, campaign="c", now_us=NOON_US, for_us=100, **fields):
        caps = [Cap(campaign, day, limit)]
        return store.reserve(user, caps, now_us=now_us, until_us=now_us + for_us, **fields)[campaign]

    def fill(self, store, *users):
        for version in ("v1", "v2"):
            store.put_lists(version, {user: stored_list(version, "ad") for user in users})
            store.switch(version)
        store.write_profiles(*(Profile(user, (ProfileEvent("o", 1, "ad"),)) for user in users))
        return {user: self.reserve(store, user, count=3) for user in users}


class ListContract(StoreFixtures):
    def test_list_is_read_from_the_current_version(self, store):
        assert store.read_list("u") is None
        store.put_lists("v1", {"u": stored_list("v1", "ad1", "ad2"), "w": stored_list("v1", "ad3")})
        assert store.read_list("u") is None
        store.switch("v1")
        assert store.read_list("u") == StoredList("v1", 1, ("ad1", "ad2"), (0.0, -0.5))
        assert store.read_list("w") == stored_list("v1", "ad3")
        assert store.read_list("unknown") is None

    def test_switch_and_rollback_change_all_lists_at_once(self, store):
        for version in ("v1", "v2"):
            store.put_lists(version, {"u": stored_list(version, "ad"), "w": stored_list(version, "ad")})
            store.switch(version)
            store.switch(version)
        store.put_lists("v3", {"u": stored_list("v3", "ad")})
        assert store.versions().names == ("v1", "v2", "v3")
        assert store.versions().current == "v2" == store.read_list("u").version
        assert store.rollback() == "v1" == store.read_list("u").version == store.read_list("w").version
        with pytest.raises(InputError, match="nothing to roll back to"):
            store.rollback()
        assert store.read_list("u").version == "v1"

    def test_rollback_of_an_empty_store_names_the_command_that_fills_it(self, store):
        with pytest.raises(InputError, match=r"no version is current; run `leadre generate lists`$"):
            store.rollback()

    def test_version_is_dropped_unless_it_is_current(self, store):
        for version in ("v1", "v2"):
            store.put_lists(version, {"u": stored_list(version, "ad")})
            store.switch(version)
        store.switch("v1")
        store.drop("v2")
        assert store.versions().names == ("v1",)
        assert list(dump(store, "v1"))
        with pytest.raises(InputError, match="no lists of version 'v2', only v1"):
            list(dump(store, "v2"))
        with pytest.raises(InputError, match="nothing to roll back to"):
            store.rollback()
        with pytest.raises(InputError, match="is the current one"):
            store.drop("v1")
        store.put_lists("v2", {})
        assert list(store.scan("v2")) == []

    @pytest.mark.parametrize("version", ["", "a b", "a\0b", "x" * 65])
    def test_version_name_is_checked(self, store, version):
        with pytest.raises(InputError, match="use up to 64 letters"):
            store.put_lists(version, {"u": stored_list("v", "ad")})
        with pytest.raises(InputError, match="only none at all"):
            store.switch(version)

    def test_writing_lists_is_idempotent_and_dumps_are_equal(self, store):
        lists = {f"user{n}": stored_list("v1", f"ad{n}") for n in range(2100)}
        store.put_lists("v1", lists)
        first = list(dump(store, "v1"))
        store.put_lists("v1", {user: stored_list("v1", f"ad{user[4:]}", at_us=99) for user in list(lists)[::-3]})
        assert list(dump(store, "v1")) == first
        assert [json.loads(line) for line in first] == [
            [user, list(listed.ad_ids), list(listed.log_p)] for user, listed in sorted(lists.items())
        ]
        store.put_lists("v1", {"user7": stored_list("v1", "other")})
        assert list(dump(store, "v1")) != first

    def test_unusual_user_ids_are_stored(self, store):
        store.put_lists("v1", {user: stored_list("v1", user) for user in UNUSUAL_USERS})
        store.switch("v1")
        store.write_profiles(*(Profile(user, updated_at_us=len(user)) for user in UNUSUAL_USERS))
        for user in UNUSUAL_USERS:
            assert store.read_list(user).ad_ids == (user,)
            assert store.read_profile(user).user_id == user
            assert len(self.reserve(store, user)) == 1
        assert [user for user, _ in store.scan("v1")] == sorted(UNUSUAL_USERS)

    @pytest.mark.parametrize("user", INVALID_USERS)
    def test_invalid_user_id_is_not_found_and_not_written(self, store, user):
        store.put_lists("v1", {"u": stored_list("v1", "ad")})
        store.switch("v1")
        assert store.read_list(user) is None
        assert store.read_profile(user) is None
        store.erase(user)
        for write in (
            lambda: store.put_lists("v1", {user: stored_list("v1", "ad")}),
            lambda: store.write_profiles(Profile(user)),
            lambda: self.reserve(store, user),
        ):
            with pytest.raises(InputError, match="400 bytes of UTF-8 without NUL"):
                write()

    def test_first_user_with_a_list_or_a_profile_is_found(self, store):
        store.put_lists("v1", {"listed": stored_list("v1", "ad"), "old": stored_list("v1", "ad")})
        store.write_profiles(Profile("profiled"))
        assert store.find_user("new", "listed", "profiled") == "profiled", "no version is current"
        store.switch("v1")
        assert store.find_user("new", "listed", "profiled") == "listed"
        assert store.find_user("profiled", "listed") == "profiled"
        assert store.find_user("new") == "" == store.find_user() == store.find_user(*INVALID_USERS, EVERYBODY)
        for user in UNUSUAL_USERS:
            store.write_profiles(Profile(user))
            assert store.find_user(*INVALID_USERS, "new", user) == user
        store.put_lists("v2", {"listed": stored_list("v2", "ad")})
        store.switch("v2")
        assert store.find_user("old", "listed") == "listed"

    def test_popular_list_has_no_user(self, store):
        store.put_lists("v1", {EVERYBODY: stored_list("v1", "ad")})
        store.switch("v1")
        for write in (lambda: store.write_profiles(Profile(EVERYBODY)), lambda: self.reserve(store, EVERYBODY)):
            with pytest.raises(InputError, match=r"400 bytes of UTF-8 without NUL, and not '\*'"):
                write()
        store.erase(EVERYBODY)
        assert store.read_profile(EVERYBODY) is None and store.read_list(EVERYBODY).ad_ids == ("ad",)

    def test_readers_see_a_whole_old_or_a_whole_new_version(self, spec, store):
        users = [f"u{n}" for n in range(40)]
        store.put_lists("v1", {user: stored_list("v1", "old") for user in users})
        store.switch("v1")
        reader = process(
            """
            seen, until = [store.read_list("u0").version], time.monotonic() + 30
            print("ready", flush=True)
            while seen[-1:] != ["v2"] and time.monotonic() < until:
                for n in range(40):
                    listed = store.read_list(f"u{n}")
                    assert listed.ad_ids == {"v1": ("old",), "v2": ("new",)}[listed.version]
                    if seen[-1:] != [listed.version]:
                        seen.append(listed.version)
            print(json.dumps(seen))
            """,
            spec,
        )
        assert reader.stdout.readline() == "ready\n"
        for user in users:  # half written for a while
            store.put_lists("v2", {user: stored_list("v2", "new")})
        store.switch("v2")
        assert printed_json(reader) == ["v1", "v2"]


class ProfileContract(StoreFixtures):
    def test_profile_is_bounded_and_the_last_writer_wins(self, store):
        assert store.read_profile("u") is None
        events = tuple(ProfileEvent(f"o{n}", n, "content") for n in range(MAX_RECENT + 5))
        store.write_profiles(Profile("u", events, ("s1",), 7), Profile("w"))
        assert store.read_profile("u") == Profile("u", events[5:], ("s1",), 7)
        store.write_profiles(Profile("u", (), tuple(map(str, range(300))), 8), Profile("u", (), ("s2",), 6))
        assert store.read_profile("u") == Profile("u", (), ("s2",), 6)
        store.write_profiles(Profile("u", (), tuple(map(str, range(300)))))
        assert store.read_profile("u").segments == tuple(map(str, range(256)))
        assert store.read_profile("w") == Profile("w")


class CapContract(StoreFixtures):
    def test_no_more_reservations_than_the_limit(self, store):
        assert len(self.reserve(store, count=2)) == 2
        assert len(self.reserve(store, count=2)) == 1
        assert self.reserve(store) == []
        assert len(self.reserve(store, limit=5, count=4)) == 2
        assert self.reserve(store, limit=1) == []
        assert self.reserve(store, limit=0, user="w") == []

    def test_users_campaigns_and_days_are_counted_separately(self, store):
        self.reserve(store, count=3)
        assert len(self.reserve(store, user="w", count=3)) == 3
        assert len(self.reserve(store, day=DAY + 1, count=3)) == 3
        caps = [Cap("c", DAY, 3), Cap("d", DAY, 2), Cap("e", DAY - 1, 9)]
        granted = store.reserve("u", caps, now_us=NOON_US, until_us=NOON_US + 5, count=4)
        assert [len(granted[campaign]) for campaign in "cde"] == [0, 2, 4]
        assert len({id_ for ids in granted.values() for id_ in ids}) == 6

    def test_void_reservation_is_free_and_posted_one_is_not(self, store):
        first, second, third = self.reserve(store, count=3)
        assert store.post(first) and store.post(first)
        store.void(first, second)
        store.void(second)
        assert not store.post(second)
        (fourth,) = self.reserve(store, count=3)
        store.void(second)
        assert self.reserve(store) == []
        later_us = NOON_US + 1000
        assert len(self.reserve(store, count=3, now_us=later_us)) == 2  # third and fourth expired
        assert not store.post(third) and not store.post(fourth)
        assert self.reserve(store, now_us=later_us) == []
        store.void()

    def test_reservation_counts_for_its_holder_until_it_is_posted(self, store):
        _, none, own = (self.reserve(store, count=3, holder=name) for name in ("hostile", "hostile", "honest"))
        assert none == [] and all(map(store.post, own)) and self.reserve(store, holder="third") == [] != own

    def test_reservation_expires_at_its_time(self, store):
        assert self.reserve(store, limit=1, for_us=100)
        assert self.reserve(store, limit=1, now_us=NOON_US + 99) == []
        assert len(self.reserve(store, limit=1, now_us=NOON_US + 100)) == 1

    def test_late_impression_counts_if_its_reservation_was_not_purged(self, store):
        (late,) = self.reserve(store, limit=1)
        assert store.post(late)
        assert self.reserve(store, limit=1, now_us=NOON_US + 5000) == []

    @pytest.mark.parametrize("reservation", ["", "no", "00", "0" * 2000, "日本"])
    def test_unknown_reservation_is_ignored(self, store, reservation):
        assert not store.post(reservation)
        store.void(reservation)

    def test_day_that_is_past_only_by_a_doubtful_time_is_not_deleted(self, store):
        (old,) = self.reserve(store, limit=1)
        assert store.post(old)
        later_us = NOON_US + 3 * US_PER_DAY
        for certain_us, is_kept in ((NOON_US, True), (later_us, False)):
            until_us = later_us + 1
            store.reserve("u", [Cap("c", DAY + 3, 9)], now_us=later_us, until_us=until_us, certain_us=certain_us)
            assert store.post(old) == is_kept

    def test_past_days_are_deleted(self, store):
        (old,) = self.reserve(store, limit=1)
        assert store.post(old)
        assert self.reserve(store, limit=1, now_us=NOON_US + 2 * US_PER_DAY) == []
        self.reserve(store, day=DAY + 3, now_us=NOON_US + 3 * US_PER_DAY)
        assert not store.post(old)

    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(st.lists(st.tuples(st.sampled_from(["reserve", "post", "void", "wait"]), st.integers(0, 7)), max_size=25))
    def test_live_reservations_never_exceed_the_limit(self, store, steps):
        """Compare with a count of the live reservations; each example has its own campaign."""
        campaign = f"c{time.monotonic_ns()}"
        limit = 3
        now_us = NOON_US
        until: dict[str, float] = {}  # live reservation -> when it expires; posted ones never do
        ids: list[str] = [""]
        for step, number in steps:
            now_us += 1
            if step == "wait":
                now_us += 20 * number
            elif step == "reserve":
                until = {id_: end for id_, end in until.items() if end > now_us}
                new_ids = self.reserve(
                    store, limit=limit, count=1 + number % 3, campaign=campaign, now_us=now_us, for_us=60
                )
                assert len(new_ids) == min(1 + number % 3, limit - len(until))
                until |= dict.fromkeys(new_ids, now_us + 60)
                ids += new_ids
            elif step == "post":
                id_ = ids[number % len(ids)]
                assert store.post(id_) == (id_ in until)
                until |= {id_: float("inf")} if id_ in until else {}
            elif until.get(id_ := ids[number % len(ids)], float("inf")) < float("inf"):
                store.void(id_)
                del until[id_]

    def test_processes_together_never_exceed_the_limit(self, spec, store):
        code = """
            granted = 0
            for turn in range(60):
                user = f"u{turn % 4}"
                ids = store.reserve(user, [Cap("c", int(sys.argv[2]), 3)], now_us=turn, until_us=10**9)["c"]
                granted += len(ids)
                if ids and turn % 3 == 0:
                    store.void(*ids)
                    granted -= 1
            print(json.dumps(granted))
        """
        assert sum(printed_json(child) for child in [process(code, spec, 1) for _ in range(4)]) == 4 * 3

    def test_killed_process_keeps_its_posted_reservation_only(self, spec, store):
        code = """
            ids = store.reserve("u", [Cap("c", int(sys.argv[2]), 3)], now_us=int(sys.argv[3]), until_us=10**18)["c"]
            assert store.post(*ids)
            print("posted", flush=True)
            now_us = int(sys.argv[3])
            while True:
                other = store.reserve("w", [Cap("c", int(sys.argv[2]), 3)], now_us=now_us, until_us=now_us + 9)["c"]
                store.void(*other)
        """
        child = process(code, spec, DAY, NOON_US)
        assert child.stdout.readline() == "posted\n"
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert len(self.reserve(store, count=3)) == 2
        assert len(self.reserve(store, user="w", count=3, now_us=NOON_US + 9)) == 3


class DeletionContract(StoreFixtures):
    """Retention and erasure."""

    def test_data_older_than_the_retention_is_deleted(self, store):
        after_us = NOON_US
        for version in ("v1", "v2"):
            lists = {f"old{n}": stored_list(version, "ad", at_us=after_us - 1) for n in range(1200)}
            lists |= {
                "young": stored_list(version, "ad", at_us=after_us),
                EVERYBODY: stored_list(version, "ad", at_us=1),
            }
            store.put_lists(version, lists)
            store.switch(version)
        before = ProfileEvent("o", after_us - 1, "ad")
        later = ProfileEvent("p", after_us, "ad")
        from_log = Profile("log", (ProfileEvent("q", 5, "ad"),), (), 9, 9, after_us)
        store.write_profiles(
            Profile("old", (before,), ("s",), after_us - 1),
            Profile("both", (before, later), ("s",), after_us),
            Profile("young", (later,), (), after_us),
            msgspec.structs.replace(from_log, recent=(*from_log.recent, before)),
            msgspec.structs.replace(from_log, user_id="old log", log_read_at_us=after_us - 1),
        )
        assert store.retain(after_us, NOON_US) == 2 * 1200 + 4
        for version in ("v1", "v2"):
            assert [user for user, _ in store.scan(version)] == [EVERYBODY, "young"]
        assert store.read_list("old7") is store.read_profile("old") is store.read_profile("old log") is None
        assert store.read_profile("both") == Profile("both", (later,), ("s",), after_us)
        assert store.read_profile("young").recent == (later,)
        assert store.read_profile("log") == from_log
        assert store.retain(after_us, NOON_US) == 0

    def test_erased_user_is_deleted_from_lists_profiles_and_caps(self, store):
        """Also as an extended ID of any source. Letters that are patterns of a server stand for themselves."""
        gone = ("gone", "id5-sync.com:gone", "t[1]*", "a.b:t[1]*")
        kept = ("stays", "gone2", "go", "nodomain:gone", "a.b:t1x")
        reservations = self.fill(store, *gone, *kept)
        store.erase("gone", "t[1]*", "never was")
        for user in gone:
            assert store.read_list(user) is store.read_profile(user) is None
            assert not any(map(store.post, reservations[user]))
            assert len(self.reserve(store, user, count=3)) == 3
        for user in kept:
            assert store.read_list(user).version == "v2"
            assert store.read_profile(user).user_id == user
            assert self.reserve(store, user) == []
            assert all(map(store.post, reservations[user]))
        assert [user for user, _ in store.scan("v1")] == sorted(kept)


class StoreContract(ListContract, ProfileContract, CapContract, DeletionContract):
    """All that a store must fulfil."""
