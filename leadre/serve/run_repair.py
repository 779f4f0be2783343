"""Repairs a damaged event log: saves every whole record, keeps the damaged file aside, and reports the loss.

The bidder must be stopped. A log without damage is not changed. The copies in STATE/damaged may name users: delete them
when they are no longer needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from leadre import config, progress
from leadre.errors import InputError
from leadre.serve import run as serve
from leadre.units import US_PER_S


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre serve repair``."""

    state: str = config.option("", "state folder of the bidder; default that of [serve], else work/<run>/state")
    stages: Path | None = config.option(None, "TOML whose [serve] names the state folder; none = that of --config")


def run(settings: Config) -> None:
    """Repair. Raises InputError if there is no state or a bidder runs, StorageError if the disk refuses."""
    from leadre.auction.budget.ledger import Ledger
    from leadre.serve.events import table_position
    from leadre.serve.events.repair import repair

    paths = serve.paths_for(settings, settings.stages, settings.state)
    if not paths.ledger.exists():
        raise InputError(f"{paths.folder}: holds no state of a bidder that has served; check --state")
    with Ledger(paths.ledger) as ledger:
        posted = ledger.log_number
    losses = repair(paths.events, paths.damaged, max(posted, table_position.read(paths.tables)))
    if not losses:
        progress.say(f"serve: {paths.events} has no damage; nothing was changed")
    for loss in losses:
        count = loss.last - loss.first + 1
        charges = "the ledger has their charges" if loss.last <= posted else "charges of these records may be missing"
        progress.say(
            f"serve: {count:,} records lost, {loss.first} to {loss.last}, written"
            f" {_time(loss.after_us)} to {_time(loss.before_us)}; {charges}; the damaged file is {loss.segment}"
        )


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / US_PER_S, UTC).isoformat(timespec="seconds") if at_us else "(unknown)"
