"""Generate a list for every user, ahead of any request, into the store that serving reads.

Every user gets one list, as of one time *now* and for no placement in particular. Worker processes lease batches of
users (`lists.leases`); the batches of a killed worker are leased again. The batches do not depend on the workers, as
the last bits of a score depend on the batch: a list that is generated twice has the same ads and scores. Readers see
the new version only when it is complete. Users in the file of `leadre.store.erased` get no list, even if they are
erased during the run.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leadre import artifact, progress, scale
from leadre.clock import Clock, SystemClock
from leadre.data import histories, moment
from leadre.data.histories import Logs
from leadre.errors import InputError, ShardError, StoreDown
from leadre.generate import batch as batches
from leadre.generate.lists import versions
from leadre.generate.lists.leases import BatchLeases
from leadre.generate.lists.retry import retry
from leadre.store import erased, open_store
from leadre.store.contract import EVERYBODY, StoredList
from leadre.tune.answers import TunedSearcher
from leadre.tune.threads import Window
from leadre.units import US_PER_S

TIMEOUT_MS = 1000.0  # of a call to the store; no page waits for these calls
POLL_S = 0.5
MAX_DEATHS = 3


@dataclass(frozen=True, kw_only=True)
class ListJob:
    """Settings of a run, passed to its workers. ``since_us``: only users with an event from then on; None = all."""

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
    clock: Clock = field(default_factory=SystemClock)  # dates leases and lists


def users_of(logs: Logs, now_us: int, since_us: int | None) -> NDArray[np.int64]:
    """All users, or those with an event from ``since_us`` until before ``now_us``.

    A user of the logs under the name of the popular list gets no list: it would replace that of everybody.
    """
    is_user_U = (logs.users["user_id"] != EVERYBODY).to_numpy()
    if since_us is not None:
        is_recent_E = (logs.at_us_E >= since_us) & (logs.at_us_E < now_us)
        before_E = np.concatenate([[0], np.cumsum(is_recent_E)])
        is_user_U = is_user_U & (np.diff(before_E[logs.event_offsets]) > 0)
    return np.flatnonzero(is_user_U)


def candidates(logs: Logs, now_us: int, live_days: int) -> NDArray[np.int32]:
    """Ads that were live in a request of the last ``live_days`` and are neither paused nor ended; ascending."""
    live = moment.recently_live(logs, now_us, live_days)
    if not len(live):
        raise InputError(f"no ad was live in the {live_days} days before now; check --now or raise --live-days")
    return live


def generate(job: ListJob, user_ids: Sequence[str], workers: int) -> None:
    """Write the lists of all users of a job into its store, except for batches that an earlier run finished.

    A worker that dies is replaced. Raises ShardError after `MAX_DEATHS` deaths in a row without a finished batch. Other
    errors, such as StoreDown, end the run.
    """
    users = len(user_ids)
    count = -(-users // job.batch)
    with closing(BatchLeases(job.leases, job.version)) as leases:
        for _ in range(2):  # once more if the store has lost lists
            leases.start(count)
            with _progress_bar(job, users, count):
                deaths = 0  # in a row
                while left := leases.left():
                    death = _work_all(job, workers)
                    deaths = deaths + 1 if leases.left() == left else 0
                    if death is not None and deaths == MAX_DEATHS:
                        raise death
                    leases.start(count)
            if not retry(partial(_missing, job, user_ids), job.wait_s):
                return
            progress.say(
                "generate: the store lost lists, or an earlier run had another store; all lists are generated again"
            )
            leases.forget()
    raise StoreDown(f"store {job.store.partition(':')[0]}: loses lists of {job.version} while they are written")


def _work_all(job: ListJob, workers: int) -> ShardError | None:
    """Run workers until all batches are done; returns the error if one of them died."""
    backend: scale.Backend = "serial" if workers == 1 else "processes"
    try:
        scale.map_shards(partial(work, job), [str(n) for n in range(workers)], workers, backend)
    except ShardError as error:
        if isinstance(error.__cause__, StoreDown):
            raise error.__cause__ from error
        if error.__cause__ is not None:
            raise
        progress.say("generate: a worker died; others take over its batch")
        return error
    return None


def _missing(job: ListJob, user_ids: Sequence[str]) -> set[str]:
    """The users without a list of this version in the store, except erased ones."""
    is_erased = erased.load(job.erased)
    with closing(open_store(job.store, timeout_ms=TIMEOUT_MS)) as store:
        written = {user for user, stored in store.scan(job.version) if stored.version == job.version}
    return {user for user in user_ids if user not in written and not is_erased(user)}


def work(job: ListJob, worker: str) -> int:
    """Generate the lists of leased batches until all are done; returns the number that this worker finished.

    With several workers, each runs in its own process.
    """
    owner = f"{os.getpid()}/{worker}"
    done = 0
    with (
        closing(BatchLeases(job.leases, job.version)) as leases,
        closing(open_store(job.store, timeout_ms=TIMEOUT_MS)) as store,
    ):
        engine = load(job)
        windows = engine.threads.serving(np.arange(len(engine.threads.moments)))
        windows.sort(key=engine.threads.length)  # stable: ties by user
        while leases.left():
            now_us = job.clock.now_us()
            number = leases.take(owner, now_us, now_us + int(job.lease_s * US_PER_S))
            if number is None:  # all are leased; the owner of one may be dead: wait until its lease expires
                time.sleep(POLL_S)
                continue
            lists = dict(_lists(job, engine, windows[number * job.batch : (number + 1) * job.batch]))
            retry(partial(versions.put, store, job.version, lists, job.erased), job.wait_s)
            done += leases.finish(number, job.clock.now_us())
    return done


def load(job: ListJob) -> TunedSearcher:
    """The tuned model with a moment for each user of the job, as of its ``now_us``."""
    tables = artifact.read(job.tables, artifact.TABLES)
    codebook = artifact.read(job.codebook, artifact.CODEBOOK)
    model = artifact.read(job.model, artifact.MODEL)
    logs = histories.load(tables)
    users = users_of(logs, job.now_us, job.since_us)
    ads = candidates(logs, job.now_us, job.live_days)
    moments = moment.as_of(logs, job.now_us, users, ads)
    return batches.load(tables, codebook, model, training=False, threads=job.threads, moments=moments)


def _lists(job: ListJob, engine: TunedSearcher, windows: list[Window]) -> Iterator[tuple[str, StoredList]]:
    moments = engine.threads.moments
    made_at_us = job.clock.now_us()
    logs = moments.logs
    key_A = np.random.default_rng(job.seed).permutation(len(logs.ads))
    for ranked in engine.answer(windows, ("all",), job.beam):
        ads, log_p = batches.ads_of(moments[ranked.r].inventory, ranked, key_A, job.top)
        ad_ids = tuple(logs.ads["ad_id"].gather(ads).to_list())
        user_id = logs.users["user_id"][int(moments.user_M[ranked.r])]
        yield user_id, StoredList(job.version, made_at_us, ad_ids, tuple(log_p))


@contextmanager
def _progress_bar(job: ListJob, users: int, count: int) -> Iterator[None]:
    """A progress bar that follows the leases while the workers run."""
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
                    advance(now - done, f"{rate:.1f} users/s" if rate else "")
                    done = now

    thread = threading.Thread(target=follow, name="leadre-progress")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
