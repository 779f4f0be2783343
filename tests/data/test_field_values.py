"""Values as people write them: times, money, IDs, profiles and late labels are read, or refused with their cure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from leadre.data import run, times
from leadre.errors import InputError
from tests.data.conftest import START, market, read_folder, write

Logs = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
WHOLE_MARKET = 180


UNITS = {
    "s": lambda at: int(at.timestamp()),
    "ms": lambda at: int(at.timestamp() * 1_000),
    "ns": lambda at: int(at.timestamp()) * 1_000_000_000,
    "calendar": lambda at: int(at.strftime("%Y%m%d%H%M%S") + "000"),
}


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("unit", UNITS)
def test_unit_of_times_is_recognised_and_read_by_an_option(logs: Logs, form: str, unit: str) -> None:
    events = [row | {"at": UNITS[unit](row["at"])} for row in market()["events"]]
    folder = logs(form, events=events)
    with pytest.raises(InputError, match=f"read the times with --time-unit {unit}"):
        read_folder(folder)
    assert read_folder(folder, time_unit=unit).events.equals(read_folder(logs(form)).events)


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-01 08:30:00+00",
        "2026-03-01 08:30:00 UTC",
        "2026-03-01 08:30:00 +0000 UTC",
        "2026-03-01t08:30:00z",
        "2026-03-01T08:30:00,000Z",
        "2026-03-01T09:30+01:00[Europe/Rome]",
        "20260301T083000Z",
        "2026/03/01 08:30:00",
    ],
)
def test_times_of_databases_are_read(logs: Logs, text: str) -> None:
    folder = logs(events=[row | {"at": text} for row in market()["events"]])
    with pytest.raises(InputError, match="the test must begin later"):  # all times are one, so they were read
        read_folder(folder)


def windows(starts_at: object, ends_at: object, kind: pl.DataType) -> pl.DataFrame:
    rows = {"ad_id": [f"a{n}" for n in range(4)], "starts_at": [starts_at] * 4, "ends_at": [ends_at] * 4}
    return pl.DataFrame(rows, schema={"ad_id": pl.String(), "starts_at": kind, "ends_at": kind})


NEVER = 2**63 - 1
START_US = int(START.timestamp()) * 1_000_000


@pytest.mark.parametrize("table", ["ads", "inventory"])
@pytest.mark.parametrize(
    ("starts_at", "why"),
    [
        (START_US // 1_000, "is in milliseconds by its range"),
        (1_000_000, "is outside 1990-01-01 to 2100-01-01: 1970-01-01"),
        (-NEVER, "is outside 1990-01-01 to 2100-01-01: -9223372036854775807"),
    ],
)
def test_range_of_times_guards_every_table(logs: Logs, table: str, starts_at: int, why: str) -> None:
    frame = windows(starts_at, None, pl.Int64())
    if table == "ads":
        frame = frame.with_columns(title=pl.lit("x"))
    folder = logs(**{table: None})
    (folder / f"{table}.csv").unlink(missing_ok=True)
    frame.write_parquet(folder / f"{table}.parquet")
    with pytest.raises(InputError, match=f"column 'starts_at' is .*{table}.parquet, row 1: {why}"):
        read_folder(folder)


def test_listed_request_outside_the_range_is_bad(logs: Logs) -> None:
    visits = [{"request_id": f"x{n}", "user_id": "u0", "at": "1970-01-01T00:00:00Z"} for n in range(3)]
    with pytest.raises(InputError, match=r"requests\.csv, row 2: is outside"):
        read_folder(logs(requests=visits))


@pytest.mark.parametrize(
    ("ends_at", "kind"),
    [(NEVER, pl.Int64()), (NEVER, pl.Datetime("us")), (datetime(9999, 12, 31, tzinfo=UTC), pl.Datetime("us", "UTC"))],
)
def test_end_after_the_range_means_never(logs: Logs, ends_at: object, kind: pl.DataType) -> None:
    folder = logs()
    frame = windows(None, ends_at, pl.Int64() if kind == pl.Int64() else pl.Datetime("us"))
    if kind != pl.Int64():
        value = (
            NEVER if ends_at == NEVER else int((ends_at - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
        )
        frame = windows(None, value, pl.Int64()).with_columns(pl.col("ends_at").cast(kind))
    frame.write_parquet(folder / "inventory.parquet")
    assert read_folder(folder).events.height == WHOLE_MARKET


def test_split_without_a_label_in_time_is_refused(logs: Logs, capsys: Capture) -> None:
    events = market()["events"]
    shown = [row for row in events if row["action"] == "impression"]

    def delayed(days: int) -> list[dict[str, Any]]:
        bought = [row | {"action": "conversion", "at": row["at"] + timedelta(days=days)} for row in shown]
        return shown + bought

    with pytest.raises(InputError, match="no request of train has a label: the conversions of all 48 came after"):
        read_folder(logs(events=delayed(20)), unordered=True)
    tables = read_folder(logs(events=delayed(1)), unordered=True)
    lost = "lost their label, as their conversion came after the next split began: 3 of train, 3 of valid"
    assert lost in capsys.readouterr().err
    assert tables.requests.height + tables.empty_requests.height == 60 and tables.empty_requests.height == 6


def test_requests_without_a_label_are_counted_aloud(logs: Logs, capsys: Capture, tmp_path: Path) -> None:
    events = [row for n, row in enumerate(market()["events"]) if n % 6 != 2]
    run.run(run.Config(run="mine", work=tmp_path / "work", source="files", path=logs(events=events)))
    assert "; 30 without a conversion are kept apart, for ranking" in capsys.readouterr().err


def test_ids_of_two_tables_that_coincide(logs: Logs, capsys: Capture) -> None:
    same = market()
    for n, row in enumerate(same["ads"]):
        row["ad_id"] = str(n)
        row["object_id"] = None
    for n, row in enumerate(same["contents"]):
        row["content_id"] = str(n)
    for row in same["events"]:
        row["item_id"] = "0" if row["domain"] == "content" else row["item_id"][1:]
    folder = logs(**same)
    read_folder(folder)
    assert "2 IDs are an ad's object and a content with another title (first: '0' is" in capsys.readouterr().err
    tables = read_folder(folder, content_prefix="film ")
    assert tables.contents["content_id"].to_list() == ["film 0", "film 1"]
    assert set(tables.events.filter(domain="content")["item_id"]) == {"film 0"}
    assert "IDs are an ad's object" not in capsys.readouterr().err


def test_values_of_a_request_never_wrap(logs: Logs) -> None:
    events = market()["events"]
    for row in events[2::3]:
        row["value_nanos"] = 2**62
    assert read_folder(logs(events=events)).events["value_nanos"].max() == 2**62
    with pytest.raises(InputError, match=r"events\.csv, row 6, column 'value_nanos': the values of the request 'r0-0'"):
        read_folder(logs(events=[row for row in events for _ in range(2)]))


PROFILES = [
    {"user_id": "u0", "postcode": "01000", "code": "12345678901234567", "age": 24, "premium": True, "likes": "nan"},
    {"user_id": "u1", "postcode": "99000", "code": "12345678901234568", "age": 30, "premium": False, "likes": "7"},
]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_profile_is_the_same_from_every_form(logs: Logs, form: str) -> None:
    users = read_folder(logs(form, users=PROFILES)).users.drop("user_id")
    shown = [[str(value) for value in row] for row in users.head(2).rows()]
    assert shown[0] == ["01000", "12345678901234567", "24", "true", "nan"]
    assert shown[1] == ["99000", "12345678901234568", "30", "false", "7"]
    assert read_folder(logs(form, users=PROFILES), profile_numbers=("age",)).users["age"].dtype == pl.Int64


def test_decimals_of_a_profile_are_numbers_if_declared(logs: Logs) -> None:
    folder = logs("parquet")
    users = pl.DataFrame({"user_id": ["u0", "u1"], "income": [Decimal("12.50"), None]})
    users.write_parquet(folder / "users.parquet")
    assert read_folder(folder).users["income"].to_list() == ["12.50", None, None]
    assert read_folder(folder, profile_numbers=("income",)).users["income"].to_list() == [12.5, None, None]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_lists_and_nested_profile_columns(logs: Logs, capsys: Capture, form: str) -> None:
    users = [{"user_id": "u0", "interests": ["garden", "shoes"], "codes": [7, 12], "vector": [0.5, 1.0]}]
    tables = read_folder(logs(form, users=users))
    assert tables.users["interests"][0] == "garden, shoes"
    assert tables.users["codes"][0] == "7, 12"
    if form == "parquet":
        assert "neither words nor numbers are left out: vector" in capsys.readouterr().err


def test_declared_profile_numbers_are_checked(logs: Logs) -> None:
    with pytest.raises(InputError, match=r"users has no column 'years'; it has age, town"):
        read_folder(logs(), profile_numbers=("years",))
    with pytest.raises(InputError, match=r"column 'town' is not a number; first: users\.csv, row 2: .*'Genoa'"):
        read_folder(logs(), profile_numbers=("town",))


def test_infinite_profile_number_is_a_bad_row_and_nan_is_missing(logs: Logs) -> None:
    users = [{"user_id": f"u{n}", "income": value} for n, value in enumerate([1.5, float("inf"), float("nan"), 2.5])]
    read = read_folder(logs("parquet", users=users), max_bad_share=0.5)
    assert read.users.sort("user_id")["income"].drop_nulls().to_list() == [1.5, 2.5]
    (bad,) = read.bad_rows.rows(named=True)
    assert (bad["row"], bad["column"], bad["why"]) == (2, "income", "is not a number: 'inf'")


def test_profile_columns_of_two_types_are_refused(logs: Logs) -> None:
    folder = logs(users=None)
    write(folder / "users", "1", [{"user_id": "u0", "likes": ["x"]}], "parquet")
    write(folder / "users", "2", [{"user_id": "u1", "likes": "x"}], "parquet")
    with pytest.raises(
        InputError, match=r"users/2\.parquet: column 'likes' has the type String, but List\(String\) in"
    ):
        read_folder(folder)


def test_ad_that_was_left_out_is_the_reason_for_its_events(logs: Logs) -> None:
    ads = market()["ads"]
    ads[1]["title"] = None
    bad = read_folder(logs(ads=ads), max_bad_share=0.5).bad_rows
    assert bad["why"][-1] == "is of an item that was left out: a1 (ads.csv, row 3: title is missing)"
    assert bad.filter(table="events").height == 30


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_decimal_money_is_read_exactly(logs: Logs, form: str) -> None:
    events = market()["events"]
    for row in events:
        del row["value_nanos"]
        row["value"] = 19.99 if row["action"] == "conversion" else None
    ads = [
        row | {"price": 0.1 + n, "bid": 2.5, "bid_type": kind, "daily_budget": 100}
        for n, (row, kind) in enumerate(zip(market()["ads"], ("cpm", "cpc", "cpa", "cpm"), strict=True))
    ]
    tables = read_folder(logs(form, events=events, ads=ads))
    assert set(tables.events["value_nanos"]) == {None, 19_990_000_000}
    assert tables.ads["price_nanos"].to_list() == [100_000_000 + n * 1_000_000_000 for n in range(4)]
    assert tables.ads["bid_nanos"].to_list() == [2_500_000, 2_500_000_000, 2_500_000_000, 2_500_000]
    assert tables.ads["daily_budget_nanos"].to_list() == [100_000_000_000] * 4


def test_decimal_comma_needs_its_option(logs: Logs) -> None:
    ads = [row | {"price": "2,50"} for row in market()["ads"]]
    with pytest.raises(
        InputError, match=r"is not an amount such as 2\.50: '2,50'; for a decimal comma, --decimal-comma"
    ):
        read_folder(logs(ads=ads))
    assert read_folder(logs(ads=ads), decimal_comma=True).ads["price_nanos"].to_list() == [2_500_000_000] * 4


@pytest.mark.parametrize("unit", ["", "[]"])
def test_numbers_of_json_have_a_point_beside_texts_with_a_decimal_comma(logs: Logs, unit: str) -> None:
    prices = (2.5, "2,50", 3, 0.00000005)
    ads = [row | {"price": price} for row, price in zip(market()["ads"], prices, strict=True)]
    folder = logs("jsonl")
    (folder / "ads.jsonl").unlink()
    rows = [json.dumps(row) for row in ads]
    if unit:
        (folder / "ads.json").write_text(f"[{', '.join(rows)}]")
    else:
        (folder / "ads.jsonl").write_text("\n".join(rows))
    nanos = read_folder(folder, decimal_comma=True).ads["price_nanos"].to_list()
    assert nanos == [2_500_000_000, 2_500_000_000, 3_000_000_000, 50]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"price": 1, "price_nanos": 1}, "has both 'price' and 'price_nanos'"),
        ({"price": "1e3"}, "is not an amount such as 2.50: '1e3'"),
        ({"price": "-2.5"}, "is below zero: '-2.5'"),
        (
            {"price": "10000000000"},
            "is more than 9,223,372,035: '10000000000'; this column is in units of the currency",
        ),
        ({"bid": 2.5}, "needs a bid_type"),
    ],
)
def test_invalid_decimal_money_is_refused(logs: Logs, change: dict[str, object], why: str) -> None:
    with pytest.raises(InputError, match=re.escape(why)):
        read_folder(logs(ads=[row | change for row in market()["ads"]]))


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(("column", "amount"), [("price", 2_500_000_000), ("bid", 2_500_000), ("daily_budget", 10**9)])
def test_billionths_in_a_column_of_units_are_refused(logs: Logs, form: str, column: str, amount: int) -> None:
    ads = [row | {column: amount, "bid_type": "cpm"} for row in market()["ads"]]
    with pytest.raises(InputError, match=rf"column '{column}' of ads: half .* into '{column}_nanos'"):
        read_folder(logs(form, ads=ads))
    read = read_folder(logs(form, ads=ads), max_median_amount=1e10).ads
    assert set(read[f"{column}_nanos"]) == {amount * (10**6 if column == "bid" else 10**9)}


def test_large_amount_among_usual_ones_is_read(logs: Logs) -> None:
    """Zeros and missing amounts do not count as usual ones."""
    amounts = (0, 20, None, 5_000_000)
    ads = [row | {"price": amount} for row, amount in zip(market()["ads"], amounts, strict=True)]
    with pytest.raises(InputError, match="--max-median-amount"):
        read_folder(logs(ads=[row | {"price": row["price"] and 5_000_000} for row in ads]))
    assert read_folder(logs(ads=ads), max_median_amount=3_000_000).ads["price_nanos"][3] == 5_000_000 * 10**9


@pytest.mark.parametrize("kind", [pl.Float32(), pl.Decimal(10, 2), pl.Float64()])
def test_numbers_of_parquet_are_read_as_written(logs: Logs, kind: pl.DataType) -> None:
    folder = logs("parquet")
    ads = pl.read_parquet(folder / "ads.parquet").with_columns(price=pl.lit(19.99).cast(kind))
    ads.write_parquet(folder / "ads.parquet")
    for decimal_comma in (False, True):
        tables = read_folder(folder, decimal_comma=decimal_comma)
        assert set(tables.ads["price_nanos"]) == {19_990_000_000}


def test_truth_values_are_no_money(logs: Logs) -> None:
    with pytest.raises(InputError, match="it must be an amount: write it as a decimal or a number"):
        read_folder(logs("parquet", ads=[row | {"price": True} for row in market()["ads"]]))


@pytest.mark.parametrize("unit", ["us", "s"])
def test_digits_of_other_scripts_are_refused(logs: Logs, unit: str) -> None:
    """The parser reads ASCII digits alone."""
    with pytest.raises(InputError, match="is not an amount such as"):
        read_folder(logs(ads=[row | {"price": "٣"} for row in market()["ads"]]))
    with pytest.raises(InputError, match="is not a time such as"):
        read_folder(logs(events=[row | {"at": "١٧٧٢٣٥٢٠٠٠"} for row in market()["events"]]), time_unit=unit)


def test_time_that_is_no_number_is_missing(logs: Logs) -> None:
    folder = logs("parquet", inventory=[{"ad_id": f"a{n}", "ends_at": float("nan")} for n in range(4)])
    assert read_folder(folder, time_unit="s", unordered=True).bad_rows.height == 0
    events = pl.read_parquet(folder / "events.parquet").with_columns(at=pl.lit(float("nan")))
    events.write_parquet(folder / "events.parquet")
    with pytest.raises(InputError, match="column 'at' is missing"):
        read_folder(folder, time_unit="s")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_small_numbers_are_read_from_every_form(logs: Logs, form: str) -> None:
    """Writers of JSON shorten 0.00005 to 5e-05."""
    ads = [row | {"price": 0.00005} for row in market()["ads"]]
    assert set(read_folder(logs(form, ads=ads)).ads["price_nanos"]) == {50_000}


def test_a_bad_element_of_an_array_on_one_line_leaves_the_others(logs: Logs) -> None:
    ads = [*market()["ads"], {"ad_id": "a9", "title": "Late", "price": "much"}]
    folder = logs("jsonl")
    (folder / "ads.jsonl").unlink()
    (folder / "ads.json").write_text(json.dumps(ads))
    tables = read_folder(folder, max_bad_share=0.3)
    assert tables.ads["ad_id"].to_list() == ["a0", "a1", "a2", "a3"]
    assert tables.bad_rows.select("file", "row", "column").rows() == [("ads.json", 5, "price")]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Rome"])
@pytest.mark.parametrize("offset", ["", "+02", "-0330", "+05:45"])
@pytest.mark.parametrize("mark", [" ", "T"])
def test_times_of_one_form_are_read_as_beside_another_form(zone: str, offset: str, mark: str) -> None:
    """A column of one form is parsed at once; a last cell of another form makes each cell a case of its own."""
    days = ["2026-03-29", "2026-10-25", "2024-02-29", "2026-02-30", "2026-13-01", "0000-00-00", "1980-01-01"]
    clocks = ["02:30:00", "00:00:00.5", "23:59:59.999999", "24:00:00", "12:60:00"]
    cells = [f"{day}{mark}{clock}{offset}" for day in days for clock in clocks] + [None]
    form = times.TimeFormat(zone=zone)
    quick = times.micros(pl.Series(cells, dtype=pl.String), form)
    beside = times.micros(pl.Series([*cells, "2026-03-01"]), form)
    assert [part.to_list() for part in quick] == [part.head(len(cells)).to_list() for part in beside]
    assert quick[0].drop_nulls().len() > 5
