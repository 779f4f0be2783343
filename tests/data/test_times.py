"""Times of text: the quick parse of common forms gives the same instants as the general one."""

from __future__ import annotations

import polars as pl
import pytest

from leadre.data import times

COLUMNS = (
    ("2026-03-01 00:00:08+02", "2026-03-01 00:00:08.25+02", None),
    ("2026-03-01T00:00:08-03:30", "2026-03-01T00:00:08-0330"),
    ("2026-03-29 01:59:59+01", "2026-03-29 03:00:00+02", "2026-02-30 00:00:00+02", "2026-03-29 01:00:00Z"),
    ("2026-03-01 00:00:00+01", "2026-03-01 00:00:00+02", "2026-03-01 00:00:00+03", "2026-03-01 00:00:00"),
    ("2026-03-01 08:00:00+23:59", "2026-03-01 08:00:00-24:00", "2026-03-01 08:00:00+10:60"),
    ("2026-03-01 08:00:00", "2026-03-01"),
    ("2026-03-01", "2026-03-01 08:00:00+00"),
    (None, None),
)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai"])
@pytest.mark.parametrize("column", COLUMNS)
def test_common_forms_are_the_same_instants_as_iso_8601(column: tuple[str | None, ...], zone: str) -> None:
    cells = pl.Series(column, dtype=pl.String)
    parsed = times._from_text(cells, times.TimeFormat(zone=zone))
    assert parsed.to_list() == times._from_iso(cells, zone).to_list()


def test_offset_is_taken_from_each_cell() -> None:
    cells = pl.Series(["1970-01-01 02:00:00+02", "1970-01-01 01:00:00+02:00", "1970-01-01 00:00:00Z", "1970-01-01"])
    assert times._from_text(cells, times.TimeFormat()).to_list() == [0, -3_600_000_000, 0, 0]
