"""Rules of the schema: the conversion of each cell, and the messages."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

from leadre.data import cells, tables
from leadre.data.tables import ROW
from leadre.errors import InputError

MOMENT = datetime(2026, 3, 1, 8, 30, tzinfo=UTC)


def raw_events(**columns: object) -> pl.DataFrame:
    base = {"user_id": ["u"], "at": ["2026-03-01T08:30:00Z"], "domain": ["ad"], "item_id": ["a"], "action": ["click"]}
    return pl.DataFrame({ROW: [7], **base, **columns})


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-01T08:30:00Z",
        "2026-03-01 08:30:00",
        "2026-03-01T08:30",
        "2026-03-01T10:30:00.000+02:00",
        "2026-03-01T10:30:00+0200",
        str(int(MOMENT.timestamp() * 1_000_000)),
    ],
)
def test_time_formats(text: str) -> None:
    good, bad = cells.conform("events", raw_events(at=[text]), "e.csv")
    assert bad.height == 0
    assert good["at"].to_list() == [MOMENT]


@pytest.mark.parametrize(
    "text", ["yesterday", "2026-13-01", "1772353800", "1772353800000", "08:30", "2026-03-01T25:00:00"]
)
def test_invalid_times_are_bad_rows(text: str) -> None:
    good, bad = cells.conform("events", raw_events(at=[text]), "e.csv")
    assert good.height == 0
    assert bad.select("file", "row", "column").rows() == [("e.csv", 7, "at")]
    assert text in bad["why"][0]


def test_date_alone_is_midnight_utc() -> None:
    good, _ = cells.conform("events", raw_events(at=["2026-03-01"]), "e.csv")
    assert good["at"].to_list() == [datetime(2026, 3, 1, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("value_nanos", "1.5", "is not a whole number"),
        ("value_nanos", "-1", "is below zero"),
        ("value_nanos", "99999999999999999999", "is not a whole number"),
        ("domain", "video", "is not one of content, ad"),
        ("action", "Click", "is not one of impression, click, conversion, view"),
        ("user_id", " ", "is missing"),
        ("item_id", None, "is missing"),
    ],
)
def test_bad_cells_are_bad_rows(column: str, value: str | None, why: str) -> None:
    frame = raw_events(**{column: pl.Series([value], dtype=pl.String)})
    good, bad = cells.conform("events", frame, "e.csv")
    assert good.height == 0
    assert bad["column"].to_list() == [column]
    assert bad["why"][0].startswith(why)


@pytest.mark.parametrize("column", ["value_nanos", "placement_id", "request_id"])
@pytest.mark.parametrize("kind", [pl.String, pl.Categorical])
def test_blank_optional_cells_are_missing_values(column: str, kind: pl.DataType) -> None:
    """Many programs that write CSV quote every empty field, which a parser returns as text without characters."""
    for blank in ("", " "):
        good, bad = cells.conform("events", raw_events(**{column: pl.Series([blank], dtype=kind)}), "e.csv")
        assert bad.height == 0
        assert good[column].to_list() == [None]


def test_table_without_text_columns_is_read() -> None:
    good, bad = cells.conform("users", pl.DataFrame({ROW: [1], "user_id": [12], "age": [40]}), "u.parquet")
    assert bad.height == 0
    assert good.select("user_id", "age").rows() == [("12", 40)]


def test_message_of_a_missing_column_names_the_most_similar() -> None:
    frame = raw_events().rename({"item_id": "itemid"})
    with pytest.raises(InputError, match=r"e\.csv: column 'item_id' is missing.*rename 'itemid'"):
        cells.conform("events", frame, "e.csv")


@pytest.mark.parametrize(
    ("column", "values", "advice"),
    [("value_nanos", [1.5], "int64"), ("at", [3.0], "timestamp"), ("user_id", [2.0], "write it as string")],
)
def test_parquet_type_that_does_not_fit_is_rejected(column: str, values: list[float], advice: str) -> None:
    with pytest.raises(InputError, match=f"column {column!r} of events has the type Float64.*{advice}"):
        cells.conform("events", raw_events(**{column: values}), "e.parquet")


def test_parquet_types_that_fit() -> None:
    columns = {
        "user_id": [12],
        "at": pl.Series([MOMENT.replace(tzinfo=None)], dtype=pl.Datetime("ms")),
        "domain": pl.Series(["ad"], dtype=pl.Categorical),
        "value_nanos": pl.Series([3], dtype=pl.UInt32),
        "placement_id": pl.Series([None], dtype=pl.Null),
    }
    good, bad = cells.conform("events", raw_events(**columns), "e.parquet")
    assert bad.height == 0
    row = good.row(0, named=True)
    assert (row["user_id"], row["at"], row["value_nanos"], row["placement_id"]) == ("12", MOMENT, 3, None)


def test_share_of_bad_rows_counts_rows() -> None:
    bad = pl.DataFrame(
        [("events", "e.csv", 3, "at", "is not a time: x"), ("events", "e.csv", 3, "item_id", "is missing")],
        schema=tables.BAD_ROWS,
        orient="row",
    )
    tables.check_share(bad, {"events": 100}, 0.01)
    with pytest.raises(InputError, match=r"(?s)1 of 99 rows are bad.*first: e\.csv, row 3: is not a time: x"):
        tables.check_share(bad, {"events": 99}, 0.01)


def test_sanitise_cleans_texts_and_keeps_ids() -> None:
    ads = pl.DataFrame({"ad_id": ["a\u200b"], "title": ["\u200b"], "category_path": [["x\n", "\u200b", "y"]]})
    ads = tables.sanitise("ads", tables.complete("ads", ads))
    assert ads.select("ad_id", "title").rows() == [("a\u200b", "")]
    assert ads["category_path"].to_list() == [["x", "y"]]
    users = tables.sanitise("users", pl.DataFrame({"user_id": ["u\u200b"], "town": ["Ge\u202enoa"], "age": [3]}))
    assert users.rows() == [("u\u200b", "Genoa", 3)]
