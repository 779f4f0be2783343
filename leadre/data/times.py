"""Times of raw tables -> microseconds since 1970 (UTC), with a reason for each time that cannot be used.

Numbers are ambiguous: 1772353800 may be seconds or nonsense. Within a century the ranges of all units are disjoint, so
a number of another unit than the declared one is recognised and named, never read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

from leadre.data.sources.options import TimeUnit
from leadre.units import US_PER_DAY

US_PER = {"s": 1_000_000.0, "ms": 1_000.0, "us": 1.0, "ns": 0.001, "days": float(US_PER_DAY)}
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_CALENDAR = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])(?:\d{4}|\d{6}|\d{9})?")
_NUMBER = r"^[+-]?[0-9]+(\.[0-9]+)?$"
# Forms of databases without their offset -> their layout for one quick parse.
_COMMON = {
    r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})?$": "%Y-%m-%d %H:%M:%S%.f",
    r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?$": "%Y-%m-%dT%H:%M:%S%.f",
}
# Forms that mean one time and are rarely written -> the extended form of ISO 8601.
_RARE = {
    r"^([0-9]{4})([0-9]{2})([0-9]{2})[Tt]([0-9]{2})([0-9]{2})([0-9]{2})": "${1}-${2}-${3}T${4}:${5}:${6}",
    r"^([0-9]{4})/([0-9]{2})/([0-9]{2})": "${1}-${2}-${3}",
    r"([+-][0-9]{4}) UTC$": "${1}",  # of Go
    r"([Zz]|[+-][0-9]{2}:?[0-9]{2})\[[A-Za-z_/+-]+\]$": "${1}",  # of Java
}
_OFFSET = re.compile(r"[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?$")
_OFFSETS = 2  # of one column that are parsed at once: of summer and of winter


@dataclass(frozen=True, kw_only=True)
class TimeFormat:
    """``unit`` and ``origin_us`` of times that are numbers; ``zone`` of times without an offset.

    Valid times are from ``earliest_us`` until before ``latest_us``, in microseconds since 1970.
    """

    unit: TimeUnit = "us"
    origin_us: int = 0
    zone: str = "UTC"
    earliest_us: int = int(datetime(1990, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
    latest_us: int = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000


def micros(raw: pl.Series, form: TimeFormat, *, open_end: bool = False) -> tuple[pl.Series, pl.Series]:
    """(microseconds as Int64, null where missing or not usable; reasons as text, null where there is none).

    ``raw`` holds text, whole numbers, timestamps or dates; numbers with a fraction only for seconds and milliseconds,
    among which NaN is a missing value.
    ``open_end``: a time after the range means never, so it is missing and no fault.
    """
    kind = raw.dtype
    if kind.is_float():
        raw = raw.fill_nan(None)
    if kind == pl.String:
        scaled = _from_text(raw, form)
    elif isinstance(kind, pl.Datetime):
        scaled = _scaled(raw.to_physical(), form, unit=kind.time_unit)
        scaled = scaled if kind.time_zone else _to_utc(scaled, form.zone)
    elif kind == pl.Date:
        scaled = _to_utc(_scaled(raw.to_physical(), form, unit="days"), form.zone)
    else:
        scaled = _scaled(raw, form)
    is_inside = scaled.is_between(form.earliest_us, form.latest_us, closed="left").fill_null(False)
    result = scaled.set(~is_inside, None).cast(pl.Int64)
    no_reasons = pl.repeat(None, len(raw), dtype=pl.String, eager=True)
    positions = (raw.is_not_null() & ~is_inside).arg_true()
    if not len(positions):
        return result, no_reasons
    values = raw.gather(positions)
    shown = values.to_physical().cast(pl.String) if kind.is_temporal() else values.cast(pl.String)
    whys = [
        _reason(text, value, kind, form, open_end)
        for text, value in zip(shown.to_list(), scaled.gather(positions).to_list(), strict=True)
    ]
    return result, no_reasons.scatter(positions, pl.Series(whys, dtype=pl.String))


def _from_text(cells: pl.Series, form: TimeFormat) -> pl.Series:
    """Microseconds as Float64; null for text that is no time. The forms of most logs are parsed without rewriting."""
    scaled = pl.repeat(None, len(cells), dtype=pl.Float64, eager=True)
    if cells.drop_nulls().head(1).str.ends_with("Z").any():
        parsed = cells.str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ", time_unit="us", strict=False)
        scaled = parsed.to_physical().cast(pl.Float64)
    all_cells = cells
    for attempt in range(_OFFSETS + 1):
        others = (scaled.is_null() & all_cells.is_not_null()).arg_true()
        if not len(others):
            return scaled
        cells = all_cells.gather(others)
        common = _from_common(cells, form.zone) if attempt < _OFFSETS else None
        if common is None:
            break
        scaled = scaled.scatter(others, common)
    is_number = cells.str.contains(_NUMBER).fill_null(False)
    numbers = cells.set(~is_number, None)
    in_unit = _scaled(numbers.cast(pl.Int128, strict=False) if form.unit != "calendar" else numbers, form)
    if form.unit in ("s", "ms"):
        in_unit = in_unit.zip_with(in_unit.is_not_null(), _scaled(numbers.cast(pl.Float64), form))
    return scaled.scatter(others, in_unit.zip_with(is_number, _from_iso(cells, form.zone)))


def _from_common(cells: pl.Series, zone: str) -> pl.Series | None:
    """The same as `_from_iso` for the cells with the first one's offset from UTC, and null for the others.

    It costs a fifth, since to parse an offset in each cell takes most of the time. None if these cells have no common
    form.
    """
    offset = _OFFSET.search(cells[0][-6:])
    suffix = offset[0] if offset else ""
    rows = cells.str.ends_with(suffix).arg_true()
    local = cells.gather(rows).str.strip_suffix(suffix)
    for pattern, layout in _COMMON.items():
        if local.str.contains(pattern).all():
            micros = local.str.to_datetime(layout, time_unit="us", strict=False).to_physical().cast(pl.Float64)
            micros = micros - _offset_us(suffix) if suffix else _to_utc(micros, zone)
            return pl.repeat(None, len(cells), dtype=pl.Float64, eager=True).scatter(rows, micros)
    return None


def _offset_us(offset: str) -> int:
    """Microseconds of an offset from UTC: +02, +0530, -03:30."""
    minutes = int(offset[1:3]) * 60 + int(offset[3:].strip(":") or 0)
    return (-minutes if offset[0] == "-" else minutes) * 60 * 1_000_000


def _scaled(numbers: pl.Series, form: TimeFormat, unit: str = "") -> pl.Series:
    """Microseconds as Float64, exact within 250 years of 1970; fractions of a microsecond are cut off."""
    origin_us = 0 if unit else form.origin_us
    unit = unit or form.unit
    if unit == "calendar":
        parts = numbers.cast(pl.String).str.extract(rf"^({_CALENDAR.pattern})$").str.pad_end(17, "0")
        iso = parts.str.replace(r"^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d{3})$", "${1}-${2}-${3}T${4}:${5}:${6}.${7}")
        return _from_iso(iso, form.zone)
    micros = numbers.cast(pl.Float64) * US_PER[unit]
    if unit == "ns" and numbers.dtype != pl.Float64:
        micros = (numbers.cast(pl.Int128) // 1000).cast(pl.Float64)
    return (micros.round() if numbers.dtype == pl.Float64 else micros) + origin_us


def _from_iso(cells: pl.Series, zone: str) -> pl.Series:
    """Microseconds as Float64 of ISO 8601: with an offset, in ``zone`` without one, or a date; null for other text.

    Blanks for the T, a comma before the fraction, the suffixes UTC and GMT and an offset of hours alone are read as
    well, since databases write them; so are the forms of `_RARE`.
    """
    micros = _from_extended(cells, zone)
    others = (micros.is_null() & cells.is_not_null()).arg_true()
    if not len(others):
        return micros
    rare = cells.gather(others)
    for pattern, extended in _RARE.items():
        rare = rare.str.replace(pattern, extended)
    return micros.scatter(others, _from_extended(rare, zone))


def _from_extended(cells: pl.Series, zone: str) -> pl.Series:
    """`_from_iso` of the extended form, with separators in date and time."""
    iso = cells.str.replace(r"^(\d{4}-\d\d-\d\d)[ t](\d)", "${1}T${2}").str.replace(r" ?(?:[Zz]|UTC|GMT)$", "+00:00")
    iso = iso.str.replace(r"^(\d{4}-\d\d-\d\d)$", "${1}T00:00:00").str.replace(r"^([^,]+:\d\d),(\d+)", "${1}.${2}")
    iso = iso.str.replace(r"^([^ ]+T[\d:.]+) ([+-])", "${1}${2}").str.replace(r"(T[\d:.]+[+-]\d\d)$", "${1}:00")
    iso = iso.str.replace(r"(T\d\d:\d\d)([+-]|$)", "${1}:00${2}")
    as_utc = iso.str.replace(r"(T[\d:.]+)$", "${1}+00:00")
    parsed = as_utc.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%z", time_unit="us", time_zone="UTC", strict=False)
    micros = parsed.to_physical().cast(pl.Float64)
    if zone == "UTC":
        return micros
    return _to_utc(micros, zone).zip_with((iso == as_utc).fill_null(False) ^ True, micros)


def _to_utc(local: pl.Series, zone: str) -> pl.Series:
    """Microseconds of wall time in ``zone`` -> UTC, Float64. The hour that a clock repeats is its first one."""
    if zone == "UTC":
        return local
    is_printable = (local.abs() < 200 * 366 * US_PER_DAY).fill_null(False)
    wall = local.set(~is_printable, None).cast(pl.Int64).cast(pl.Datetime("us"))
    utc = wall.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null").dt.convert_time_zone("UTC")
    return utc.to_physical().cast(pl.Float64).zip_with(is_printable, local)


def _reason(text: str, micros: float | None, kind: pl.DataType, form: TimeFormat, open_end: bool) -> str | None:
    """The reason for a value that is not inside the range; None if it means never. ``text``: numbers as they are."""
    if not kind.is_temporal() and not form.origin_us and (unit := _recognised(text, form)) is not None:
        name = _NAMES.get(unit, "digits of a calendar date")
        return f"is in {name} by its range: {text}; read the times with --time-unit {unit}"
    if micros is None or (kind == pl.String and len(text) < 5):
        return f"is not a time such as 2026-03-01T08:30:00Z: {text if len(text) <= 60 else text[:57] + '...'!r}"
    if open_end and micros >= form.latest_us:
        return None
    first, last = (f"{datetime.fromtimestamp(us / 1e6, UTC):%Y-%m-%d}" for us in (form.earliest_us, form.latest_us))
    return f"is outside {first} to {last}: {_printed(text, micros, kind)}"


def _printed(text: str, micros: float, kind: pl.DataType) -> str:
    if kind == pl.String and not re.fullmatch(_NUMBER, text):
        return text
    try:
        return str(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros))
    except OverflowError:
        return text


def _recognised(text: str, form: TimeFormat) -> str | None:
    """The unit in which a number is inside the range; None for other text and for a number of no unit."""
    if not re.fullmatch(_NUMBER, text):
        return None
    for unit in _NAMES:
        if unit != form.unit and form.earliest_us <= float(text) * US_PER[unit] < form.latest_us:
            return unit
    return "calendar" if form.unit != "calendar" and _CALENDAR.fullmatch(text) else None
