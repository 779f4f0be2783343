"""Creates a key of the management API and prints it once; a running bidder accepts it at once.

Standard output has the key and nothing else, so that a shell can keep it: KEY=$(leadre serve key --name NAME). An
operator's key opens all accounts, an account's key that account alone; scopes limit what it may do there. Only a hash
of the key is stored: a lost key is revoked and replaced by another.
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
        "", "account that the key opens; empty = an operator's key, which opens all accounts"
    )
    scopes: tuple[str, ...] = config.option(
        (), "what the key may do; default: everything for an operator's key, campaigns for an account's"
    )
    state: str = config.option("", "state folder of the bidder; default that of [serve], else work/<run>/state")
    stages: Path | None = config.option(None, "TOML whose [serve] names the state folder; none = that of --config")


def run(settings: Config) -> str:
    """Create the key; returns its text. Raises InputError without a name, for an invalid advertiser or scope."""
    from leadre.serve.catalogue.database import ManageDatabase
    from leadre.serve.manage import auth
    from leadre.serve.private import keep_private

    paths = serve.paths_for(settings, settings.stages, settings.state)
    if not paths.manage_database.exists():
        progress.say(f"serve: no bidder has used {paths.folder} yet; --state or another folder selects a running one")
    keep_private(paths.folder)
    database = ManageDatabase(paths.manage_database)
    try:
        key, secret = auth.ApiKeys(database).create(
            settings.name, SystemClock().now_us(), settings.advertiser, settings.scopes
        )
    finally:
        database.close()
    owner = f"account {key.advertiser_id}" if key.advertiser_id else "an operator"
    scopes = ", ".join(key.scopes)
    progress.say(
        f"serve: key {key.key_id} of {key.name} ({owner}: {scopes}); only its hash is stored, so keep the key:"
    )
    return secret
