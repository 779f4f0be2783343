"""Figures of the status page as text. Digits fit small and large numbers: only zero is shown as zero."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal

from leadre.units import NANOS_PER_UNIT, S_PER_DAY, S_PER_HOUR, S_PER_MINUTE, US_PER_S

NO_VALUE = "\N{EN DASH}"
MAX_PERCENT_DECIMALS = 4


def figure(value: float) -> str:
    """Three significant digits from 1 on, two below it: 1,234,567, 12.3, 0.0042; a dash for NaN and infinity."""
    if not math.isfinite(value):
        return NO_VALUE
    if value == 0:
        return "0"
    digits = 3 if abs(value) >= 1 else 2
    return f"{value:,.{_decimals(value, digits)}f}"


def percent(part: float, whole: float) -> str:
    """A share in percent; 0 % and 100 % are exact: 0.0042 %, 12.3 %, 99.98 %. A dash for a share of nothing."""
    if not whole:
        return NO_VALUE
    value = 100 * part / whole
    distance = min(abs(value), abs(100 - value))
    if distance == 0:
        return f"{value:.0f} %"
    if distance < 10**-MAX_PERCENT_DECIMALS:
        return "< 0.0001 %" if value < 1 else "> 99.9999 %" if value < 100 else "> 100 %"
    return f"{value:.{min(MAX_PERCENT_DECIMALS, max(1, _decimals(distance, 2)))}f} %"


def amount(nanos: int) -> str:
    """An amount of money: at least two decimals, and as many as three significant digits need."""
    value = Decimal(nanos) / NANOS_PER_UNIT
    if not nanos:
        return "0.00"
    whole, _, decimals = f"{value:,.{max(2, _decimals(float(value), 3))}f}".partition(".")
    return f"{whole}.{decimals[:2]}{decimals[2:].rstrip('0')}"


def money(nanos: int, currency: str) -> str:
    """`amount` with its currency."""
    return f"{amount(nanos)} {currency}"


def moment(at_us: int) -> str:
    """A time in UTC, to the second."""
    return datetime.fromtimestamp(at_us / US_PER_S, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float) -> str:
    """The two largest units of a duration; a dash for NaN and infinity."""
    if not math.isfinite(seconds):
        return NO_VALUE
    if 0 < seconds < 1:
        return "< 1 s"
    whole = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in (("d", S_PER_DAY), ("h", S_PER_HOUR), ("min", S_PER_MINUTE), ("s", 1)):
        if whole >= size or (unit == "s" and not parts):
            parts.append(f"{whole // size} {unit}")
            whole %= size
    return " ".join(parts[:2])


def time_range(low_s: float, high_s: float) -> str:
    """A range of durations: "10 min to 1 h", "below 1 min", "above 30 d"; a dash for NaN."""
    if math.isnan(low_s):
        return NO_VALUE
    if math.isinf(high_s):
        return f"above {duration(low_s)}"
    return f"{duration(low_s)} to {duration(high_s)}" if low_s else f"below {duration(high_s)}"


def _decimals(value: float, digits: int) -> int:
    """Decimals that show ``digits`` significant digits of a value other than 0."""
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))
