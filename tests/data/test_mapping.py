"""Mappings of own logs: files, expressions, joins, lists and conditions; a wrong mapping is refused with its place."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from leadre import config
from leadre.data import run
from leadre.data.tables import Tables
from leadre.errors import InputError
from tests.data.conftest import read_folder

ADS: dict[str, Any] = {"file": "feed.csv", "ad_id": "creative", "title": "name", "price": "usd"}
EVENTS: dict[str, Any] = {
    "file": "log*.csv",
    "time_unit": "ms",
    "user_id": "'k' || cookie",
    "at": "ts_ms",
    "domain": "'ad'",
    "item_id": "creative",
    "value": "usd",
    "actions": [
        {"action": "'impression'", "where": "kind = 'imp'"},
        {"action": "'click'", "where": "kind = 'click'"},
        {"action": "'conversion'", "where": "kind = 'order'"},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An ad server's log of two files and a product feed; a row of another kind in each file."""
    folder = tmp_path / "logs"
    folder.mkdir()
    feed = "creative;name;sku;usd\n" + "".join(f"b{n};Boot {n};s{n // 2};{n}.5\n" for n in range(4))
    (folder / "feed.csv").write_text(feed)
    for part in range(2):
        lines = ["ts_ms,cookie,kind,creative,usd"]
        for n in range(part * 30, part * 30 + 30):
            start_ms = 1772352000000 + n * 3_600_000
            lines.append(f"{start_ms},{n % 5},imp,b{n % 4},")
            lines.append(f"{start_ms},{n % 5},click,b{n % 4},")
            lines.append(f"{start_ms},{n % 5},order,b{n % 4},19.99")
        lines.append("1772352000000,1,heartbeat,,")
        (folder / f"log-{part}.csv").write_text("\n".join(lines) + "\n")
    return folder


def mapped(folder: Path, ads: Any = ADS, events: Any = EVENTS, **tables: Any) -> Tables:
    return read_folder(folder, columns={"ads": ads, **tables}, events=events, max_bad_share=0.0)


def test_log_is_mapped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = mapped(folder)
    assert tables.ads["price_nanos"].to_list() == [500_000_000 + n * 1_000_000_000 for n in range(4)]
    assert tables.events["action"].value_counts().sort("action")["count"].to_list() == [60, 60, 60]
    assert tables.events["at"][0] == datetime(2026, 3, 1, 8, tzinfo=UTC)
    assert tables.events.filter(action="conversion")["value_nanos"].unique().to_list() == [19_990_000_000]
    assert set(tables.users["user_id"]) == {f"k{n}" for n in range(5)}
    text = capsys.readouterr().err
    assert "events: 2 of 182 rows meet no condition of the mapping" in text
    assert "feed.csv: not read: column 'sku'" in text


def test_one_row_gives_events_with_own_times_and_values(folder: Path) -> None:
    rows = [
        {"u": f"u{n % 5}", "a": f"b{n % 4}", "t": n * 100, "bought": n % 2, "later": n * 100 + 7} for n in range(60)
    ]
    (folder / "wide.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    actions = [
        {"action": "'click'"},
        {"action": "'conversion'", "where": "bought = '1'", "at": "later", "value": "'2.5'"},
    ]
    events = {"file": "wide.jsonl", "time_unit": "s", "time_origin": "2026-01-01", "user_id": "u", "at": "t"}
    events |= {
        "domain": "'ad'",
        "item_id": "a",
        "request_id": "concat(u, '-', t)",
        "unordered": True,
        "actions": actions,
    }
    tables = mapped(folder, events=events)
    bought = tables.events.filter(action="conversion")
    assert bought.height == 30 and bought["at"].min() == datetime(2026, 1, 1, 0, 1, 47, tzinfo=UTC)
    assert bought["value_nanos"].unique().to_list() == [2_500_000_000]
    assert tables.requests.height == 30


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_entries_of_a_list_become_rows(folder: Path, form: str) -> None:
    shown = [[f"b{k}" for k in range(4) if k <= n % 4] for n in range(60)]
    rows: list[dict[str, Any]] = [{"u": f"u{n % 5}", "t": n, "ads": shown[n]} for n in range(60)]
    if form == "csv":
        rows = [row | {"ads": " ".join(row["ads"])} for row in rows]
        pl.DataFrame(rows).write_csv(folder / "lists.csv")
    elif form == "parquet":
        pl.DataFrame(rows).write_parquet(folder / "lists.parquet")
    else:
        (folder / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    events = {"file": f"lists.{form}", "explode": "ads", "user_id": "u", "at": "t", "time_unit": "s"}
    events |= {"domain": "'ad'", "item_id": "ads", "action": "'conversion'", "time_origin": "2026-01-01"}
    assert mapped(folder, events=events).events.height == sum(map(len, shown))


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_fields_of_objects_are_columns(folder: Path, form: str) -> None:
    """A visit with the place of its user and a list of the ads that it showed."""
    rows = [
        {
            "user": {"id": f"u{n % 5}", "home": {"town": f"t{n % 2}"}},
            "shown": [{"ad": f"b{k}", "Second": n} for k in range(n % 4)],
        }
        for n in range(60)
    ]
    if form == "parquet":
        pl.DataFrame(rows).write_parquet(folder / "visits.parquet")
    else:
        text = json.dumps(rows[0] | {"shown": None}) + "\n" + "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "visits.jsonl").write_text(text)
    events = {"file": f"visits.{form}", "explode": "shown", "user_id": '"user.id"', "at": '"shown.Second"'}
    events |= {"domain": "'ad'", "item_id": '"shown.ad"', "action": "'conversion'", "placement_id": '"user.home.town"'}
    read = mapped(folder, events=events | {"time_unit": "s", "time_origin": "2026-01-01", "unordered": True}).events
    assert read.height == sum(n % 4 for n in range(60))
    last = read.sort("at")["user_id", "item_id", "placement_id", "at"].row(-1)
    assert last == ("u4", "b2", "t1", datetime(2026, 1, 1, 0, 0, 59, tzinfo=UTC))


@pytest.mark.parametrize(
    "row",
    [
        '{"user.id": "k9", "user": {"id": "u1"}, "shown": [{"ad": "b1"}]}',
        '{"user": {"id": "u1"}, "user.id": "k9", "shown": [{"ad": "b1"}]}',
        '{"user": {"id": "u1"}, "shown": [{"ad": "b1"}], "user": {"id": "k9"}}',
        '{"user": {"id": "u1", "id": "k9"}, "shown": [{"ad": "b1"}]}',
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_second_value_of_a_column_is_not_lost(folder: Path, row: str, form: str) -> None:
    events = {"file": f"visits.{form}", "explode": "shown", "user_id": '"user.id"', "at": "'2026-01-01'"}
    events |= {"domain": "'ad'", "item_id": '"shown.ad"', "action": "'conversion'"}
    (folder / f"visits.{form}").write_text(row if form == "jsonl" else f"[\n{row}]")
    with pytest.raises(InputError, match=rf"visits\.{form}, row .*(has two values|has the key .* twice)"):
        mapped(folder, events=events)


def test_field_with_the_name_of_a_column_is_refused(folder: Path) -> None:
    """A key beside the list of objects that has it, and a column beside a struct."""
    events = EVENTS | {"explode": "shown", "item_id": '"shown.ad"'}
    (folder / "wide.jsonl").write_text('{"shown": [{"ad": "b1"}], "shown.ad": "b2"}\n')
    pl.DataFrame({"shown": [[{"ad": "b1"}]], "shown.ad": ["b2"]}).write_parquet(folder / "wide.parquet")
    for form in ("jsonl", "parquet"):
        with pytest.raises(InputError, match=rf"wide\.{form}: has a column 'shown\.ad' and a field of 'shown'"):
            mapped(folder, events=events | {"file": f"wide.{form}"})


def test_columns_without_lists_or_fields_are_refused(folder: Path) -> None:
    pl.DataFrame({"cookie": [1], "creative": ["b1"]}).write_parquet(folder / "wide.parquet")
    with pytest.raises(InputError, match=r"explode = 'cookie': is no list in wide\.parquet but Int64"):
        mapped(folder, events=EVENTS | {"file": "wide.parquet", "explode": "cookie"})
    (folder / "wide.jsonl").write_text('{"user": 5}\n')
    with pytest.raises(InputError, match=r"wide\.jsonl, row 1: cannot be read: .*is a JSON int, and the mapping reads"):
        mapped(folder, events=EVENTS | {"file": "wide.jsonl", "user_id": '"user.id"'})


def arrays(folder: Path, lines: list[Any], form: str = "jsonl", **options: Any) -> Tables:
    """The tables of lines that are arrays, by a mapping with a header."""
    (folder / f"arrays.{form}").write_text("".join(json.dumps(line) + "\n" for line in lines))
    events = {"file": f"arrays.{form}", "header": ["who", "ad", "second", "kind"], "where": "ad IS NOT NULL"}
    events |= {"user_id": "who", "at": "second", "time_unit": "s", "time_origin": "2026-01-01", "domain": "'ad'"}
    events |= {"item_id": "ad", "action": "kind"}
    return read_folder(folder, columns={"ads": ADS}, events=events, **options)


def test_json_arrays_are_rows_by_the_header(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line is one row, or an array of them; a faulty row makes its line bad."""
    rows = [[f"u{n % 5}", f"b{n % 4}", n, "conversion"] for n in range(60)]
    lines: list[Any] = [*rows[:20], rows[20:40], [["u0", None, 0, None]], rows[40:]]
    assert arrays(folder, lines, max_bad_share=0.0).events.height == 60
    assert "events: 1 of 23 rows meet no condition of the mapping" in capsys.readouterr().err
    bad = [[rows[0], [["u0"], "b0", 60, "conversion"]], rows[0][:3], 5, []]
    tables = arrays(folder, [*lines, *bad], max_bad_share=0.5)
    assert tables.events.height == 60
    assert tables.bad_rows["row"].to_list() == [24, 25, 26, 27]
    header = "values, but .* header has 4 names"
    reasons = ("does not fit", f"3 {header}", "is not an object", f"0 {header}")
    for why, part in zip(tables.bad_rows["why"], reasons, strict=True):
        assert re.search(part, why)
    (folder / "arrays.jsonl").unlink()
    assert arrays(folder, [rows], form="json").events.height == 60
    with pytest.raises(InputError, match=r"arrays\.json, row 1: text after the end of the array"):
        arrays(folder, lines, form="json")


def test_joined_file_gives_columns(folder: Path) -> None:
    events = EVENTS | {"join": {"file": "feed.csv", "on": "creative"}, "placement_id": "concat('shelf ', sku)"}
    del events["value"]  # a column of both files
    placements = mapped(folder, events=events).events.select("item_id", "placement_id").unique()
    assert dict(placements.iter_rows()) == {f"b{n}": f"shelf s{n // 2}" for n in range(4)}
    with (folder / "feed.csv").open("a") as file:
        file.write("b0;again;s0;1\n")
    with pytest.raises(InputError, match=r"join of events with feed\.csv: creative 'b0' is there twice"):
        mapped(folder, ads=ADS | {"distinct": True}, events=events)


def test_rows_that_match_no_row_of_a_joined_file_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = EVENTS | {"join": {"file": "shelves.csv", "on": "creative"}, "placement_id": "shelf"}
    shelves = [f"b{n},top" for n in range(4)]
    (folder / "shelves.csv").write_text("\n".join(["creative,shelf", *shelves]))
    mapped(folder, events=events)
    text = capsys.readouterr().err
    assert "events: 180 of 182 rows match a row of shelves.csv by creative" in text
    assert "no table has these names" not in text
    (folder / "shelves.csv").write_text("\n".join(["creative,shelf", *shelves[:3], "b9,top"]))
    assert mapped(folder, events=events).events["placement_id"].null_count() == 45
    assert "events: 135 of 182 rows match a row of shelves.csv by creative" in capsys.readouterr().err
    (folder / "shelves.csv").write_text("creative,shelf\nB0,top\n B1,top")
    with pytest.raises(InputError, match=r"join of events with shelves\.csv: none of 182 rows has a creative that"):
        mapped(folder, events=events)
    (folder / "shelves.csv").write_text("creative,shelf\n")
    with pytest.raises(InputError, match=r"join of events with shelves\.csv: the file has no rows; fill it"):
        mapped(folder, events=events)


def test_bad_rows_of_a_mapped_table_name_the_row_of_the_file(folder: Path) -> None:
    path = folder / "log-1.csv"
    path.write_text(path.read_text().replace("b3,19.99", "b9,19.99", 1))
    with pytest.raises(InputError, match=r"log-1\.csv, row 7: is unknown: no ad has the ID b9"):
        mapped(folder)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"user": "cookie"}, r"\[data\.events\]: unknown key 'user'; the nearest is 'user_id'"),
        ({"user_id": "cookies"}, r"\[data\.events\]: log-0\.csv has no column 'cookies'; the nearest is 'cookie'"),
        ({"user_id": "cookie ||"}, r"\[data\.events\] user_id = 'cookie \|\|': is no expression of SQL"),
        ({"user_id": "read_csv('/etc/passwd')"}, r"is no expression of SQL"),
        ({"user_id": "(SELECT 1)"}, r"\[data\.events\] user_id = '\(SELECT 1\)'"),
        ({"user_id": 5}, r"\[data\.events\] user_id: must be an expression in quotes"),
        ({"where": "cookie"}, r"\[data\.events\] where = 'cookie': is no condition"),
        ({"where": "CAST(kind AS DOUBLE) > 4"}, r"cannot be computed for log-0\.csv .*TRY_CAST"),
        ({"file": "../logs/log-0.csv"}, r"must be below"),
        ({"file": "nothing*.csv"}, r"no such file in .*; it has feed\.csv, log-0\.csv, log-1\.csv"),
        ({"time_unit": "minutes"}, r"time_unit = 'minutes': must be one of us, s, ms, ns, calendar"),
        ({"time_zone": "Mars"}, r"--time-zone 'Mars': no such zone"),
        ({"explode": "cookies"}, r"\[data\.events\]: log-0\.csv has no column 'cookies'"),
        ({"unordered": "yes"}, r"unordered: must be true or false"),
        ({"actions": [{"act": "'click'"}]}, r"actions: unknown key 'act'; the nearest is 'at'"),
        ({"join": {"file": "feed.csv"}}, r"join: must be a table with file and on"),
    ],
)
def test_wrong_mapping_is_refused(folder: Path, change: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        mapped(folder, events=EVENTS | change)


def test_unknown_table_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"\[data\.columns\.add\]: no such table; the nearest is 'ads'"):
        mapped(folder, add={})


def test_times_without_an_offset_are_in_the_zone(folder: Path) -> None:
    (folder / "log-1.csv").unlink()
    rows = "".join(f"2026-07-{n + 1:02} 02:00:00,{n % 5},order,b{n % 4},1\n" for n in range(20))
    (folder / "log-0.csv").write_text("ts_ms,cookie,kind,creative,usd\n" + rows)
    tables = mapped(folder, events=EVENTS | {"time_zone": "Europe/Rome"})
    assert tables.events["at"][0] == datetime(2026, 7, 1, tzinfo=UTC)


def test_mapping_is_read_from_the_config(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        f"""
        [data]
        source = "files"
        path = "{folder}"
        [data.columns.ads]
        file = "feed.csv"
        ad_id = "creative"
        title = "name"
        [data.events]
        file = "log*.csv"
        time_unit = "ms"
        user_id = "cookie"
        at = "ts_ms"
        domain = "'ad'"
        item_id = "creative"
        actions = [{{ action = "'click'", where = "kind = 'click'" }}]
        """
    )
    options = config.load(run.Config, section="data", path=tmp_path / "mine.toml", flags={"positive": "click"})
    run.run(options.changed({"work": tmp_path / "work", "run": "mine"}))
    assert pl.read_parquet(tmp_path / "work" / "mine" / "data" / "events.parquet").height == 60
    with pytest.raises(InputError, match="--events: must be table of the TOML file"):
        config.load(run.Config, section="data", path=None, flags={"events": "x"})


def test_join_of_numbers_with_text(folder: Path) -> None:
    """Keys are compared as text: Parquet has numbers where a CSV has digits."""
    pl.DataFrame({"cookie": [0, 1, 2, 3, 4], "town": ["A", "B", "C", "D", "E"]}).write_parquet(folder / "towns.parquet")
    join = {"file": "towns.parquet", "on": "cookie"}
    events = mapped(folder, events=EVENTS | {"join": join, "placement_id": "town"}).events
    assert set(events["placement_id"]) == set("ABCDE")


def test_share_of_bad_rows_is_one_of_rows_and_not_of_events(folder: Path) -> None:
    """A row that gives two events counts once, so that 1 of 60 is above 1 %."""
    both = [{"action": f"'{action}'", "where": "kind = 'imp'"} for action in ("impression", "conversion")]
    path = folder / "log-0.csv"
    path.write_text(path.read_text().replace("1772352000000,0,imp", "soon,0,imp"))
    with pytest.raises(InputError, match="events: 1 of 60 rows are bad"):
        read_folder(folder, columns={"ads": ADS}, events=EVENTS | {"actions": both})
