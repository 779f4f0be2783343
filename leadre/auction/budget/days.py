"""Calendar days of a campaign's time zone: 23, 24 or 25 hours, and half hours on Lord Howe Island."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache

from leadre.errors import InputError
from leadre.units import US_PER_S

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SLOT_US = 15 * 60 * US_PER_S  # the offsets of all zones are multiples of it, so that no day begins within a slot


def day_of(at_us: int, zone: str) -> date:
    """The calendar day of an instant in an IANA zone. InputError for an unknown zone."""
    return (EPOCH + timedelta(microseconds=at_us)).astimezone(_zone(zone)).date()


def day_ends_us(day: date, zone: str) -> int:
    """The first instant after a day of a zone."""
    midnight = datetime.combine(day + timedelta(days=1), time(), _zone(zone))
    return (midnight - EPOCH) // timedelta(microseconds=1)


@lru_cache(maxsize=4096)
def day_of_slot(slot: int, zone: str) -> tuple[date, int, int]:
    """The day of a zone in which the instants of a slot of `SLOT_US` are: (day, its first instant, its end)."""
    day = day_of(slot * SLOT_US, zone)
    return day, day_ends_us(day - timedelta(days=1), zone), day_ends_us(day, zone)


@lru_cache(maxsize=4096)
def quarters_of_day(day: date, zone: str) -> tuple[int, ...]:
    """The quarter of an hour of the clock, 0 to 95, in each slot of `SLOT_US` of a day.

    It has 96 slots, fewer or more if clocks change on it.
    """
    start_us = day_ends_us(day - timedelta(days=1), zone)
    instants_us = range(start_us, day_ends_us(day, zone), SLOT_US)
    clock_S = [(EPOCH + timedelta(microseconds=at_us)).astimezone(_zone(zone)) for at_us in instants_us]
    return tuple(clock.hour * 4 + clock.minute // 15 for clock in clock_S)


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)  # cached by zoneinfo
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InputError(f"time zone {name!r} is unknown; use an IANA name such as Europe/Rome") from error
