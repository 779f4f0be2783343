"""Publishes the run's ranker to a bidder, or makes an earlier version current again.

Running workers use the new current version within some seconds; no request waits for it. Without options it publishes
the result of `leadre rank train` and `leadre rank calibrate`. The last versions are kept for ``--rollback true``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leadre import config, progress
from leadre.errors import InputError
from leadre.serve import run as serve


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre serve ranker``."""

    rollback: bool = config.option(False, "make the version current that was so before")
    to: str = config.option("", "version to make current; `none` = no ranker, counts price the ads")
    state: str = config.option("", "state folder of the bidder; default that of [serve], else work/<run>/state")
    stages: Path | None = config.option(None, "TOML whose [serve] names the state folder; none = that of --config")


def run(settings: Config) -> None:
    """Publish or switch. Raises InputError and ArtifactError for a ranker that cannot be served."""
    if settings.rollback and settings.to:
        raise InputError("--rollback true and --to: choose one")
    import msgspec

    from leadre.serve.catalogue import audit
    from leadre.serve.catalogue.audit import Author, Change
    from leadre.serve.catalogue.database import ManageDatabase
    from leadre.serve.processes import ranker_bootstrap
    from leadre.serve.rankers.published import PublishedRankers

    paths = serve.paths_for(settings, settings.stages, settings.state)
    if not paths.manage_database.exists():
        raise InputError(f"{paths.folder}: holds no state of a bidder; check --state, or start `leadre serve` first")
    rankers = PublishedRankers(paths.rankers)
    before = rankers.current()
    if settings.rollback:
        rankers.rollback()
    elif settings.to:
        rankers.switch(settings.to)
    else:
        ranker_bootstrap.publish_run(paths, settings.folder("rank-train"), settings.folder("rank-calibrate"))
    history = rankers.history()
    versions = [msgspec.json.encode(version).decode() for version in (before, history[-1])]
    change = Change(kind="ranker", item_id="", advertiser_id="", before=versions[0], after=versions[1])
    database = ManageDatabase(paths.manage_database)
    try:
        with database.writing():
            audit.append(database.connection, Author(), [change])
    finally:
        database.close()
    progress.say(f"serve: ranker {history[-1]} is current; before it {', '.join(reversed(history[:-1])) or 'none'}")
