"""Copies a bidder's state into a folder, also while the bidder runs.

The copy is consistent: budgets, events, campaigns, keys, erased users, lists and profiles are as of one time. The
backup waits for erasures that have begun.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leadre import config, progress
from leadre.errors import InputError
from leadre.serve import run as serve


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre serve backup``."""

    to: str = config.option("", "folder to write; it must not exist yet")
    state: str = config.option("", "state folder of the bidder; default that of [serve], else work/<run>/state")
    stages: Path | None = config.option(None, "TOML whose [serve] names the state folder; none = that of --config")


def run(settings: Config) -> None:
    """Write the backup. Raises InputError if there is no state to copy, or if the folder exists already."""
    if not settings.to:
        raise InputError("--to is missing: name the folder to write the backup to")
    from leadre.serve import backup

    paths = serve.paths_for(settings, settings.stages, settings.state)
    folder = backup.write(paths, Path(settings.to)).path
    size_mb = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    lists = "" if (folder / backup.LISTS).exists() else f"; lists and profiles stay on {paths.store.split(':')[0]}"
    progress.say(f"serve: {folder} has {paths.folder}, {size_mb:.1f} MB{lists}")
