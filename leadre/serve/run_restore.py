"""Makes a bidder's state out of a backup; then `leadre serve` goes on from there.

`leadre serve --stage restore` is another name for `leadre serve-restore`. The state folder must not be there yet.
Frequency caps begin anew, and who was erased after the backup was made is in it: erase them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leadre import config, progress
from leadre.errors import InputError
from leadre.serve import run as serve


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre serve --stage restore``."""

    backup: str = config.option("", "the folder that `leadre serve --stage backup` wrote")
    state: str = config.option("", "the bidder's folder; default that of [serve], else work/<run>/state")
    stages: Path | None = config.option(None, "TOML whose [serve] says where the state is; none = that of --config")


def run(settings: Config) -> None:
    """Restore. InputError where a state is there or a bidder runs, ArtifactError for a damaged backup."""
    if not settings.backup:
        raise InputError("--backup is missing: name the folder that `leadre serve --stage backup` wrote")
    from leadre.serve import backup

    paths = serve.place(settings, settings.stages, settings.state)
    backup.restore(Path(settings.backup), paths)
    progress.say(f"serve: {paths.folder} is as {settings.backup} has it; `leadre serve` goes on from there")
