"""Files as people bring them: each form is read, or refused with place and cure; nothing is lost in silence."""

from __future__ import annotations

import bz2
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leadre.errors import InputError
from tests.data.conftest import market, read_folder, write

Logs = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
WHOLE_MARKET = 180


def pack(path: Path, ending: str) -> Path:
    """The file with a compression, in place of the plain one."""
    data = path.read_bytes()
    packed = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": lambda d: pa.compress(d, "zstd", asbytes=True)}[
        ending
    ](data)
    path.unlink()
    target = path.with_name(path.name + ending)
    target.write_bytes(packed)
    return target


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_compressed_table_is_read(logs: Logs, form: str, ending: str) -> None:
    folder = logs(form)
    pack(folder / f"events.{form}", ending)
    assert read_folder(folder).events.height == WHOLE_MARKET


def test_all_parts_of_a_folder_are_read(logs: Logs) -> None:
    """Compressed and plain parts, sub-folders, names in upper case; hidden files are passed over."""
    folder = logs(events=None)
    events = market()["events"]
    pack(write(folder / "events", "2026-03-01", events[:60], "csv"), ".gz")
    write(folder / "events" / "dt=2026-03-08", "part-0", events[60:120], "parquet")
    write(folder / "events", "2026-03-15", events[120:], "jsonl").rename(folder / "events" / "E.JSONL")
    (folder / "events" / "_SUCCESS").write_text("")
    (folder / "events" / ".part.crc").write_text("x")
    assert read_folder(folder, unordered=True).events.height == WHOLE_MARKET


def test_folder_can_have_the_name_of_a_file(logs: Logs) -> None:
    folder = logs(events=None)
    for n in range(2):
        write(folder / "Events.parquet", f"part-{n}", market()["events"][n::2], "parquet")
    assert read_folder(folder, unordered=True).events.height == WHOLE_MARKET


def test_names_of_folders_give_columns(logs: Logs) -> None:
    folder = logs(events=None)
    for placement in ("top", "side bar"):
        rows = [row | {"placement_id": None} for row in market()["events"]]
        rows = [row | {"request_id": f"{placement} {row['request_id']}"} for row in rows]
        for row in rows:
            del row["placement_id"]
        write(folder / "events" / f"placement_id={placement.replace(' ', '%20')}", "part-0", rows, "parquet")
    assert set(read_folder(folder, unordered=True).requests["placement_id"]) == {"top", "side bar"}


def test_part_without_rows_is_passed_over(logs: Logs, capsys: Capture) -> None:
    folder = logs(events=None)
    write(folder / "events", "part-0", market()["events"], "csv")
    header = (folder / "events" / "part-0.csv").read_text().splitlines()[0]
    (folder / "events" / "part-1.csv").write_text(header + "\n")
    (folder / "events" / "part-2.csv").write_text("")
    assert read_folder(folder).events.height == WHOLE_MARKET
    assert "events/part-1.csv and 1 more: has no rows" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["inventory.xlsx", "events.csv.xz", "users/part-0.orc"])
def test_table_in_an_unknown_form_stops_the_run(logs: Logs, name: str) -> None:
    folder = logs(users=None) if name.startswith("users") else logs(events=None) if "events" in name else logs()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    with pytest.raises(InputError, match=f"{re.escape(name)}: a file of this ending is not read"):
        read_folder(folder)


def test_files_that_no_table_reads_are_named(logs: Logs, capsys: Capture) -> None:
    folder = logs()
    for name in ("user.csv", "notes.txt", "ads.bak"):
        (folder / name).write_text("x")
    read_folder(folder)
    text = capsys.readouterr().err
    assert "user.csv (rename it if it is the table users)" in text and "notes.txt" in text and "ads.bak" in text


def test_columns_that_no_table_reads_are_named(logs: Logs, capsys: Capture) -> None:
    ads = [row | {"start_at": "2026-01-01", "colour": "red"} for row in market()["ads"]]
    read_folder(logs(ads=ads))
    assert "not read: columns 'start_at' (rename it if it is 'starts_at'), 'colour'" in capsys.readouterr().err


@pytest.mark.parametrize(("separator", "name"), [("\t", "tabs"), (";", "semicolons"), ("|", "pipes")])
def test_separator_is_detected_and_named(logs: Logs, capsys: Capture, separator: str, name: str) -> None:
    folder = logs()
    pl.DataFrame(market()["events"]).write_csv(folder / "events.csv", separator=separator)
    assert read_folder(folder).events.height == WHOLE_MARKET
    assert f"events.csv: fields are separated by {name}" in capsys.readouterr().err


def test_names_of_columns_match_in_any_case(logs: Logs) -> None:
    folder = logs()
    lines = (folder / "ads.csv").read_text().split("\n", 1)
    (folder / "ads.csv").write_text(", ".join(lines[0].upper().split(",")) + "\n" + lines[1])
    assert read_folder(folder).ads["category_path"].to_list()[2] == ["Home", "Kind 1"]


def test_column_without_a_name_is_left_out(logs: Logs, capsys: Capture) -> None:
    folder = logs()
    lines = (folder / "users.csv").read_text().splitlines()
    (folder / "users.csv").write_text("".join(f"{'' if n == 0 else n},{line}\n" for n, line in enumerate(lines)))
    assert read_folder(folder).users.columns == ["user_id", "age", "town"]
    assert "users.csv: 1 column without a name is not read" in capsys.readouterr().err


def test_json_array_is_read_from_json_and_refused_in_lines(logs: Logs) -> None:
    folder = logs()
    rows = market()["ads"]
    (folder / "ads.csv").unlink()
    (folder / "ads.json").write_text("\ufeff" + json.dumps(rows, indent=2))
    assert read_folder(folder).ads["title"].to_list() == [f"Thing {n}" for n in range(4)]
    (folder / "ads.json").write_text(json.dumps([*rows, 5], indent=1))
    bad = read_folder(folder, max_bad_share=0.5).bad_rows.row(0, named=True)
    assert bad["row"] == json.dumps([*rows, 5], indent=1).count("\n") and "is not an object but int" in bad["why"]
    (folder / "ads.json").write_text(json.dumps(rows, indent=2)[:-5])
    with pytest.raises(InputError, match=r"ads\.json, row 29: not valid JSON"):
        read_folder(folder)
    (folder / "ads.json").rename(folder / "ads.jsonl")
    with pytest.raises(InputError, match=r"ads\.jsonl: is one JSON array .* ending \.json"):
        read_folder(folder)


def test_json_array_is_read_in_blocks(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    from leadre.data.sources import scan

    folder = logs()
    (folder / "events.csv").unlink()
    events = [row | {"at": row["at"].isoformat()} for row in market()["events"]]
    (folder / "events.json").write_text(json.dumps(events))
    monkeypatch.setattr(scan, "BLOCK_BYTES", 100)
    assert read_folder(folder).events.height == WHOLE_MARKET
    with pytest.raises(InputError, match=r"events\.json, row 1, column 'unknown': longer than 150 bytes"):
        read_folder(folder, max_field_bytes=150)


def test_limit_on_the_unpacked_size(logs: Logs) -> None:
    folder = logs()
    (folder / "ads.csv").write_text("ad_id,title\n" + "a0,x\n" * 1_000_000)
    assert pack(folder / "ads.csv", ".gz").stat().st_size < 50_000
    with pytest.raises(InputError, match=r"ads\.csv\.gz: unpacks to more than 2,000,000 bytes"):
        read_folder(folder, max_unpacked_bytes=2_000_000)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".zst"])
def test_truncated_compressed_file_is_refused(logs: Logs, ending: str) -> None:
    folder = logs()
    path = pack(folder / "events.csv", ending)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"events\.csv\..*: cannot be unpacked as .*copy the file again"):
        read_folder(folder)


def test_json_values_in_columns_of_no_table(logs: Logs) -> None:
    odd = [True, {"a": [1]}, [[1], "x"], None]
    ads = [row | {"odd": value} for row, value in zip(market()["ads"], odd, strict=True)]
    tables = read_folder(logs("jsonl", ads=ads), max_bad_share=0.0)
    assert tables.ads.height == 4 and tables.bad_rows.height == 0


def test_json_number_with_a_fraction_is_no_id(logs: Logs) -> None:
    events = [row | {"user_id": 9007199254740992.0} for row in market()["events"]]
    with pytest.raises(InputError, match=r"column 'user_id' cannot be read.*is a number with a fraction and no ID"):
        read_folder(logs("jsonl", events=events))


@pytest.mark.parametrize("blank", ["\n", ",,,\n", "\r\n"])
def test_blank_lines_of_a_csv_are_passed_over(logs: Logs, blank: str) -> None:
    folder = logs()
    lines = (folder / "ads.csv").read_text().splitlines(keepends=True)
    (folder / "ads.csv").write_text("".join([*lines[:3], blank, *lines[3:], blank]), newline="")
    tables = read_folder(folder, max_bad_share=0.0)
    assert tables.ads.height == 4 and tables.bad_rows.height == 0


@pytest.mark.parametrize(
    "titles",
    [
        ['Monitor 27" wide', "x", "y", "z"],
        ['Monitor 27" wide', "x", 'Monitor 32" wide', "z"],
        ['Frame 20" x 30" oak', "x", "y", 'a "quoted" word'],
        ["x", '"Tea, 8"" tin"', 'Pan 8"', "y"],
    ],
)
def test_quote_inside_an_unquoted_field_is_text(logs: Logs, titles: list[str]) -> None:
    folder = logs()
    (folder / "ads.csv").write_text("ad_id,title\n" + "".join(f"a{n},{title}\n" for n, title in enumerate(titles)))
    plain = [
        title.removeprefix('"').replace('""', '"').removesuffix('"') if title[0] == '"' else title for title in titles
    ]
    assert read_folder(folder).ads["title"].to_list() == plain


@pytest.mark.parametrize("title", ['"27 inch" monitor', '"27" monitor"', '"never closed'])
def test_malformed_quoting_is_refused_with_its_place(logs: Logs, title: str) -> None:
    folder = logs()
    rows = [f"a{n},Thing {n},b\n" for n in range(4)]
    rows[2] = f"a2,{title},b\n"
    (folder / "ads.csv").write_text("ad_id,title,brand\n" + "".join(rows))
    with pytest.raises(
        InputError, match=r"ads\.csv, row 4(, column 'title': a quote inside|: the file ends inside a quoted)"
    ):
        read_folder(folder)


def test_missing_header_is_named(logs: Logs) -> None:
    folder = logs()
    (folder / "events.csv").write_text((folder / "events.csv").read_text().split("\n", 1)[1])
    with pytest.raises(
        InputError, match=r"events\.csv, row 1: has no name of a column of events but 'u0'.*looks like data"
    ):
        read_folder(folder)


@pytest.mark.parametrize("rest", [b"ad_id,title\na0,Boot\n", b"\0", b"\n\nad_id\n"])
def test_blank_line_above_the_header_is_named(logs: Logs, rest: bytes) -> None:
    folder = logs()
    (folder / "ads.csv").write_bytes(b"\n" + rest)
    with pytest.raises(InputError, match=r"ads\.csv, row 1: is blank; the first row has the names of the columns"):
        read_folder(folder)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_utf16_is_named(logs: Logs, form: str, encoding: str) -> None:
    folder = logs(form)
    path = folder / f"ads.{form}"
    path.write_bytes(path.read_text().encode(encoding))
    with pytest.raises(InputError, match=rf"ads\.{form}: is UTF-16; write it as UTF-8"):
        read_folder(folder)


def test_carriage_returns_alone_are_named(logs: Logs) -> None:
    folder = logs()
    (folder / "ads.csv").write_bytes((folder / "ads.csv").read_bytes().replace(b"\n", b"\r"))
    with pytest.raises(InputError, match=r"ads\.csv, row 1: lines end with CR alone"):
        read_folder(folder)


def test_unread_parquet_columns_are_not_loaded(logs: Logs) -> None:
    folder = logs("parquet")
    table = pq.read_table(folder / "ads.parquet")
    pq.write_table(
        table.append_column("blob", pa.array([b"\xff"] * 4).cast(pa.binary()).view(pa.string())), folder / "ads.parquet"
    )
    assert read_folder(folder).ads.height == 4  # the column is no UTF-8


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "PLAIN"])
def test_parquet_texts_are_read_in_every_encoding(logs: Logs, encoding: str) -> None:
    """Arrow decodes some of them into plain texts alone."""
    folder = logs(form="parquet")
    table = pq.read_table(folder / "ads.parquet")
    encodings = dict.fromkeys(("ad_id", "object_id", "title"), encoding)
    pq.write_table(table, folder / "ads.parquet", use_dictionary=False, column_encoding=encodings)
    assert read_folder(folder).ads["title"].to_list() == [f"Thing {n}" for n in range(4)]
    with pytest.raises(InputError, match=r"ads\.parquet, row 1, column 'title': longer than 5 bytes"):
        read_folder(folder, max_field_bytes=5)


def test_damaged_parquet_is_no_fault_of_permissions(logs: Logs) -> None:
    path = logs(form="parquet") / "events.parquet"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[-8:-4], "little")
    data[-8 - size : -8] = bytes(255 - byte for byte in data[-8 - size : -8])
    path.write_bytes(bytes(data))
    with pytest.raises(
        InputError, match=r"events\.parquet: not a Parquet file that can be read \(.*write the file again"
    ):
        read_folder(path.parent)
