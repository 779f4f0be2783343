"""Lists in cells of text, and cells that probably mean something else than they are read as."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from leadre.data import lists
from leadre.errors import InputError
from tests.data.conftest import market, read_folder

Logs = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
PATHS = [["Home", "Kind 0"], ["Home", "Kind 0"], ["Home", "Kind 1"], ["Home", "Kind 1"]]


def with_paths(logs: Logs, write: Callable[[list[str]], object], form: str = "csv") -> Path:
    return logs(form, ads=[row | {"category_path": write(row["category_path"])} for row in market()["ads"]])


@pytest.mark.parametrize("write", [json.dumps, repr, lambda path: repr(path).replace(", ", " ,")])
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_printed_lists_are_read(logs: Logs, write: Callable[[list[str]], str], form: str) -> None:
    assert read_folder(with_paths(logs, write, form)).ads["category_path"].to_list() == PATHS


@pytest.mark.parametrize(
    ("cell", "entries"),
    [
        ("Home > Garden", ["Home", "Garden"]),
        ("[Sale] Shoes", ["[Sale] Shoes"]),
        ("[Sale]", ["[Sale]"]),
        ("['Home' 'Garden']", ["['Home' 'Garden']"]),  # NumPy prints no commas
        ("['Kid\\'s', \"a, b\"]", ["Kid's", "a, b"]),
        ("['Caf\\xe9', 'a\\nb']", ["Café", "a\nb"]),
        ("['C:\\dir']", ["['C:\\dir']"]),  # no escape of Python's, so it is no printed list
        ('["Home", null, 7]', ["Home", "7"]),
        ('[["Home"]]', ['[["Home"]]']),
        ("[true]", ["[true]"]),
        ("[]", None),
        ("[null]", None),
        (None, None),
    ],
)
def test_entries_of_a_cell(cell: str | None, entries: list[str] | None) -> None:
    assert lists.entries(pl.Series([cell, "x"], dtype=pl.String)).to_list() == [entries, ["x"]]


@pytest.mark.parametrize("mark", ["/", "|", ";", ">", ","])
def test_separator_of_lists_is_named_and_read_by_an_option(logs: Logs, capsys: Capture, mark: str) -> None:
    folder = with_paths(logs, f" {mark}".join)
    assert set(read_folder(folder).ads["category_path"].list.len()) == {1}
    assert f"no cell of 'category_path' has the separator ' > '; if '{mark}' separates" in capsys.readouterr().err
    assert read_folder(folder, list_separator=mark).ads["category_path"].to_list() == PATHS
    assert "separator" not in capsys.readouterr().err


def test_mapping_splits_texts_and_keeps_lists(logs: Logs) -> None:
    ads = market()["ads"]
    ads[0]["category_path"] = "Home/Kind 0"
    section = {"ads": {name: name for name in ads[0]} | {"list_separator": "/"}}
    assert read_folder(logs("jsonl", ads=ads), columns=section).ads["category_path"].to_list() == PATHS


def test_separator_of_lists_is_not_empty(logs: Logs) -> None:
    with pytest.raises(InputError, match="--list-separator is empty"):
        read_folder(logs(), list_separator="")


@pytest.mark.parametrize("word", ["NULL", "\\N", "None", "nan"])
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_words_for_missing_values_are_named(logs: Logs, capsys: Capture, form: str, word: str) -> None:
    ads = [row | {"brand": word} for row in market()["ads"]]
    users = [{"user_id": "u0", "town": word}]
    assert set(read_folder(logs(form, ads=ads, users=users)).ads["brand"]) == {word}
    text = capsys.readouterr().err
    assert f"ads.{form}: column 'brand' has the text {word!r}" in text
    assert f"users.{form}: column 'town' has the text {word!r}" in text


@pytest.mark.parametrize("title", ["\u200b\u200d", "\u00a0", "\u2800\u3164", "\x00"])
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_title_without_a_visible_character_is_missing(logs: Logs, form: str, title: str) -> None:
    ads = market()["ads"]
    ads[2]["title"] = title
    ads[3]["title"] = "\u200b鞋\u00a0"
    tables = read_folder(logs(form, ads=ads), max_bad_share=0.5)
    assert tables.ads["ad_id"].to_list() == ["a0", "a1", "a3"]
    assert tables.bad_rows.row(0, named=True)["why"] == "is missing"


def test_invisible_characters_of_an_id_are_shown(logs: Logs) -> None:
    events = market()["events"]
    events[1]["item_id"] = "a0\u00a0\u200b"
    bad = read_folder(logs(events=events), max_bad_share=0.5).bad_rows
    assert bad["why"][0] == "is unknown: no ad has the ID a0\\xa0\\u200b"


@pytest.mark.parametrize("amount", ["1,234.50", "1.234,50", "1 234,50", "12,345"])
def test_marks_between_thousands_are_named(logs: Logs, amount: str) -> None:
    ads = [row | {"price": amount} for row in market()["ads"]]
    with pytest.raises(InputError, match="; write it without marks between thousands"):
        read_folder(logs(ads=ads))
