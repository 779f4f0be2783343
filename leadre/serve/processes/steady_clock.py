"""The time of a bidder: the machine's wall time, unless that clock is set while the bidder runs.

The writer stores one moment by both clocks of the machine, wall time and boot time, in the file `StatePaths.clock`, and
moves it on every `KEEP_US`. All processes compare the clocks from that moment on. So they agree, and a restart changes
nothing. There are two doubts; in both, nothing that was certain before is forgotten until an operator confirms:

    jump   Wall time differs by more than `MAX_JUMP_US` from the boot time that has passed. The bidder continues by
           the time before the jump, so no day of a budget opens, no lease and no token ends early. The doubt ends by
           itself when wall time is right again.
    gap    At a start more time has passed than `MAX_REBOOT_US` since another boot, or `MAX_OFF_US` since this one, or
           less than none. The bidder continues by wall time. The doubt ends by itself when the clock is set to a time
           that a start would have accepted.

Boot time proves a gap within one boot, so a restart within a day needs no confirmation. After more than a day all that
has grown old would be deleted at once, and the operator who starts a bidder after days can look first. After a reboot
wall time comes from a battery, or from another machine, and nothing proves it. An hour is more than a reboot takes, and
less than `leadre.serve.events.outcomes.CLOCK_ERROR_US`, for which the ledger knows an event longer than its token is
valid.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from leadre import progress
from leadre.clock import MachineClock
from leadre.errors import StorageError
from leadre.serve.events import durable
from leadre.serve.ipc.messages import ClockReply
from leadre.units import S_PER_HOUR, US_PER_DAY, US_PER_HOUR, US_PER_S

MAX_JUMP_US = 60 * US_PER_S  # larger than the corrections of a time service, and than a leap second
MAX_REBOOT_US = US_PER_HOUR
MAX_OFF_US = US_PER_DAY
KEEP_US = 20 * US_PER_S  # between two writes of the file
CONFIRM = "an operator confirms: `leadre serve clock --confirm true` or POST /clock/confirm"


class Gap(msgspec.Struct, frozen=True):
    """A gap that is not confirmed: the time before it and after it, and the boot time at which it was found."""

    after_us: int
    until_us: int
    boot_us: int


class Confirmation(msgspec.Struct, frozen=True):
    """A confirmation of the time: by a key of the API or a user of the machine, at a wall time."""

    by: str
    at_us: int


class Moment(msgspec.Struct, frozen=True):
    """One moment by both clocks: ``time_us`` is wall time, ``boot_us`` the boot time of the boot ``boot_id``.

    ``confirmed``: the last confirmation of a time.
    """

    boot_id: str
    boot_us: int
    time_us: int
    gap: Gap | None = None
    confirmed: Confirmation | None = None


class Reading(NamedTuple):
    """The bidder's time, and its doubts. ``jump_us``: how far wall time is ahead; 0 within `MAX_JUMP_US`."""

    now_us: int
    certain_us: int
    jump_us: int
    gap: Gap | None

    @property
    def doubt(self) -> Literal["", "jump", "gap"]:
        """The doubt, as in `ClockReply`."""
        return "jump" if self.jump_us else "gap" if self.gap else ""


def resumed(known: Moment, machine: Moment) -> Moment:
    """The stored moment, at a start in the boot of ``machine``, the moment of the start by the machine's clocks."""
    off_us = machine.boot_us - known.boot_us
    if known.boot_id != machine.boot_id or off_us < 0:
        after_us = known.gap.after_us if known.gap else known.time_us
        gap = Gap(after_us, machine.time_us, machine.boot_us)
        return msgspec.structs.replace(machine, gap=gap, confirmed=known.confirmed)
    if known.gap or off_us <= MAX_OFF_US:
        return known
    return msgspec.structs.replace(known, gap=Gap(known.time_us, known.time_us + off_us, machine.boot_us))


def read(known: Moment, machine: Moment) -> Reading:
    """The bidder's time at ``machine``, a later moment of the same boot."""
    gap = known.gap
    if gap and -MAX_JUMP_US <= _unproven_us(gap, machine) <= MAX_REBOOT_US:
        return Reading(machine.time_us, machine.time_us, 0, None)
    expected_us = known.time_us + machine.boot_us - known.boot_us
    jump_us = machine.time_us - expected_us
    if abs(jump_us) <= MAX_JUMP_US:
        return Reading(machine.time_us, gap.after_us if gap else machine.time_us, 0, gap)
    return Reading(expected_us, gap.after_us if gap else known.time_us, jump_us, gap)


def _unproven_us(gap: Gap, machine: Moment) -> int:
    """The length of a gap by wall time, without the boot time since it was found."""
    return machine.time_us - gap.after_us - (machine.boot_us - gap.boot_us)


class SteadyClock:
    """A `leadre.clock.Clock` of a process that follows the file of the writer. Thread-safe."""

    def __init__(self, path: Path, machine: MachineClock) -> None:
        self._path = path
        self._machine = machine
        self._boot_id = machine.boot_id()
        self._version = (0, 0)  # inode and modification time of the file that was read last
        self._known = self._now()
        self.follow()

    def now_us(self) -> int:
        return self._read().now_us

    def certain_us(self) -> int:
        return self._read().certain_us

    def monotonic_s(self) -> float:
        return self._machine.monotonic_s()

    def forget_us(self, now_us: int) -> int:
        """The time by which data may be forgotten at ``now_us``: `certain_us` in doubt, else ``now_us``."""
        return min(now_us, self.certain_us()) if self.doubt() else now_us

    def follow(self) -> None:
        """Read the file if the writer has replaced it."""
        with suppress(OSError):  # before the first start of a writer
            stat = self._path.stat()
            version = (stat.st_ino, stat.st_mtime_ns)
            if version != self._version:
                known = _stored(self._path)
                self._version = version
                if known is not None:
                    self._known = resumed(known, self._now())

    def settled_before_us(self) -> int:
        """Leases that had ended by this time may have ended by an unconfirmed gap alone; 0 without one."""
        gap = self._read().gap
        return gap.until_us if gap else 0

    def state(self) -> ClockReply:
        """The bidder's time, the machine's, and the doubt, if any."""
        machine = self._now()
        reading = read(self._known, machine)
        return ClockReply(
            doubt=reading.doubt,
            why=_why(reading),
            now_us=reading.now_us,
            machine_us=machine.time_us,
            certain_us=reading.certain_us,
        )

    def doubt(self) -> str:
        """The reason why nothing is forgotten, with the next step; "" if wall time is certain."""
        return _why(self._read())

    def _read(self) -> Reading:
        return read(self._known, self._now())

    def _now(self) -> Moment:
        return Moment(self._boot_id, self._machine.boot_us(), self._machine.now_us())


class ClockKeeper(SteadyClock):
    """The writer's clock: it stores the moment, and takes confirmations.

    ``seen_us`` returns the last time that a folder without the file knows, such as that of its newest record; 0: none.
    """

    def __init__(self, path: Path, machine: MachineClock, seen_us: Callable[[], int] = int) -> None:
        super().__init__(path, machine)
        if self._version == (0, 0) or _stored(path) is None:
            last_us = seen_us()
            if last_us:
                self._known = resumed(Moment("", 0, last_us), self._now())
        self._doubt = ""
        self._due_us = 0  # boot time of the next write
        self.keep()

    def keep(self, *, at_once: bool = False) -> None:
        """Move the stored moment on if that is due and wall time has not jumped. Report a new doubt, and its end."""
        machine = self._now()
        reading = read(self._known, machine)
        self._report(reading)
        if not reading.jump_us and (at_once or machine.boot_us >= self._due_us):
            self._due_us = machine.boot_us + KEEP_US
            self._known = msgspec.structs.replace(machine, gap=reading.gap, confirmed=self._known.confirmed)
            with suppress(StorageError):  # a start then compares with an older moment
                self._store(self._known)

    def confirm(self, by: str) -> ClockReply:
        """Take wall time as right from now on, and report who confirmed it. StorageError: it is not confirmed."""
        machine = self._now()
        self._store(msgspec.structs.replace(machine, confirmed=Confirmation(by, machine.time_us)))
        _say(f"the time {_iso(machine.time_us)} was confirmed by {by}")
        self._report(self._read())
        return self.state()

    def _store(self, known: Moment) -> None:
        durable.replace(self._path, msgspec.json.encode(known))
        self._known = known

    def _report(self, reading: Reading) -> None:
        """Write one line to stderr when a doubt begins, and one when it ends."""
        if reading.doubt != self._doubt:
            _say(_why(reading) or "the time is certain again")
        self._doubt = reading.doubt


def _say(text: str) -> None:
    with suppress(OSError):  # stderr may be a file on a full disk
        progress.say(f"serve: {text}")


def _iso(at_us: int) -> str:
    return datetime.fromtimestamp(at_us // US_PER_S, UTC).isoformat()


def _stored(path: Path) -> Moment | None:
    """The moment in a file; None if it is missing or damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Moment)
    except (OSError, msgspec.DecodeError):
        return None


def _why(reading: Reading) -> str:
    if reading.jump_us:
        seconds = f"{abs(reading.jump_us) / US_PER_S:,.0f} s {'ahead' if reading.jump_us > 0 else 'back'}"
        return (
            f"the machine's clock was set {seconds}; the bidder continues by its time before, and forgets"
            f" nothing, until the clock is right again, or {CONFIRM}"
        )
    if reading.gap:
        hours = (reading.gap.until_us - reading.gap.after_us) / US_PER_S / S_PER_HOUR
        last = _iso(reading.gap.after_us)
        return (
            f"the bidder was off for {hours:,.1f} hours by the machine's clock, since {last}; nothing"
            f" that was certain then is forgotten until {CONFIRM}"
        )
    return ""
