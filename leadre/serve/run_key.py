"""Makes a key of the management API and shows it once; a running bidder takes it at once.

`leadre serve --stage key` is another name for `leadre serve-key`. An operator's key may do everything; one of an
advertiser sees and changes that account alone. Only a hash is kept: who loses a key revokes it and makes another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leadre import config, progress
from leadre.clock import SystemClock
from leadre.serve import run as serve


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre serve --stage key``."""

    name: str = config.option("", "who will hold the key, so that it can be revoked when they leave")
    advertiser: str = config.option("", "whose account the key opens; empty = an operator's, who may do everything")
    state: str = config.option("", "the bidder's folder; default that of [serve], else work/<run>/state")
    stages: Path | None = config.option(None, "TOML whose [serve] says where the state is; none = that of --config")


def run(settings: Config) -> None:
    """Make the key. InputError without a name, or for an impossible advertiser."""
    from leadre.serve.catalogue.database import ManageDatabase
    from leadre.serve.manage import auth

    paths = serve.place(settings, settings.stages, settings.state)
    records = ManageDatabase(paths.manage_database)
    try:
        key, secret = auth.ApiKeys(records).create(settings.name, SystemClock().now_us(), settings.advertiser)
    finally:
        records.close()
    whose = f"account {key.advertiser_id}" if key.advertiser_id else "an operator"
    progress.say(f"serve: key {key.key_id} of {key.name} ({whose}), shown only now: {secret}")
