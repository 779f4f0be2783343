"""Replaces the key that encrypts the tokens of events, while the bidder runs or is stopped.

New bids have tokens of the new key within a second. Older keys stay for as long as an event of their tokens may arrive,
so no event is lost. After a leak of the file, ``--retire true`` removes them at once, and all events of older bids with
them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from leadre import config, progress
from leadre.clock import SystemClock
from leadre.errors import InputError
from leadre.serve import run as serve


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre serve rotate``."""

    retire: bool = config.option(False, "remove the older keys at once: events of all earlier bids are refused")
    state: str = config.option("", "state folder of the bidder; default that of [serve], else work/<run>/state")
    stages: Path | None = config.option(None, "TOML whose [serve] names the state folder; none = that of --config")


def run(settings: Config) -> None:
    """Rotate. Raises InputError if no bidder has used the folder, or while another rotation runs."""
    import msgspec

    from leadre.serve.catalogue import audit
    from leadre.serve.catalogue.audit import Author, Change
    from leadre.serve.catalogue.database import ManageDatabase
    from leadre.serve.events import durable
    from leadre.serve.events.tokens import KEPT_US, TokenKeys
    from leadre.serve.processes.steady_clock import SteadyClock

    paths = serve.paths_for(settings, settings.stages, settings.state)
    if not paths.token_keys.exists():
        raise InputError(f"{paths.folder}: holds no state of a bidder; check --state")
    now_us = SteadyClock(paths.clock, SystemClock()).certain_us()  # a clock that is set ahead must retire no key
    lock = durable.lock(paths.rotation_lock, "another rotation runs on this state folder; try again")
    try:
        before = TokenKeys.open(paths.token_keys)
        after = before.rotate(paths.token_keys, now_us, kept_us=0 if settings.retire else KEPT_US)
        versions = [msgspec.json.encode(keys.versions).decode() for keys in (before, after)]
        database = ManageDatabase(paths.manage_database)
        try:
            with database.writing():
                change = Change(kind="token keys", item_id="", advertiser_id="", before=versions[0], after=versions[1])
                audit.append(database.connection, Author(), [change])
        finally:
            database.close()
    finally:
        os.close(lock)
    older = ", ".join(map(str, after.versions[:-1])) or "none"
    progress.say(
        f"serve: bids have tokens of key {after.version} within a second; older keys that are still read: {older}"
    )
