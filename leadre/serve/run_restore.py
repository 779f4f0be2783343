"""Restores a bidder's state from a backup; then start `leadre serve`.

The state folder must not exist yet. Frequency caps start at zero. Users who were erased after the backup are removed,
by the list of their hashes that the bidder keeps beside its backups.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leadre import config, progress
from leadre.errors import InputError
from leadre.serve import run as serve


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre serve restore``."""

    backup: str = config.option("", "folder that `leadre serve backup` wrote")
    erased: str = config.option(
        "", "file with the users erased since the backup; default the list beside the backup; `none` without erasures"
    )
    state: str = config.option("", "state folder of the bidder; default that of [serve], else work/<run>/state")
    stages: Path | None = config.option(None, "TOML whose [serve] names the state folder; none = that of --config")


def run(settings: Config) -> None:
    """Restore. Raises InputError if a state exists, a bidder runs, or there is no list of the erased users.

    ArtifactError for a damaged backup.
    """
    if not settings.backup:
        raise InputError("--backup is missing: name the folder that `leadre serve backup` wrote")
    from leadre.serve import backup

    paths = serve.paths_for(settings, settings.stages, settings.state)
    removed = backup.restore(Path(settings.backup), paths, settings.erased)
    progress.say(
        f"serve: {paths.folder} is restored from {settings.backup}, {removed:,} users erased since were removed;"
        " start `leadre serve`"
    )
