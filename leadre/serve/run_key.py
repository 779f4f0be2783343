"""Creates a key of the management API and prints it once; a running bidder accepts it at once.

Standard output has the key and nothing else, so that a shell can keep it: KEY=$(leadre serve key --name NAME). An
operator's key grants everything; an advertiser's key reads and changes that account alone. Only a hash of the key is
stored: a lost key is revoked and replaced by another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leadre import config, progress
from leadre.clock import SystemClock
from leadre.serve import run as serve


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre serve key``."""

    name: str = config.option("", "holder of the key, so that it can be revoked when they leave")
    advertiser: str = config.option(
        "", "account that the key grants; empty = an operator's key, which grants everything"
    )
    state: str = config.option("", "state folder of the bidder; default that of [serve], else work/<run>/state")
    stages: Path | None = config.option(None, "TOML whose [serve] names the state folder; none = that of --config")


def run(settings: Config) -> str:
    """Create the key; returns its text. Raises InputError without a name, or for an invalid advertiser."""
    from leadre.serve.catalogue.database import ManageDatabase
    from leadre.serve.manage import auth

    paths = serve.paths_for(settings, settings.stages, settings.state)
    if not paths.manage_database.exists():
        progress.say(f"serve: no bidder has used {paths.folder} yet; --state or another folder selects a running one")
    database = ManageDatabase(paths.manage_database)
    try:
        key, secret = auth.ApiKeys(database).create(settings.name, SystemClock().now_us(), settings.advertiser)
    finally:
        database.close()
    owner = f"account {key.advertiser_id}" if key.advertiser_id else "an operator"
    progress.say(f"serve: key {key.key_id} of {key.name} ({owner}); only its hash is stored, so keep the key:")
    return secret
