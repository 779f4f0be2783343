"""Lists for every user as of a moment: prompts, candidates, resumed runs and versions."""

import dataclasses
import re
import shutil
import time

import numpy as np
import polars as pl
import pytest

from leadre import artifact
from leadre.__main__ import main
from leadre.data import histories
from leadre.data.moment import as_of
from leadre.errors import InputError
from leadre.generate.lists import job as lists
from leadre.generate.lists import profiles as remembered
from leadre.generate.lists.leases import BatchLeases
from leadre.store import open_store
from leadre.store.contract import EVERYBODY, StoredList
from leadre.tune.threads import ThreadBuilder
from leadre.units import US_PER_DAY

from ..tiny import LISTS, argv, done, lines_of


@pytest.fixture(scope="module")
def logs(work):
    return histories.load(artifact.read(work / "r" / "data", artifact.TABLES))


# The moment


def test_prompt_is_that_of_a_log_which_ends_now(small):
    logs = small.logs
    now_us = int(np.quantile(logs.at_us_E, 0.7))
    users = np.arange(0, len(logs.users), 2)
    ads = logs.inventory(0)
    moments = as_of(logs, now_us, users, ads)
    assert moments.user_M.tolist() == users.tolist()
    assert all(moment.inventory.ads.tolist() == ads.tolist() for moment in moments)
    prompts = prompts_of(small, moments)
    past = prompts_of(small, as_of(cut(logs, now_us), now_us, users, ads))
    assert all(np.array_equal(prompt, then) for prompt, then in zip(prompts, past, strict=True))
    later = prompts_of(small, as_of(logs, now_us + 30 * US_PER_DAY, users, ads))
    assert any(not np.array_equal(prompt, then) for prompt, then in zip(prompts, later, strict=True))


def prompts_of(small, moments):
    """The serving prompt of each moment, one thread a user."""
    threads = ThreadBuilder(small.prompter(moments.logs), moments)
    written = [threads.write(window) for window in threads.serving(np.arange(len(moments)))]
    assert [thread.requests.tolist() for thread in written] == [[m] for m in range(len(moments))]
    return [thread.ids for thread in written]


def cut(logs, now_us):
    """The log without events from ``now_us`` on; requests stay."""
    kept = logs.at_us_E < now_us
    before = np.concatenate([[0], np.cumsum(kept)])
    named = {field.name: getattr(logs, field.name) for field in dataclasses.fields(logs) if field.name.endswith("_E")}
    return dataclasses.replace(
        logs, event_offsets=before[logs.event_offsets], **{name: values[kept] for name, values in named.items()}
    )


def test_users_of_have_an_event_in_the_span(hand):
    logs = hand([(0, 10, 0, 1, 0), (2, 20, 1, 1, 0), (2, 30, 0, 2, 0), (3, 40, 0, 1, 0)])
    for since_us, now_us, expected in ((None, 0, [0, 1, 2, 3]), (20, 99, [2, 3]), (11, 40, [2]), (41, 99, [])):
        assert lists.users_of(logs, now_us, since_us).tolist() == expected


def test_candidates_were_live_lately_and_are_not_ended(small):
    logs = small.logs
    now_us = int(logs.request_at_us_R.max()) + 1
    recent = np.flatnonzero(logs.request_at_us_R >= now_us - 3 * US_PER_DAY)
    expected = set(np.concatenate([logs.inventory(r) for r in recent]).tolist())
    assert set(lists.candidates(logs, now_us, 3).tolist()) == expected
    first, second = sorted(expected)[:2]
    when = pl.Series([now_us if n == second else None for n in range(len(logs.ads))], dtype=pl.Datetime("us", "UTC"))
    status = pl.Series(["paused" if n == first else None for n in range(len(logs.ads))], dtype=pl.String)
    changed = dataclasses.replace(logs, ads=logs.ads.with_columns(status=status, ends_at=when))
    assert set(lists.candidates(changed, now_us, 3).tolist()) == expected - {first, second}
    with pytest.raises(InputError, match="no ad was live in the 1 days before now; check --now"):
        lists.candidates(logs, int(logs.request_at_us_R.min()), 1)


def test_user_named_as_the_popular_list_gets_no_list(logs):
    names = logs.users["user_id"].to_list()
    renamed = dataclasses.replace(logs, users=logs.users.with_columns(user_id=pl.Series([EVERYBODY, *names[1:]])))
    now_us = int(logs.at_us_E.max()) + 1
    for since_us in (None, 0):
        users = lists.users_of(logs, now_us, since_us).tolist()
        assert users[0] == 0 and lists.users_of(renamed, now_us, since_us).tolist() == users[1:]


# The verb


def test_every_user_has_a_sorted_list_of_live_ads(work, logs, undisturbed):
    store = open_store(f"lmdb:{work / 'r' / 'state' / 'lists'}")
    current = store.versions().current
    last = logs.at_us_E.max() + 1
    live = set(logs.ads["ad_id"].gather(lists.candidates(logs, last, 7)).to_list())
    lists_of = dict(store.scan(current))
    for_others = lists_of.pop(EVERYBODY)
    assert set(for_others.ad_ids) <= live and for_others.version == current and len(for_others.ad_ids) == 10
    assert sorted(lists_of) == logs.users["user_id"].to_list()
    assert re.fullmatch(r"\d{8}T\d{6}-[0-9a-f]{12}", current)
    for stored in lists_of.values():
        assert stored.version == current and set(stored.ad_ids) <= live
        assert len(set(stored.ad_ids)) == len(stored.ad_ids) == 10
        assert list(stored.log_p) == sorted(stored.log_p, reverse=True)
    assert len({stored.ad_ids for stored in lists_of.values()}) > 10
    store.close()


def test_lists_are_those_of_the_model(work, logs, undisturbed):
    """Asked one by one, a user gets the same ads."""
    store = open_store(f"lmdb:{work / 'r' / 'state' / 'lists'}")
    now_us = int(logs.at_us_E.max()) + 1
    moments = as_of(logs, now_us, np.arange(len(logs.users)), lists.candidates(logs, now_us, 7))
    from leadre.generate import batch

    parents = [
        artifact.read(work / "r" / step, kind)
        for step, kind in (("data", artifact.TABLES), ("semid", artifact.CODEBOOK), ("tune-sft", artifact.MODEL))
    ]
    engine = batch.load(*parents, training=False, threads=1, moments=moments)
    for r in range(5):
        (ranked,) = engine.answer(engine.threads.serving([r]), ("all",), 12)
        stored = store.read_list(logs.users["user_id"][int(moments.user_M[r])])
        objects = [int(logs.ad_object_A[logs.ads["ad_id"].index_of(ad)]) for ad in stored.ad_ids]
        assert list(dict.fromkeys(objects)) == ranked.objects[: len(set(objects))].tolist()
        np.testing.assert_allclose(stored.log_p[0], ranked.log_p[0], atol=1e-3)
    store.close()


def test_profiles_and_popular_list_are_written_beside_the_lists(work, logs, undisturbed):
    store = open_store(f"lmdb:{work / 'r' / 'state' / 'lists'}")
    now_us = int(logs.at_us_E.max()) + 1
    for profile in remembered.profiles(logs, now_us, np.arange(len(logs.users))):
        stored = store.read_profile(profile.user_id)
        assert (stored.recent, stored.updated_at_us, stored.log_until_us) == (profile.recent, now_us, now_us)
        assert stored.recent and stored.log_read_at_us > time.time_ns() // 1000 - 3600 * 1_000_000
    popular = remembered.popular(logs, now_us, lists.candidates(logs, now_us, 7), store.versions().current, 10)
    assert store.read_list(EVERYBODY).ad_ids == popular.ad_ids
    store.close()


def test_second_run_does_nothing(work, undisturbed, capsys):
    capsys.readouterr()
    assert main(argv("generate lists", work, LISTS)) == 0
    assert re.search(r"version \S+ is current in lmdb:\S+, nothing to do", capsys.readouterr().err)


def test_number_of_users_is_printed_before_the_lists_are_generated(work, tmp_path, capsys):
    assert main(argv("generate lists", work, f"{LISTS} --store lmdb:{tmp_path}")) == 0
    lines = capsys.readouterr().err.splitlines()
    users = "generate: a list for each of 60 users, 4 at a time; the time left is known after the first of them"
    assert lines[0].startswith("generate: reads the logs") and lines.index(users) < lines.index(
        "generate: users: 60 to do"
    )


def test_killed_run_resumes_and_readers_keep_the_old_version(work, undisturbed, tmp_path, monkeypatch):
    spec = f"lmdb:{tmp_path / 'store'}"
    store = open_store(spec)
    old = StoredList("old", 0, ("an ad",), (0.0,))
    user = "user-none"
    store.put_lists("old", {user: old})
    store.switch("old")
    finish = BatchLeases.finish
    calls = []

    def killed_at_third(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return finish(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(BatchLeases, "finish", killed_at_third)
        assert main(argv("generate lists", work, f"{LISTS} --store {spec}")) == 130
    assert store.versions().current == "old" and store.read_list(user) == old
    assert done(work) == 2
    elsewhere = f"lmdb:{tmp_path / 'elsewhere'}"
    shutil.copytree(work / "r" / ".generate-lists", tmp_path / "leases")
    assert main(argv("generate lists", work, f"{LISTS} --store {elsewhere}")) == 0
    assert lines_of(elsewhere) == undisturbed  # what is done for one store is not done for another
    shutil.copytree(tmp_path / "leases", work / "r" / ".generate-lists")
    with monkeypatch.context() as patch:
        patch.setattr(BatchLeases, "finish", lambda self, *args: calls.append(args) or finish(self, *args))
        assert main(argv("generate lists", work, f"{LISTS} --store {spec}")) == 0
    assert len(calls) == 3 + 60 // 4 - 2
    assert lines_of(spec) == undisturbed
    new = store.versions().current
    for flags, current in (("", "old"), (f" --to {new}", new)):
        assert main(argv("generate switch", work, f"--store {spec}{flags}")) == 0
        assert store.versions().current == current
    assert main(argv("generate switch", work, f"--store {spec} --to none-such")) == 2
    store.close()


def test_users_without_new_events_keep_their_lists(work, logs, tmp_path, capsys):
    spec = f"lmdb:{tmp_path / 'store'}"
    flags = f"{LISTS} --store {spec}"
    since_us = int(np.sort(logs.at_us_E)[-5])
    since = f"--changed-since {np.datetime64(since_us, 'us')}Z"
    assert main(argv("generate lists", work, f"{flags} {since}")) == 2
    assert "has no current lists to keep; run without it first" in capsys.readouterr().err
    earlier = f"--now {np.datetime64(since_us, 'us')}Z"
    assert main(argv("generate lists", work, f"{flags} {earlier}")) == 0
    store = open_store(spec)
    first = store.versions().current
    before = dict(store.scan(first))
    assert main(argv("generate lists", work, f"{flags} {since} --keep 1")) == 0
    second = store.versions().current
    changed = {logs.users["user_id"][int(u)] for u in lists.users_of(logs, 1 << 60, since_us)}
    assert 0 < len(changed) <= 5
    changed.add(EVERYBODY)
    after = dict(store.scan(second))
    assert {user for user, stored in after.items() if stored.version == second} == changed
    assert {user: stored for user, stored in after.items() if user not in changed} == {
        user: stored for user, stored in before.items() if user not in changed
    }
    assert store.versions().names == (second,)
    store.close()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--beam 0", "command line, --beam: must be at least 1, got 0"),
        ("--live-days 0", "command line, --live-days: must be at least 1, got 0"),
        ("--now yesterday", "--now 'yesterday': must be an ISO time"),
        ("--now 1999-01-01", "no ad was live in the 7 days before now"),
        ("--store here", "store 'here': wants lmdb:FOLDER"),
    ],
)
def test_invalid_option_is_one_line(work, tmp_path, capsys, flags, says):
    capsys.readouterr()
    assert main(argv("generate lists", work, f"--store lmdb:{tmp_path} {flags}")) == 2
    assert f"leadre: {says}" in capsys.readouterr().err
