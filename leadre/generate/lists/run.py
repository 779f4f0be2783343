"""Users -> lists of ads in a store, by the tuned model, for serving.

Every user is asked about once, as of one moment and in no placement. The lists go into ``--store`` under a version of
their own, which becomes the current one when all of them are there, the popular ads for whoever has no list among them.
What each user did lately is written beside them. A killed run resumes from ``work/<run>/.generate-lists``.
"""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from leadre import artifact, config, progress
from leadre.artifact import Artifact
from leadre.errors import InputError
from leadre.tune import run as tune
from leadre.units import US_PER_S

if TYPE_CHECKING:  # torch loads in run, so that --help stays quick
    from leadre.generate.lists import job as lists


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre generate --stage lists``."""

    model: Literal["latest", "sft", "dpo"] = config.option(
        "latest", "who answers: the model of tune-sft, of tune-dpo, or as in serve the one that was tuned last"
    )
    state: str = config.option("", "the bidder's folder, where it notes who was erased; default work/<run>/state")
    store: str = config.option(
        "", "lmdb:FOLDER or redis://HOST:PORT/DB; default the folder lists in state, as in serve"
    )
    now: str | None = config.option(None, "ISO time as of which users are seen; none = just after the last event")
    changed_since: str | None = config.option(
        None, "ISO time: answer only users with an event since, keep the current lists of the others; none = all"
    )
    live_days: int = config.option(7, "an ad is a candidate if it was live in a request of so many days before now")
    beam: int = config.option(100, "beams a user, at least as many as ads wanted")
    top: int = config.option(100, "ads a list")
    workers: int = config.option(1, "processes; each holds the model")
    batch: int = config.option(64, "users that a worker leases together")
    lease_s: int = config.option(600, "seconds after which a batch whose worker says nothing goes to another")
    wait_s: int = config.option(60, "seconds to wait for a store that is down")
    keep: int = config.option(3, "versions to keep in the store, the new one included")


def run(config: Config) -> None:
    """Write and switch to a version of the store, or say that it is current. ArtifactError, InputError, StoreDown."""
    for name in ("live_days", "beam", "top", "workers", "batch", "lease_s", "keep"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(config, name)}: wants 1 or more")
    folder = tune.latest(config) if config.model == "latest" else config.folder(f"tune-{config.model}")
    parents = [
        artifact.read(config.folder("data"), artifact.TABLES),
        artifact.read(config.folder("semid"), artifact.CODEBOOK),
        artifact.read(folder, artifact.MODEL),
    ]
    from leadre.data import histories
    from leadre.generate.lists import job as lists
    from leadre.generate.lists import profiles as remembered
    from leadre.generate.lists import versions
    from leadre.generate.lists.retry import retry
    from leadre.store import open_store, spec_in
    from leadre.store.contract import EVERYBODY
    from leadre.tune import model as saved

    saved.check_ids(parents[2], parents[1])
    logs = histories.load(parents[0])
    now_us = _moment_us(config.now, "now")
    if now_us is None:
        now_us = int(logs.at_us_E.max(initial=-1)) + 1
    since_us = _moment_us(config.changed_since, "changed-since")
    state = Path(config.state) if config.state else config.folder("state")
    spec = spec_in(state, config.store)
    with closing(open_store(spec, timeout_ms=lists.TIMEOUT_MS)) as store:
        known = retry(store.versions, config.wait_s)
        base = known.current if since_us is not None else None
        if since_us is not None and base is None:
            raise InputError(f"--changed-since: {spec} has no current lists to keep; run without it first")
        version = _version(config, parents, now_us, since_us, base)
        if version == known.current:
            progress.say(f"generate: version {version} is current in {spec}, nothing to do")
            return
        job = _job(config, parents, spec, state / "erased", version, now_us, since_us)
        ads = lists.candidates(logs, now_us, config.live_days)  # says what is wrong before a worker starts
        users = lists.users_of(logs, now_us, since_us)
        user_ids = logs.users["user_id"].gather(users).to_list()
        retry(lambda: store.put_lists(version, {}), config.wait_s)
        lists.generate(job, user_ids, config.workers)
        everybody = {EVERYBODY: remembered.popular(logs, now_us, ads, version, config.top)}
        retry(lambda: store.put_lists(version, everybody), config.wait_s)
        profiles = remembered.profiles(logs, now_us, users)
        remembered.remember(store, profiles, job.erased, config.wait_s)
        carried = retry(lambda: versions.publish(store, version, base, config.keep, job.erased), config.wait_s)
    shutil.rmtree(config.folder(".generate-lists"))
    progress.say(f"generate: version {version} in {spec}, lists of {len(users):,} users and {carried:,} kept")


def _job(
    config: Config, parents: list[Artifact], store: str, erased: Path, version: str, now_us: int, since_us: int | None
) -> lists.ListJob:
    from leadre.generate.lists import job as lists

    tables, codebook, model = (parent.path for parent in parents)
    return lists.ListJob(
        tables=tables,
        codebook=codebook,
        model=model,
        leases=config.folder(".generate-lists") / "leases.db",
        store=store,
        erased=erased,
        version=version,
        now_us=now_us,
        since_us=since_us,
        live_days=config.live_days,
        beam=config.beam,
        top=config.top,
        batch=config.batch,
        seed=config.seed,
        threads=config.threads or max(1, (os.cpu_count() or 1) // config.workers),
        lease_s=config.lease_s,
        wait_s=config.wait_s,
    )


def _version(config: Config, parents: list[Artifact], now_us: int, since_us: int | None, base: str | None) -> str:
    """The moment, and a short hash of all that decides the lists."""
    decides = {name: getattr(config, name) for name in ("beam", "top", "batch", "live_days", "seed")}
    key = artifact.resume_key(decides | {"now_us": now_us, "since_us": since_us, "base": base}, parents)
    return f"{datetime.fromtimestamp(now_us // US_PER_S, UTC):%Y%m%dT%H%M%S}-{key[:12]}"


def _moment_us(text: str | None, flag: str) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"--{flag} {text!r}: wants an ISO time such as 2026-03-01T08:30:00Z") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
