"""A user's own logs: the three forms give the same tables, and each kind of bad log has its message."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from leadre import artifact
from leadre.data import histories, run
from leadre.data.sources import files, raw, scan, separated
from leadre.data.sources.folder import Part
from leadre.data.sources.options import FileOptions
from leadre.data.split import SplitTimes
from leadre.data.tables import Tables, file_columns
from leadre.errors import InputError
from tests.data.conftest import START, live_ads, market, write

Logs = Callable[..., Path]


def read(folder: Path, positive: str = "conversion", keep_empty: bool = False, **options: Any) -> Tables:
    return files.read(folder, FileOptions(**options), SplitTimes(), positive, keep_empty)


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_three_forms_give_the_same_tables(logs: Logs, form: str) -> None:
    tables = read(logs(form), profile_numbers=("age",))
    assert tables.bad_rows.height == 0
    assert tables.ads.select("ad_id", "object_id").rows() == [(f"a{n}", f"o{n // 2}") for n in range(4)]
    assert tables.ads["category_path"].to_list()[2] == ["Home", "Kind 1"]
    assert tables.users.rows() == [("u0", 20, "Genoa"), ("u1", 21, "Genoa"), ("u2", None, None)]
    assert tables.events["at"].min() == START and tables.events["value_nanos"].sum() == 60 * 5_000_000_000
    assert tables.requests["split"].value_counts().sort("split").rows() == [("test", 6), ("train", 48), ("valid", 6)]
    assert tables.inventories.rows() == [(None, f"a{n}", None, None) for n in range(4)]


def test_table_can_be_a_folder_of_files(logs: Logs) -> None:
    folder = logs(events=None)
    events = market()["events"]
    whole = read(logs()).events
    (folder / "events.csv").unlink()
    write(folder / "events", "2026-03-01", events[:70], "csv")
    write(folder / "events", "2026-03-02", events[70:], "jsonl")
    assert read(folder).events.equals(whole)


def broken(**change: Any) -> list[dict[str, Any]]:
    """The events with row 10 (CSV row 12) changed."""
    events = market()["events"]
    events[10] = events[10] | change
    return events


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize(
    ("change", "column", "why"),
    [
        ({"item_id": "a9"}, "item_id", "is unknown: no ad has the ID a9"),
        ({"domain": "content", "item_id": "a1"}, "item_id", "is unknown: no content has the ID a1"),
        ({"at": START - timedelta(days=1)}, "at", "goes backwards: 2026-02-28"),
        ({"at": START.replace(year=1980)}, "at", "is outside 1990-01-01 to 2100-01-01: 1980"),
        ({"action": "bought"}, "action", "is not one of"),
        ({"user_id": None}, "user_id", "is missing"),
        ({"request_id": "r0-1"}, "request_id", "belongs to another user: request r0-1 is u1's"),
    ],
)
def test_bad_event_is_reported_by_row_and_column(
    logs: Logs, form: str, change: dict[str, Any], column: str, why: str
) -> None:
    folder = logs(form, events=broken(**change))
    row = {"parquet": 11, "csv": 12, "jsonl": 11}[form]
    tables = read(folder, max_bad_share=0.5)
    first = tables.bad_rows.row(0, named=True)
    assert (first["table"], first["file"], first["row"], first["column"]) == ("events", f"events.{form}", row, column)
    assert first["why"].startswith(why)
    with pytest.raises(InputError, match=rf"(?s)of 180 rows are bad.*events\.{form}, row {row}"):
        read(folder, max_bad_share=0.0)


def test_unordered_allows_events_out_of_time_order(logs: Logs) -> None:
    events = market()["events"]
    folder = logs(events=events[::-1])
    with pytest.raises(InputError, match="sort the log or pass --unordered true"):
        read(folder)
    tables = read(folder, unordered=True)
    assert tables.bad_rows.height == 0 and tables.requests.height == 60


@pytest.mark.parametrize("name", ["ads", "contents", "users"])
@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_repeated_id_is_rejected(logs: Logs, name: str, form: str) -> None:
    rows = market()[name]
    key = {"ads": "ad_id", "contents": "content_id", "users": "user_id"}[name]
    places = {"parquet": (1, len(rows) + 1), "csv": (2, len(rows) + 2), "jsonl": (1, len(rows) + 1)}[form]
    folder = logs(form, **{name: [*rows, rows[0]]})
    expected = rf"{name}\.{form}, row {places[0]} and {name}\.{form}, row {places[1]}, column '{key}': both are"
    with pytest.raises(InputError, match=expected):
        read(folder)


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_missing_column_is_rejected(logs: Logs, form: str) -> None:
    renamed = [{("when" if key == "at" else key): v for key, v in row.items()} for row in market()["events"]]
    with pytest.raises(InputError, match=rf"events\.{form}: column 'at' is missing, and events needs it"):
        read(logs(form, events=renamed))


def test_missing_empty_and_repeated_files_are_rejected(logs: Logs) -> None:
    with pytest.raises(InputError, match=r"no events\.parquet, events\.csv, events\.jsonl and no folder events"):
        read(logs(events=None))
    folder = logs()
    (folder / "ads.csv").write_bytes(b"")
    with pytest.raises(InputError, match=r"ads\.csv: has no rows"):
        read(folder)
    (folder / "ads.csv").write_text("ad_id,title\n")
    with pytest.raises(InputError, match=r"ads\.csv: has no rows"):
        read(folder)
    write(folder, "ads", market()["ads"], "jsonl")
    with pytest.raises(InputError, match=r"the table ads exists 2 times \(ads\.csv, ads\.jsonl\)"):
        read(folder)
    with pytest.raises(InputError, match="not a folder"):
        read(folder / "nowhere")


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("row", [0, 1])
def test_long_field_is_rejected(logs: Logs, form: str, row: int) -> None:
    ads = market()["ads"]
    ads[row]["title"] = "x" * 5000
    folder = logs(form, ads=ads)
    number = row + (2 if form == "csv" else 1)
    with pytest.raises(InputError, match=rf"ads\.{form}, row {number}, column 'title': longer than 4,000 bytes"):
        read(folder, max_field_bytes=4000)
    assert read(folder, max_field_bytes=6000).ads.height == 4


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_huge_field_is_rejected_in_constant_memory(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"ads.{form}"
    part = Part(path=path, label=path.name, form="separated" if form == "csv" else "json lines", compression=None)
    start = 'ad_id,title\na0,"' if form == "csv" else '{"ad_id": "a0", "title": "'
    with path.open("w") as file:
        file.write(start)
        for _ in range(64):
            file.write("x" * (1 << 20))
    tracemalloc.start()
    with pytest.raises(InputError, match="column 'title': longer than 20,000,000 bytes"):
        raw.read(part, file_columns("ads"), FileOptions(max_field_bytes=20_000_000))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 40 << 20


@pytest.mark.parametrize(
    ("form", "content", "row"),
    [
        ("csv", b"ad_id,title\na0,ok\na1,caf\xe9\n", 3),
        ("csv", b'ad_id,title\na0,"two\nlines"\na1,\xff\n', 3),
        ("jsonl", b'{"ad_id": "a0", "title": "ok"}\n{"ad_id": "a1", "title": "caf\xe9"}\n', 2),
    ],
)
def test_invalid_utf8_is_rejected(logs: Logs, form: str, content: bytes, row: int) -> None:
    folder = logs(ads=None)
    (folder / f"ads.{form}").write_bytes(content)
    with pytest.raises(InputError, match=rf"ads\.{form}, row {row}, column 'title': not valid UTF-8; write the file"):
        read(folder)


def test_invalid_utf8_in_parquet(logs: Logs) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = logs(ads=None)
    titles = pa.array([b"ok", b"caf\xe9"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"ad_id": ["a0", "a1"], "title": titles}), folder / "ads.parquet")
    with pytest.raises(InputError, match=r"ads\.parquet, row 2, column 'title': not valid UTF-8"):
        read(folder)


@pytest.mark.parametrize("block_bytes", [3, 7, 64])
def test_scan_reports_the_same_row_and_column_for_any_block_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(scan, "BLOCK_BYTES", block_bytes)
    names = ["id", "title", "brand"]
    path = tmp_path / "t.csv"
    path.write_text('id,title,brand\n1,"a, \nb",x\n22,é,' + "y" * 20 + "\n3,z,z\n")
    separated.scan_csv(path, names, "t.csv", 20)
    with pytest.raises(InputError, match=r"row 3, column 'brand': longer than 19 bytes"):
        separated.scan_csv(path, names, "t.csv", 19)
    path.write_bytes(b'id,title,brand\n1,"a, \nb",x\n22,\xc3\xa9\xc3,y\n')
    with pytest.raises(InputError, match=r"row 3, column 'title': not valid UTF-8"):
        separated.scan_csv(path, names, "t.csv", 100)
    path.write_bytes(b'id,title,brand\n1,"a, \nb')
    with pytest.raises(InputError, match="row 2: the file ends inside a quoted field"):
        separated.scan_csv(path, names, "t.csv", 100)


def test_csv_with_too_many_fields_is_rejected(logs: Logs) -> None:
    folder = logs(ads=None)
    (folder / "ads.csv").write_text("ad_id,title\na0,one\na1,two, three\n")
    with pytest.raises(InputError, match=r"ads\.csv, row 3: 3 fields, but the header has 2"):
        read(folder)
    (folder / "ads.csv").write_text("ad_id,title,title\na0,one,x\n")
    with pytest.raises(InputError, match=r"ads\.csv, row 1: column 'title' occurs 2 times"):
        read(folder)


def test_csv_from_a_spreadsheet(logs: Logs) -> None:
    folder = logs(ads=None)
    text = "\ufeffad_id,title\r\n" + "".join(f'a{n},"T ""{n}"", x"\r\n' for n in range(4))
    (folder / "ads.csv").write_bytes(text.encode())
    assert read(folder, max_bad_share=0.0).ads["title"].to_list() == [f'T "{n}", x' for n in range(4)]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{not json", "cannot be read"),
        ("[1, 2]", "is not an object but list"),
        ('{"ad_id": "a9", "title": NaN}', "NaN is not JSON"),
        ('{"ad_id": "a9", "title": {"en": "x"}}', "does not fit"),
        ('{"ad_id": "a9", "title": "\\ud800"}', "surrogates not allowed"),
        ('{"ad_id": "a9", "title": "x", "price_nanos": 1.5}', "does not fit"),
        ('{"ad_id": "a9", "title": ' + "[" * 100_000, "cannot be read"),
    ],
)
def test_bad_json_line_is_a_bad_row(logs: Logs, line: str, why: str) -> None:
    folder = logs("jsonl")
    with (folder / "ads.jsonl").open("a") as file:
        file.write("\n" + line + "\n")
    tables = read(folder, max_bad_share=0.5)
    assert tables.bad_rows.select("table", "row").rows() == [("ads", 6)]  # the blank line counts
    assert why in tables.bad_rows["why"][0]
    assert tables.ads.height == 4


def test_invalid_parquet_file_is_rejected(logs: Logs) -> None:
    folder = logs(ads=None)
    (folder / "ads.parquet").write_text("ad_id,title\n")
    with pytest.raises(InputError, match=r"ads\.parquet: not a Parquet file"):
        read(folder)


def test_inventory_windows_define_the_live_ads(logs: Logs) -> None:
    """a0 and a1 are live on the first ten days, a2 and a3 always but a3 not in placement top."""
    day10 = (START + timedelta(days=10)).isoformat()
    windows = [
        {"ad_id": "a0", "placement_id": "top", "starts_at": None, "ends_at": day10},
        {"ad_id": "a1", "placement_id": None, "starts_at": START.isoformat(), "ends_at": day10},
        {"ad_id": "a2", "placement_id": None, "starts_at": None, "ends_at": None},
        {"ad_id": "a3", "placement_id": "side", "starts_at": None, "ends_at": None},
    ]
    tables = read(logs("jsonl", inventory=windows), max_bad_share=0.5)
    live = live_ads(tables.requests, tables.inventories)
    late = (tables.requests["at"] >= START + timedelta(days=10)).to_list()
    assert {ads for ads, is_late in zip(live, late, strict=True) if not is_late} == {("a0", "a1", "a2")}
    assert {ads for ads, is_late in zip(live, late, strict=True) if is_late} == {("a2",)}
    absent = tables.bad_rows.filter(pl.col("why").str.starts_with("was not live"))
    assert absent.height == 2 * (60 - tables.requests.height) > 0  # impression and conversion of each
    with pytest.raises(InputError, match="was not live there and then"):
        read(logs("jsonl", inventory=windows))


def test_status_and_dates_of_ads_define_the_live_ads_without_an_inventory(logs: Logs) -> None:
    ads = market()["ads"]
    ads[0]["status"] = "paused"
    ads[1]["ends_at"] = START + timedelta(days=5)
    ads[2]["starts_at"] = START + timedelta(days=3)
    tables = read(logs("parquet", ads=ads), max_bad_share=1.0)
    sets = dict.fromkeys(live_ads(tables.requests.sort("at"), tables.inventories))
    assert list(sets) == [("a1", "a3"), ("a1", "a2", "a3"), ("a2", "a3")]


def test_positive_action_and_empty_requests(logs: Logs) -> None:
    events = market()["events"]
    for row in events[2::6]:
        row["action"] = "click"
    assert read(logs(events=events)).requests.height == 30
    assert read(logs(events=events), positive="click").requests.height == 30
    apart = read(logs(events=events))
    kept = read(logs(events=events), keep_empty=True)
    assert kept.requests.height == 60 and kept.empty_requests.height == kept.empty_inventories.height == 0
    both = pl.concat([apart.requests, apart.empty_requests])
    assert sorted(both.drop("split").rows()) == sorted(kept.requests.drop("split").rows())  # shares of fewer rows
    starts = dict(apart.requests.group_by("split").agg(pl.min("at")).iter_rows())
    valid = apart.empty_requests.filter(pl.col("split") == "valid")["at"]
    assert valid.len() and valid.is_between(starts["valid"], starts["test"], closed="left").all()
    both = pl.concat([apart.inventories, apart.empty_inventories])
    assert both.sort(pl.all()).equals(kept.inventories.sort(pl.all()))
    with pytest.raises(InputError, match="no request has a 'click' of a live ad"):
        read(logs(), positive="click")


def test_events_without_request_ids_are_grouped_by_user_and_instant(logs: Logs) -> None:
    events = [{key: v for key, v in row.items() if key != "request_id"} for row in market()["events"]]
    tables = read(logs(events=events))
    assert tables.requests.height == 60
    assert tables.requests["request_id"][0].startswith("u0@")


def test_listed_requests_replace_derived_ones(logs: Logs) -> None:
    visits = [
        {"request_id": "r0-0", "user_id": "u0", "at": (START - timedelta(hours=1)).isoformat(), "placement_id": "top"},
        {"request_id": "r1-0", "user_id": "u0", "at": (START + timedelta(days=1, hours=1)).isoformat()},
        {"request_id": "new", "user_id": "u9", "at": (START + timedelta(days=30)).isoformat()},
    ]
    tables = read(logs(requests=visits), max_bad_share=0.1, keep_empty=True)
    at = dict(tables.requests.select("request_id", "at").iter_rows())
    assert at["r0-0"] == START - timedelta(hours=1) and at["new"] == START + timedelta(days=30)
    assert tables.bad_rows["why"].str.starts_with("is before its request: r1-0").all() and tables.bad_rows.height == 2
    assert "u9" in tables.users["user_id"]


def test_failed_run_leaves_the_last_artifact(logs: Logs, tmp_path: Path) -> None:
    good = run.Config(run="mine", work=tmp_path / "work", source="files", path=logs())
    run.run(good)
    folder = good.folder("data")
    before = artifact.read(folder, artifact.TABLES)
    assert histories.load(before).ads.height == 4
    run.run(good)  # nothing changed: skipped
    assert artifact.read(folder, artifact.TABLES).meta == before.meta
    write(tmp_path / "logs", "events", broken(at=START), "csv")
    with pytest.raises(InputError):
        run.run(good.changed({"max_bad_share": 0.0}))
    assert artifact.read(folder, artifact.TABLES).meta == before.meta
    assert [path.name for path in folder.parent.iterdir()] == ["data"]
    run.run(good.changed({"max_bad_share": 0.5}))  # other logs under the same path are read again
    assert pl.read_parquet(folder / "bad_rows.parquet").height > 0


def test_files_source_needs_an_existing_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs --path"):
        run.run(run.Config(run="mine", work=tmp_path, source="files"))
    with pytest.raises(InputError, match="no such file or folder"):
        run.run(run.Config(run="mine", work=tmp_path, source="files", path=tmp_path / "nowhere"))
