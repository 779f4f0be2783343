"""What every store owes serving; test_store.py runs it for each of them, with real processes beside the test's own."""

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
ODD_USERS = ["a", "a:b", "a\nb", "B", "é", "日本", "x" * 400]
NO_USERS = ["", "a\0b", "x" * 401, "\ud800"]


def made(version, *ads, at_us=1):
    return StoredList(version, at_us, ads, tuple(-0.5 * place for place in range(len(ads))))


def process(code, *arguments):
    """Another Python that runs `code` with `store` opened from the first argument."""
    start = "import json, sys, time\nfrom leadre.store import open_store\nfrom leadre.store.contract import *\n"
    code = start + "store = open_store(sys.argv[1], timeout_ms=2000)\n" + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def told(child):
    """What the other process printed, as JSON."""
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    return json.loads(out)


class StoreContract:
    """Subclasses give the fixture `spec`, a name for `open_store` under which there is nothing yet."""

    @pytest.fixture
    def store(self, spec):
        opened = open_store(spec, timeout_ms=2000)
        yield opened
        opened.close()

    def reserve(self, store, user="u", limit=3, count=1, day=DAY, campaign="c", now_us=NOON_US, for_us=100):
        caps = [Cap(campaign, day, limit)]
        return store.reserve(user, caps, now_us=now_us, until_us=now_us + for_us, count=count)[campaign]

    # Lists

    def test_a_list_is_read_from_the_current_version(self, store):
        assert store.read_list("u") is None
        store.put_lists("v1", {"u": made("v1", "ad1", "ad2"), "w": made("v1", "ad3")})
        assert store.read_list("u") is None
        store.switch("v1")
        assert store.read_list("u") == StoredList("v1", 1, ("ad1", "ad2"), (0.0, -0.5))
        assert store.read_list("w") == made("v1", "ad3")
        assert store.read_list("nobody") is None

    def test_switch_and_rollback_change_all_lists_at_once(self, store):
        for version in ("v1", "v2"):
            store.put_lists(version, {"u": made(version, "ad"), "w": made(version, "ad")})
            store.switch(version)
            store.switch(version)
        store.put_lists("v3", {"u": made("v3", "ad")})
        assert store.versions().names == ("v1", "v2", "v3")
        assert store.versions().current == "v2" == store.read_list("u").version
        assert store.rollback() == "v1" == store.read_list("u").version == store.read_list("w").version
        with pytest.raises(InputError, match="nothing to roll back to"):
            store.rollback()
        assert store.read_list("u").version == "v1"

    def test_a_version_is_dropped_unless_it_is_current(self, store):
        for version in ("v1", "v2"):
            store.put_lists(version, {"u": made(version, "ad")})
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
    def test_a_version_has_a_plain_name(self, store, version):
        with pytest.raises(InputError, match="use up to 64 letters"):
            store.put_lists(version, {"u": made("v", "ad")})
        with pytest.raises(InputError, match="only none at all"):
            store.switch(version)

    def test_writing_again_changes_nothing_and_a_dump_says_so(self, store):
        lists = {f"user{n}": made("v1", f"ad{n}") for n in range(2100)}
        store.put_lists("v1", lists)
        first = list(dump(store, "v1"))
        store.put_lists("v1", {user: made("v1", f"ad{user[4:]}", at_us=99) for user in list(lists)[::-3]})
        assert list(dump(store, "v1")) == first
        assert [json.loads(line) for line in first] == [
            [user, list(one.ad_ids), list(one.log_p)] for user, one in sorted(lists.items())
        ]
        store.put_lists("v1", {"user7": made("v1", "other")})
        assert list(dump(store, "v1")) != first

    def test_users_of_any_spelling(self, store):
        store.put_lists("v1", {user: made("v1", user) for user in ODD_USERS})
        store.switch("v1")
        store.write_profiles(*(Profile(user, updated_at_us=len(user)) for user in ODD_USERS))
        for user in ODD_USERS:
            assert store.read_list(user).ad_ids == (user,)
            assert store.read_profile(user).user_id == user
            assert len(self.reserve(store, user)) == 1
        assert [user for user, _ in store.scan("v1")] == sorted(ODD_USERS)

    @pytest.mark.parametrize("user", NO_USERS)
    def test_who_cannot_be_a_user_is_not_found_and_not_written(self, store, user):
        store.put_lists("v1", {"u": made("v1", "ad")})
        store.switch("v1")
        assert store.read_list(user) is None
        assert store.read_profile(user) is None
        store.erase(user)
        for write in (
            lambda: store.put_lists("v1", {user: made("v1", "ad")}),
            lambda: store.write_profiles(Profile(user)),
            lambda: self.reserve(store, user),
        ):
            with pytest.raises(InputError, match="400 bytes of UTF-8 without NUL"):
                write()

    def test_readers_see_a_whole_old_or_a_whole_new_version(self, spec, store):
        users = [f"u{n}" for n in range(40)]
        store.put_lists("v1", {user: made("v1", "old") for user in users})
        store.switch("v1")
        reader = process(
            """
            seen, until = [store.read_list("u0").version], time.monotonic() + 30
            print("ready", flush=True)
            while seen[-1:] != ["v2"] and time.monotonic() < until:
                for n in range(40):
                    one = store.read_list(f"u{n}")
                    assert one.ad_ids == {"v1": ("old",), "v2": ("new",)}[one.version]
                    if seen[-1:] != [one.version]:
                        seen.append(one.version)
            print(json.dumps(seen))
            """,
            spec,
        )
        assert reader.stdout.readline() == "ready\n"
        for user in users:  # half written for a while
            store.put_lists("v2", {user: made("v2", "new")})
        store.switch("v2")
        assert told(reader) == ["v1", "v2"]

    def test_a_read_is_well_under_a_millisecond(self, store):
        long = made("v1", *(f"ad-{n:08d}" for n in range(100)))
        store.put_lists("v1", {f"u{n}": long for n in range(2000)})
        store.switch("v1")
        times = []
        for n in range(300):
            start_s = time.perf_counter()
            assert store.read_list(f"u{n}") == long
            times.append(time.perf_counter() - start_s)
        assert sorted(times)[len(times) // 2] < 0.001

    # Profiles

    def test_a_profile_is_bounded_and_the_last_writer_has_the_say(self, store):
        assert store.read_profile("u") is None
        seen = tuple(ProfileEvent(f"o{n}", n, "content") for n in range(MAX_RECENT + 5))
        store.write_profiles(Profile("u", seen, ("s1",), 7), Profile("w"))
        assert store.read_profile("u") == Profile("u", seen[5:], ("s1",), 7)
        store.write_profiles(Profile("u", (), tuple(map(str, range(300))), 8), Profile("u", (), ("s2",), 6))
        assert store.read_profile("u") == Profile("u", (), ("s2",), 6)
        store.write_profiles(Profile("u", (), tuple(map(str, range(300)))))
        assert store.read_profile("u").segments == tuple(map(str, range(256)))
        assert store.read_profile("w") == Profile("w")

    # Caps

    def test_no_more_than_the_limit(self, store):
        assert len(self.reserve(store, count=2)) == 2
        assert len(self.reserve(store, count=2)) == 1
        assert self.reserve(store) == []
        assert len(self.reserve(store, limit=5, count=4)) == 2
        assert self.reserve(store, limit=1) == []
        assert self.reserve(store, limit=0, user="w") == []

    def test_users_campaigns_and_days_are_counted_apart(self, store):
        self.reserve(store, count=3)
        assert len(self.reserve(store, user="w", count=3)) == 3
        assert len(self.reserve(store, day=DAY + 1, count=3)) == 3
        caps = [Cap("c", DAY, 3), Cap("d", DAY, 2), Cap("e", DAY - 1, 9)]
        granted = store.reserve("u", caps, now_us=NOON_US, until_us=NOON_US + 5, count=4)
        assert [len(granted[campaign]) for campaign in "cde"] == [0, 2, 4]
        assert len({one for ids in granted.values() for one in ids}) == 6

    def test_a_released_place_is_free_and_a_kept_one_is_not(self, store):
        first, second, third = self.reserve(store, count=3)
        assert store.keep(first) and store.keep(first)
        store.release(first, second)
        store.release(second)
        assert not store.keep(second)
        (fourth,) = self.reserve(store, count=3)
        store.release(second)
        assert self.reserve(store) == []
        later_us = NOON_US + 1000
        assert len(self.reserve(store, count=3, now_us=later_us)) == 2  # third and fourth ran out
        assert not store.keep(third) and not store.keep(fourth)
        assert self.reserve(store, now_us=later_us) == []
        store.release()

    def test_a_place_is_held_until_its_time_and_no_longer(self, store):
        self.reserve(store, limit=1, for_us=100)
        assert self.reserve(store, limit=1, now_us=NOON_US + 99) == []
        assert len(self.reserve(store, limit=1, now_us=NOON_US + 100)) == 1

    def test_a_late_impression_counts_where_nobody_took_its_place(self, store):
        (late,) = self.reserve(store, limit=1)
        assert store.keep(late)
        assert self.reserve(store, limit=1, now_us=NOON_US + 5000) == []

    @pytest.mark.parametrize("reservation", ["", "no", "00", "0" * 2000, "日本"])
    def test_what_is_no_reservation_is_nothing(self, store, reservation):
        assert not store.keep(reservation)
        store.release(reservation)

    def test_days_gone_by_are_forgotten(self, store):
        (old,) = self.reserve(store, limit=1)
        assert store.keep(old)
        assert self.reserve(store, limit=1, now_us=NOON_US + 2 * US_PER_DAY) == []
        self.reserve(store, day=DAY + 3, now_us=NOON_US + 3 * US_PER_DAY)
        assert not store.keep(old)

    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(st.lists(st.tuples(st.sampled_from(["reserve", "keep", "release", "wait"]), st.integers(0, 7)), max_size=25))
    def test_never_more_than_the_limit_whatever_happens(self, store, steps):
        """Against a plain count of what is live, in a campaign of its own for each example."""
        campaign, limit, now_us = f"c{time.monotonic_ns()}", 3, NOON_US
        until: dict[str, float] = {}  # of live reservations; kept ones have no end
        ids: list[str] = [""]
        for step, number in steps:
            now_us += 1
            if step == "wait":
                now_us += 20 * number
            elif step == "reserve":
                until = {one: end for one, end in until.items() if end > now_us}
                fresh = self.reserve(
                    store, limit=limit, count=1 + number % 3, campaign=campaign, now_us=now_us, for_us=60
                )
                assert len(fresh) == min(1 + number % 3, limit - len(until))
                until |= dict.fromkeys(fresh, now_us + 60)
                ids += fresh
            elif step == "keep":
                one = ids[number % len(ids)]
                assert store.keep(one) == (one in until)
                until |= {one: float("inf")} if one in until else {}
            elif until.get(one := ids[number % len(ids)], float("inf")) < float("inf"):
                store.release(one)
                del until[one]

    def test_processes_together_never_take_more_than_the_limit(self, spec, store):
        code = """
            granted, kept = 0, 0
            for turn in range(60):
                user = f"u{turn % 4}"
                ids = store.reserve(user, [Cap("c", int(sys.argv[2]), 3)], now_us=turn, until_us=10**9)["c"]
                granted += len(ids)
                if ids and turn % 3 == 0:
                    store.release(*ids)
                    granted -= 1
            print(json.dumps(granted))
        """
        assert sum(told(child) for child in [process(code, spec, 1) for _ in range(4)]) == 4 * 3

    def test_a_killed_process_takes_its_places_with_it_and_no_more(self, spec, store):
        code = """
            ids = store.reserve("u", [Cap("c", int(sys.argv[2]), 3)], now_us=int(sys.argv[3]), until_us=10**18)["c"]
            assert store.keep(*ids)
            print("taken", flush=True)
            now_us = int(sys.argv[3])
            while True:
                other = store.reserve("w", [Cap("c", int(sys.argv[2]), 3)], now_us=now_us, until_us=now_us + 9)["c"]
                store.release(*other)
        """
        child = process(code, spec, DAY, NOON_US)
        assert child.stdout.readline() == "taken\n"
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert len(self.reserve(store, count=3)) == 2
        assert len(self.reserve(store, user="w", count=3, now_us=NOON_US + 9)) == 3

    # Retention

    def test_what_is_too_old_is_forgotten_and_nothing_younger(self, store):
        after_us = NOON_US
        for version in ("v1", "v2"):
            lists = {f"old{n}": made(version, "ad", at_us=after_us - 1) for n in range(1200)}
            lists |= {"young": made(version, "ad", at_us=after_us), EVERYBODY: made(version, "ad", at_us=1)}
            store.put_lists(version, lists)
            store.switch(version)
        before, later = ProfileEvent("o", after_us - 1, "ad"), ProfileEvent("p", after_us, "ad")
        out_of_a_log = Profile("log", (ProfileEvent("q", 5, "ad"),), (), 9, 9, after_us)
        store.write_profiles(
            Profile("old", (before,), ("s",), after_us - 1),
            Profile("both", (before, later), ("s",), after_us),
            Profile("young", (later,), (), after_us),
            msgspec.structs.replace(out_of_a_log, recent=(*out_of_a_log.recent, before)),
            msgspec.structs.replace(out_of_a_log, user_id="old log", log_read_at_us=after_us - 1),
        )
        assert store.retain(after_us, NOON_US) == 2 * 1200 + 4
        for version in ("v1", "v2"):
            assert [user for user, _ in store.scan(version)] == [EVERYBODY, "young"]
        assert store.read_list("old7") is store.read_profile("old") is store.read_profile("old log") is None
        assert store.read_profile("both") == Profile("both", (later,), ("s",), after_us)
        assert store.read_profile("young").recent == (later,)
        assert store.read_profile("log") == out_of_a_log
        assert store.retain(after_us, NOON_US) == 0

    # Erasure

    def fill(self, store, *users):
        for version in ("v1", "v2"):
            store.put_lists(version, {user: made(version, "ad") for user in users})
            store.switch(version)
        store.write_profiles(*(Profile(user, (ProfileEvent("o", 1, "ad"),)) for user in users))
        return {user: self.reserve(store, user, count=3) for user in users}

    def test_who_is_erased_is_gone_from_everywhere(self, store):
        held = self.fill(store, "gone", "too", "stays", "gone2", "go")
        store.erase("gone", "too", "never was")
        for user in ("gone", "too"):
            assert store.read_list(user) is store.read_profile(user) is None
            assert not any(map(store.keep, held[user]))
            assert len(self.reserve(store, user, count=3)) == 3
        for user in ("stays", "gone2", "go"):
            assert store.read_list(user).version == "v2"
            assert store.read_profile(user).user_id == user
            assert self.reserve(store, user) == []
            assert all(map(store.keep, held[user]))
        assert [user for user, _ in store.scan("v1")] == ["go", "gone2", "stays"]
