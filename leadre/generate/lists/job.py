"""A list for every user, ahead of any request, into the store that serving reads.

The log is seen as of one moment, *now*, at which every user is asked about once, in no placement. Users are cut into
batches, which stay the same whoever works on them: the last bits of a score hang on who shares a batch. Worker
processes lease batches in a SQLite file; what a killed worker had leased is leased again, and a list that is written
twice is the same list. Readers see the new version when all of it is there. Users who were erased get none, also those
who are erased meanwhile (`erased.locked`).
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre import artifact, database, progress, scale
from leadre.data import histories
from leadre.data.histories import TEST, Logs
from leadre.errors import InputError, ShardError, StoreDown
from leadre.generate import batch as batches
from leadre.generate.batch import TunedSearcher
from leadre.store import erased, open_store
from leadre.store.contract import Profile, Store, StoredList
from leadre.tune.answers import answer
from leadre.tune.threads import Window
from leadre.units import US_PER_DAY, US_PER_S

TIMEOUT_MS = 1000.0  # nobody waits for a page here
RETRY_S, POLL_S = 0.25, 0.5
MAX_DEATHS = 3
PAGE = 1000
MIGRATIONS = (
    """CREATE TABLE batches (version TEXT NOT NULL, batch INTEGER NOT NULL, owner TEXT, until_us INTEGER NOT NULL
    DEFAULT 0, done_at_us INTEGER, PRIMARY KEY (version, batch)) WITHOUT ROWID""",
)

T = TypeVar("T")
Int = TypeVar("Int", np.int8, np.int32, np.int64)


@dataclass(frozen=True, kw_only=True)
class ListJob:
    """What a worker process needs to know. ``since_us``: only users with an event from then on, None = all."""

    tables: Path
    codebook: Path
    model: Path
    leases: Path
    store: str
    erased: Path  # `leadre.store.erased`
    version: str
    now_us: int
    since_us: int | None
    live_days: int
    beam: int
    top: int
    batch: int  # users
    seed: int
    threads: int
    lease_s: float
    wait_s: float  # for a store that is down


def users_of(logs: Logs, now_us: int, since_us: int | None) -> NDArray[np.int64]:
    """All users, or those with an event that counts from ``since_us`` until before ``now_us``."""
    if since_us is None:
        return np.arange(len(logs.event_offsets) - 1)
    recent_E = (logs.at_us_E >= since_us) & (logs.at_us_E < now_us)
    before_E = np.concatenate([[0], np.cumsum(recent_E)])
    return np.flatnonzero(np.diff(before_E[logs.event_offsets]))


def candidates(logs: Logs, now_us: int, live_days: int) -> NDArray[np.int32]:
    """Ads that were live in a request of the last ``live_days`` and have not been paused or ended; ascending."""
    recent_R = (logs.request_at_us_R >= now_us - live_days * US_PER_DAY) & (logs.request_at_us_R < now_us)
    inventories = np.unique(logs.request_inventory_R[recent_R])
    rows = [logs.inventory_ads[slice(*logs.inventory_offsets[i : i + 2])] for i in inventories]
    ads = np.unique(np.concatenate([*rows, np.zeros(0, np.int32)]))
    active = pl.col("status").fill_null("active") == "active"
    runs = (pl.col("ends_at").dt.epoch("us") > now_us).fill_null(True)
    alive: NDArray[np.int32] = ads[logs.ads.select(active & runs).to_series().to_numpy()[ads]]
    if not len(alive):
        raise InputError(f"no ad was live in the {live_days} days before now; check --now or raise --live-days")
    return alive


def as_of(logs: Logs, now_us: int, users: NDArray[np.int64], ads: NDArray[np.int32]) -> tuple[Logs, NDArray[np.int64]]:
    """(the log with one more request of each user, in no placement, with ``ads`` live; the numbers of these requests).

    They stand after all others, so requests no longer ascend by user; among themselves they do.
    """
    count, before = len(users), len(logs.request_user_R)
    no_answer = np.full(count, logs.relevant_offsets[-1])

    def more(values: NDArray[Int], fresh: int | NDArray[np.int64]) -> NDArray[Int]:
        return np.concatenate([values, np.broadcast_to(fresh, count).astype(values.dtype)])

    extended = dataclasses.replace(
        logs,
        request_user_R=more(logs.request_user_R, users),
        request_at_us_R=more(logs.request_at_us_R, now_us),
        request_placement_R=more(logs.request_placement_R, -1),
        request_inventory_R=more(logs.request_inventory_R, len(logs.inventory_offsets) - 1),
        request_split_R=more(logs.request_split_R, TEST),
        relevant_offsets=more(logs.relevant_offsets, no_answer),
        inventory_offsets=np.append(logs.inventory_offsets, logs.inventory_offsets[-1] + len(ads)),
        inventory_ads=np.concatenate([logs.inventory_ads, ads]),
    )
    return extended, before + np.arange(count)


class BatchLeases:
    """Batches of one version: free, leased until a time, or done. Each is recorded as done once."""

    def __init__(self, path: Path, version: str) -> None:
        self.version = version
        self.connection = database.connect(path, MIGRATIONS)

    def start(self, count: int) -> None:
        """Make the batches that are not there yet and free those that are not done: nobody works on them now."""
        with database.transaction(self.connection):
            rows = [(self.version, number) for number in range(count)]
            self.connection.executemany("INSERT OR IGNORE INTO batches (version, batch) VALUES (?, ?)", rows)
            self.connection.execute("UPDATE batches SET until_us = 0 WHERE version = ?", (self.version,))

    def take(self, owner: str, now_us: int, until_us: int) -> int | None:
        """A batch that is neither done nor leased by another; None where there is none at the moment."""
        with database.transaction(self.connection):
            found = self._one(
                "SELECT min(batch) FROM batches WHERE version = ? AND done_at_us IS NULL AND until_us <= ?", now_us
            )
            self.connection.execute(
                "UPDATE batches SET owner = ?, until_us = ? WHERE version = ? AND batch = ?",
                (owner, until_us, self.version, found),
            )
        return found

    def finish(self, number: int, now_us: int) -> bool:
        """Whether this was the first to finish the batch."""
        with database.transaction(self.connection):
            changed = self.connection.execute(
                "UPDATE batches SET done_at_us = ? WHERE version = ? AND batch = ? AND done_at_us IS NULL",
                (now_us, self.version, number),
            )
        return changed.rowcount == 1

    def forget(self) -> None:
        """Nothing is done."""
        with database.transaction(self.connection):
            self.connection.execute("DELETE FROM batches WHERE version = ?", (self.version,))

    def left(self) -> int:
        return self._one("SELECT count(*) FROM batches WHERE version = ? AND done_at_us IS NULL") or 0

    def close(self) -> None:
        self.connection.close()

    def _one(self, query: str, *values: int) -> int | None:
        (found,) = self.connection.execute(query, (self.version, *values)).fetchone()
        return None if found is None else int(found)


def generate(job: ListJob, user_ids: Sequence[str], workers: int) -> None:
    """Lists of all users of a job into its store; what an earlier run finished is not done again.

    A worker that dies is replaced, unless three in a row died and nothing got finished meanwhile (ShardError); other
    errors end the run (StoreDown).
    """
    users = len(user_ids)
    count = -(-users // job.batch)
    with closing(BatchLeases(job.leases, job.version)) as leases:
        for _ in range(2):
            leases.start(count)
            with _shown(job, users, count):
                deaths = 0  # in a row
                while left := leases.left():
                    died = _work_all(job, workers)
                    deaths = deaths + 1 if leases.left() == left else 0
                    if died is not None and deaths == MAX_DEATHS:
                        raise died
                    leases.start(count)
            if not patiently(partial(_missing, job, user_ids), job.wait_s):
                return
            progress.say(
                "generate: the store lost lists, or an earlier run had another store; all of them are made again"
            )
            leases.forget()
    raise StoreDown(f"store {job.store.partition(':')[0]}: loses lists of {job.version} while they are written")


def _work_all(job: ListJob, workers: int) -> ShardError | None:
    """One generation of workers; ends when all is done, or one of them died, which is what it returns."""
    backend: scale.Backend = "serial" if workers == 1 else "processes"
    try:
        scale.map_shards(partial(work, job), [str(n) for n in range(workers)], workers, backend)
    except ShardError as error:
        if isinstance(error.__cause__, StoreDown):
            raise error.__cause__ from error
        if error.__cause__ is not None:
            raise
        progress.say("generate: a worker died; others take up what it had begun")
        return error
    return None


def _missing(job: ListJob, user_ids: Sequence[str]) -> set[str]:
    """The users who should have a list of this version in the store, and have none."""
    is_erased = erased.load(job.erased)
    with closing(open_store(job.store, timeout_ms=TIMEOUT_MS)) as store:
        written = {user for user, one in store.scan(job.version) if one.version == job.version}
    return {user for user in user_ids if user not in written and not is_erased(user)}


def work(job: ListJob, worker: str) -> int:
    """Answer batches until none is left; returns how many. Runs in a process of its own."""
    owner, done = f"{os.getpid()}/{worker}", 0
    with (
        closing(BatchLeases(job.leases, job.version)) as leases,
        closing(open_store(job.store, timeout_ms=TIMEOUT_MS)) as s,
    ):
        engine, requests = load(job)
        windows = engine.threads.serving(requests)
        tokens_V = engine.threads.tokens_V
        windows.sort(key=lambda window: int(tokens_V[window.stop] - tokens_V[window.start]))  # stable: ties by user
        while leases.left():
            now_us = time.time_ns() // 1000
            number = leases.take(owner, now_us, now_us + int(job.lease_s * US_PER_S))
            if number is None:  # all are leased: wait, as one of their owners may be dead
                time.sleep(POLL_S)
                continue
            lists = dict(_lists(job, engine, windows[number * job.batch : (number + 1) * job.batch]))
            patiently(partial(put, s, job.version, lists, job.erased), job.wait_s)
            done += leases.finish(number, time.time_ns() // 1000)
    return done


def load(job: ListJob) -> tuple[TunedSearcher, NDArray[np.int64]]:
    """The model, and the request of each user among those of its log."""
    tables = artifact.read(job.tables, artifact.TABLES)
    codebook = artifact.read(job.codebook, artifact.CODEBOOK)
    model = artifact.read(job.model, artifact.MODEL)
    logs = histories.load(tables)
    users, ads = users_of(logs, job.now_us, job.since_us), candidates(logs, job.now_us, job.live_days)
    logs, requests = as_of(logs, job.now_us, users, ads)
    return batches.load(tables, codebook, model, training=False, threads=job.threads, logs=logs), requests


def _lists(job: ListJob, engine: TunedSearcher, windows: list[Window]) -> Iterator[tuple[str, StoredList]]:
    logs, made_at_us = engine.threads.logs, time.time_ns() // 1000
    key_A = np.random.default_rng(job.seed).permutation(len(logs.ads))
    for ranked in answer(engine.searcher, engine.threads, engine.live, windows, ("all",), job.beam):
        ads, log_p = batches.ads_of(logs, ranked, key_A, job.top)
        ad_ids = tuple(logs.ads["ad_id"].gather(ads).to_list())
        user = logs.users["user_id"][int(logs.request_user_R[ranked.r])]
        yield user, StoredList(job.version, made_at_us, ad_ids, tuple(log_p))


def put(store: Store, version: str, lists: Mapping[str, StoredList], gone: Path) -> None:
    """Write lists, none of a user who stands in the file ``gone`` of `leadre.store.erased`."""
    with erased.locked(gone) as is_erased:
        store.put_lists(version, {user: one for user, one in lists.items() if not is_erased(user)})


def publish(store: Store, version: str, base: str | None, keep: int, gone: Path) -> int:
    """Make a version current, lists that it lacks taken from ``base``, and drop all but the newest ``keep`` versions.

    Returns how many lists were taken over.
    """
    carried = 0 if base is None else _carry(store, base, version, gone)
    store.switch(version)
    others = [name for name in store.versions().names if name != version]
    for old in others[: max(0, len(others) + 1 - keep)]:
        store.drop(old)
    return carried


def _carry(store: Store, base: str, version: str, gone: Path) -> int:
    """Copy lists of users who have none in ``version`` from ``base``; they keep the name of what made them."""
    fresh, page, carried = {user for user, _ in store.scan(version)}, dict[str, StoredList](), 0
    for user, one in store.scan(base):
        if user not in fresh:
            page[user] = one
        if len(page) == PAGE:
            put(store, version, page, gone)
            carried, page = carried + len(page), {}
    put(store, version, page, gone)
    return carried + len(page)


def remember(store: Store, profiles: Iterable[Profile], gone: Path, wait_s: float) -> None:
    """Write profiles as of a moment; what serving has added to them since then stays, segments too."""
    following = iter(profiles)
    while page := list(islice(following, PAGE)):
        patiently(partial(_remember, store, page, gone), wait_s)


def _remember(store: Store, page: Sequence[Profile], gone: Path) -> None:
    merged, read_at_us = [], time.time_ns() // 1000
    with erased.locked(gone) as is_erased:
        for new in page:
            if is_erased(new.user_id):
                continue
            old = store.read_profile(new.user_id) or Profile(new.user_id)
            since = tuple(seen for seen in old.recent if seen.at_us >= new.updated_at_us)
            updated_at_us = max(new.updated_at_us, old.updated_at_us)
            recent = (*new.recent, *since)
            merged.append(Profile(new.user_id, recent, old.segments, updated_at_us, new.updated_at_us, read_at_us))
        store.write_profiles(*merged)


def patiently(call: Callable[[], T], wait_s: float) -> T:
    """Call until the store answers; after ``wait_s`` of silence the StoreDown is raised."""
    until_s, told = time.monotonic() + wait_s, False
    while True:
        try:
            return call()
        except StoreDown as error:
            if time.monotonic() > until_s:
                raise
            if not told:
                progress.say(f"generate: {error}; trying again for {wait_s:.0f} s")
                told = True
            time.sleep(RETRY_S)


@contextmanager
def _shown(job: ListJob, users: int, count: int) -> Iterator[None]:
    """A bar that follows the leases while the workers work."""
    stop = threading.Event()

    def follow() -> None:
        with closing(BatchLeases(job.leases, job.version)) as leases:
            first = done = min(users, (count - leases.left()) * job.batch)
            started_s = time.monotonic()
            with progress.track("generate: users", users, done) as advance:
                is_last = False
                while not is_last:
                    is_last = stop.wait(POLL_S)
                    now = min(users, (count - leases.left()) * job.batch)
                    rate = (now - first) / (time.monotonic() - started_s)
                    advance(now - done, f"{rate:.1f} users/s")
                    done = now

    thread = threading.Thread(target=follow, name="leadre-progress")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
