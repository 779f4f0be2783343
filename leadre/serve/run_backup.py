"""Copies a bidder's state into a folder, also while it serves.

`leadre serve --stage backup` is another name for `leadre serve-backup`. The copy is as of one moment in all that must
agree: budgets, events, campaigns, keys, erased users, lists and profiles. Whoever is being erased is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leadre import config, progress
from leadre.errors import InputError
from leadre.serve import run as serve


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre serve --stage backup``."""

    to: str = config.option("", "the folder to write; must not be there yet")
    state: str = config.option("", "the bidder's folder; default that of [serve], else work/<run>/state")
    stages: Path | None = config.option(None, "TOML whose [serve] says where the state is; none = that of --config")


def run(settings: Config) -> None:
    """Write the backup. InputError where there is nothing to copy, or something in the way."""
    if not settings.to:
        raise InputError("--to is missing: name the folder that the backup shall be")
    from leadre.serve import backup

    paths = serve.place(settings, settings.stages, settings.state)
    made = backup.write(paths, Path(settings.to))
    size_mb = sum(file.stat().st_size for file in made.path.rglob("*") if file.is_file()) / 1e6
    lists = "" if (made.path / backup.LISTS).exists() else f"; lists and profiles stay on {paths.store.split(':')[0]}"
    progress.say(f"serve: {made.path} has {paths.folder}, {size_mb:.1f} MB{lists}")
