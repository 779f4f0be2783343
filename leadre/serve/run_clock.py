"""Shows the time of a bidder, and confirms that the machine's clock is right after a jump or a long gap.

A user who may write the state folder may confirm, as for `leadre serve key`. Set the machine's clock right first: after
the confirmation all data that is too old by it is deleted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from leadre import config, progress
from leadre.clock import SystemClock
from leadre.errors import InputError, PeerError
from leadre.serve import run as serve
from leadre.serve.paths import StatePaths
from leadre.units import US_PER_S

if TYPE_CHECKING:
    from leadre.serve.ipc.messages import ClockReply

TIMEOUT_S = 10.0  # of the request to the writer


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre serve clock``."""

    confirm: bool = config.option(False, "take the machine's wall time as right")
    state: str = config.option("", "state folder of the bidder; default that of [serve], else work/<run>/state")
    stages: Path | None = config.option(None, "TOML whose [serve] names the state folder; none = that of --config")


def run(settings: Config) -> None:
    """Show or confirm. Raises InputError if no bidder has used the folder, or if its writer does not reply."""
    from leadre.serve.processes.steady_clock import SteadyClock

    paths = serve.paths_for(settings, settings.stages, settings.state)
    if not paths.ledger.exists():
        raise InputError(f"{paths.folder}: holds no state of a bidder that has served; check --state")
    state = SteadyClock(paths.clock, SystemClock()).state()
    if state.doubt and settings.confirm:
        state = _confirmed(paths)
    progress.say(f"serve: the bidder's time is {_time(state.now_us)}, the machine's {_time(state.machine_us)}")
    progress.say(f"serve: {state.why or 'the time is certain'}")


def _confirmed(paths: StatePaths) -> ClockReply:
    """The state after a confirmation: by the writer of a running bidder, or in the file of one that is stopped."""
    from leadre.serve.events import durable
    from leadre.serve.ipc import messages
    from leadre.serve.ipc.socket import request_once
    from leadre.serve.processes import bootstrap
    from leadre.serve.processes.steady_clock import ClockKeeper

    by = f"`leadre serve clock` of the machine's user {os.getuid()}"
    if not durable.is_locked(paths.lock):
        with bootstrap.owned(paths):
            return ClockKeeper(paths.clock, SystemClock()).confirm(by)
    try:
        reply = request_once(
            paths.writer_socket, messages.ConfirmClockRequest(by), messages.WriterReply, timeout_s=TIMEOUT_S
        )
    except PeerError as error:
        raise InputError(f"{paths.folder}: the writer does not reply ({error}); try again when it is back") from error
    if not isinstance(reply, messages.ClockReply):
        raise InputError(f"{paths.folder}: the time was not confirmed ({reply}); free the disk and try again")
    return reply


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / US_PER_S, UTC).isoformat(timespec="seconds")
