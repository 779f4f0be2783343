"""The first row of separated fields, the form of a file, and names of files: what is wrong is named, with its cure."""

from __future__ import annotations

import bz2
import gzip
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from leadre.errors import InputError
from tests.data.conftest import read_folder

Logs = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
WHOLE_MARKET = 180


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("encoding", ["utf-32", "utf-32-le", "utf-32-be"])
def test_utf32_is_named(logs: Logs, encoding: str) -> None:
    folder = logs()
    rewrite(folder / "ads.csv", lambda data: data.decode().encode(encoding))
    name = "UTF-32" + encoding[7:].upper()
    with pytest.raises(InputError, match=rf"ads\.csv: is UTF-32; .*iconv -f {name} -t UTF-8"):
        read_folder(folder)


def test_utf16_of_another_script_is_named(logs: Logs) -> None:
    folder = logs()
    rewrite(folder / "ads.csv", lambda data: data.decode().replace("Thing", "Ботинок " * 50).encode("utf-16-le"))
    with pytest.raises(InputError, match=r"ads\.csv: is UTF-16; .*iconv -f UTF-16LE"):
        read_folder(folder)


def test_nul_at_the_end_of_a_file_is_no_encoding(logs: Logs) -> None:
    folder = logs()
    rewrite(folder / "ads.csv", lambda data: data + bytes(500))
    assert read_folder(folder, max_bad_share=0.2).bad_rows["why"].to_list() == ["is missing"]


@pytest.mark.parametrize(
    ("pack", "form"),
    [
        (gzip.compress, "gzip"),
        (bz2.compress, "bzip2"),
        (lambda data: pa.compress(data, "zstd", asbytes=True), "zstd"),
        (lambda data: b"PK\x03\x04" + data, "a ZIP archive"),
        (lambda data: b"PAR1\x15\x00" + data, "Parquet"),
    ],
)
@pytest.mark.parametrize("table", ["csv", "jsonl"])
def test_file_of_another_form_than_its_ending_is_named(
    logs: Logs, table: str, pack: Callable[[bytes], bytes], form: str
) -> None:
    folder = logs(table)
    rewrite(folder / f"events.{table}", pack)
    with pytest.raises(InputError, match=rf"events\.{table}: is {form}.* by its first bytes"):
        read_folder(folder)


def test_json_and_separated_fields_under_the_ending_of_each_other(logs: Logs) -> None:
    folder = logs("jsonl")
    (folder / "ads.jsonl").rename(folder / "ads.csv")
    with pytest.raises(InputError, match=r"ads\.csv, row 1: looks like JSON; give the file the ending \.jsonl"):
        read_folder(folder)
    (folder / "ads.csv").unlink()
    logs(ads=None, events=None, users=None, contents=[{"content_id": "c0", "title": "Film"}])
    (folder / "contents.jsonl").unlink()
    (folder / "contents.csv").rename(folder / "ads.jsonl")
    with pytest.raises(InputError, match=r"ads\.jsonl: begins with 'c' and has no JSON; .* ending \.csv"):
        read_folder(folder)


def test_separator_of_hive_is_read(logs: Logs, capsys: Capture) -> None:
    folder = logs()
    rewrite(folder / "events.csv", lambda data: data.replace(b",", b"\x01"))
    assert read_folder(folder).events.height == WHOLE_MARKET
    assert "events.csv: fields are separated by the control character 1" in capsys.readouterr().err


@pytest.mark.parametrize("mark", ["::", ":", "^", "~", " "])
def test_separator_that_is_not_read_is_named(logs: Logs, mark: str) -> None:
    folder = logs()
    rewrite(folder / "ads.csv", lambda data: data.replace(b",", mark.encode()))
    shown = re.escape(repr(mark))
    with pytest.raises(InputError, match=rf"ads\.csv, row 1: has fields that {shown} separates, .*sed 's/"):
        read_folder(folder)


@pytest.mark.parametrize("above", ["sep=;\n", "# exported on Sunday\n", "Ads,2026\n,\n"])
def test_rows_above_the_header_are_named(logs: Logs, above: str) -> None:
    folder = logs()
    separator = b";" if ";" in above else b","
    rewrite(folder / "ads.csv", lambda data: above.encode() + data.replace(b",", separator))
    row = above.count("\n") + 1
    with pytest.raises(
        InputError, match=rf"ads\.csv, row 1: is .*, and row {row} has the names of the columns; delete the rows above"
    ):
        read_folder(folder)


def test_names_in_single_quotes_are_named(logs: Logs) -> None:
    folder = logs()
    (folder / "ads.csv").write_text("'ad_id','title'\n'a0','Boot'\n")
    with pytest.raises(InputError, match=r"row 1: has \"'ad_id'\" as a name; quote fields with double quotes"):
        read_folder(folder)


def test_separator_at_the_end_of_each_row_is_no_field(logs: Logs) -> None:
    folder = logs()
    header, rows = (folder / "ads.csv").read_text().split("\n", 1)
    (folder / "ads.csv").write_text(header + "\n" + rows.replace("\n", ",\n"))
    assert read_folder(folder, max_bad_share=0.0).ads.height == 4
    (folder / "ads.csv").write_text(header + "\n" + rows.replace("\n", ",x\n"))
    with pytest.raises(InputError, match=r"ads\.csv, row 2: 5 fields, but the header has 4"):
        read_folder(folder)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_repeated_header_is_no_row(logs: Logs, capsys: Capture, mark: str) -> None:
    """Files that were written one behind another (``cat *.csv``)."""
    folder = logs()
    for name in ("ads", "users"):
        header, rows = (folder / f"{name}.csv").read_text().split("\n", 1)
        half = rows.index("\n") + 1
        (folder / f"{name}.csv").write_text(f"{header}\n{rows[:half]}{mark}{header}\n{rows[half:]}")
    tables = read_folder(folder, max_bad_share=0.0)
    assert tables.ads["ad_id"].to_list() == ["a0", "a1", "a2", "a3"]
    assert "user_id" not in tables.users["user_id"]
    assert "ads.csv: rows that repeat the header: 1; they are left out" in capsys.readouterr().err


def test_parts_beside_each_other_need_a_folder(logs: Logs, capsys: Capture) -> None:
    folder = logs()
    (folder / "users.csv").rename(folder / "users-2026-03.csv")
    read_folder(folder)
    assert "users-2026-03.csv (move it into a folder users/ if it is a part of that table)" in capsys.readouterr().err


def test_folder_of_tables_below_the_path_is_named(logs: Logs) -> None:
    folder = logs()
    with pytest.raises(InputError, match=r"there is logs/ \(it has tables: name it in --path if it is the log\)"):
        read_folder(folder.parent)


@pytest.mark.parametrize("table", ["inventory", "events"])
def test_folder_without_files_is_refused(logs: Logs, table: str) -> None:
    """Without a word, a table of inventory in another place would leave all ads live for ever."""
    folder = logs(events=None) if table == "events" else logs()
    (folder / table / "dt=2026-03-01").mkdir(parents=True)
    (folder / table / "_SUCCESS").write_text("")
    with pytest.raises(InputError, match=rf"{table}/: the folder has no files"):
        read_folder(folder)
