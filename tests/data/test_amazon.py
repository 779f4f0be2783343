"""Both forms of the Amazon files give the leave-one-out task; the metadata is never executed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from leadre import artifact
from leadre.data import histories
from leadre.data import run as data
from leadre.data.histories import TEST, TRAIN, VALID
from leadre.data.sources import amazon
from leadre.data.tables import Tables
from leadre.errors import InputError

SEQUENCES = {"u1": ["i1", "i2", "i3", "i4"], "u2": ["i4", "i1", "i5"], "u3": ["i2", "i2"]}  # u3 is too short
ITEMS = ["i1", "i2", "i3", "i4"]  # i5 has no metadata


def compact(folder: Path, extra: str = "") -> Path:
    with gzip.open(folder / "toy.seq.txt.gz", "wt") as file:
        file.write("".join(f"{user} {' '.join(items)}\n" for user, items in SEQUENCES.items()))
    with gzip.open(folder / "toy.items.jsonl.gz", "wt") as file:
        for item in ITEMS:
            row = {"asin": item, "title": f"Soap {item}", "categories": [["Beauty", "Soap"], ["Gifts"]]}
            file.write(json.dumps(row | {"attributes": ["Alder", "Soap"]}) + "\n")
        file.write(extra)
    return folder


def original(folder: Path) -> Path:
    rows = [
        {"reviewerID": user, "asin": item, "unixReviewTime": 1_400_000_000 + 86_400 * (n // 2), "overall": 5.0}
        for user, items in SEQUENCES.items()
        for n, item in enumerate(items)
    ]
    with gzip.open(folder / "reviews_Toy_5.json.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    with gzip.open(folder / "meta_Toy.json.gz", "wt") as file:
        file.write("{'asin': 'other', 'title': __import__('os').abort()}\n")  # not reviewed: not parsed
        for item in ITEMS:
            meta = {"asin": item, "title": f"Soap {item}", "brand": "Alder", "price": 3.49}
            file.write(repr(meta | {"categories": [["Beauty", "Soap"]]}) + "\n")
    return folder


def build(tables: Tables) -> histories.Logs:
    return histories.of_tables(tables, "conversion")


@pytest.mark.parametrize("form", [compact, original])
def test_leave_one_out(tmp_path: Path, form: object) -> None:
    tables = amazon.read(form(tmp_path))  # type: ignore[operator]
    logs = build(tables)
    assert logs.users["user_id"].to_list() == ["u1", "u2"]
    assert logs.ads["ad_id"].to_list() == [*ITEMS, "i5"]
    assert logs.objects.row(0, named=True)["text"] == "Soap i1 | Alder | Beauty > Soap"
    assert logs.objects["title"].to_list()[-1] == "i5"
    for split, expected in (
        (TRAIN, [("u1", "i2")]),
        (VALID, [("u1", "i3"), ("u2", "i1")]),
        (TEST, [("u1", "i4"), ("u2", "i5")]),
    ):
        got = [
            (f"u{logs.request_user_R[r] + 1}", logs.ads["ad_id"][int(logs.relevant(r)[0][0])])
            for r in logs.requests_of(split)
        ]
        assert got == expected
    last = int(logs.requests_of(TEST)[0])
    assert logs.ads["ad_id"].gather(logs.ad_E[logs.history(last)]).to_list() == ["i1", "i2", "i3"]
    assert len(logs.inventory(last)) == 5


def test_held_out_items_are_later_than_all_training_items(tmp_path: Path) -> None:
    logs = build(amazon.read(compact(tmp_path)))
    at_us = [logs.request_at_us_R[logs.requests_of(split)] for split in (TRAIN, VALID, TEST)]
    assert at_us[0].max() < at_us[1].min() and at_us[1].max() < at_us[2].min()


def test_times_are_marked_as_an_order_and_real_ones_are_not(tmp_path: Path) -> None:
    folder = compact(tmp_path)
    for source, clock in (("amazon", "order"), ("world", "instants")):
        config = data.Config(work=tmp_path, run=source, source=source, path=folder)
        data.run(config)
        assert histories.load(artifact.read(config.folder("data"), artifact.TABLES)).clock == clock


def test_code_in_metadata_is_a_bad_row(tmp_path: Path) -> None:
    folder = original(tmp_path)
    flag = tmp_path / "ran"
    with gzip.open(folder / "meta_Toy.json.gz", "wt") as file:
        file.write(f"{{'asin': 'i1', 'title': open({str(flag)!r}, 'w').write('x')}}\n")
    tables = amazon.read(folder, max_bad_share=1.0)
    assert not flag.exists()
    assert tables.bad_rows.select("table", "row").rows() == [("ads", 1)]
    with pytest.raises(InputError, match=r"meta_Toy\.json\.gz, row 1: cannot be read"):
        amazon.read(folder)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"reviewerID": "u1", "asin": "i1", "unixReviewTime": "yesterday"}, "unixReviewTime"),
        ({"reviewerID": "u1", "unixReviewTime": 1}, "asin"),
    ],
)
def test_bad_review_is_a_bad_row(tmp_path: Path, row: dict[str, object], column: str) -> None:
    folder = original(tmp_path)
    with gzip.open(folder / "reviews_Toy_5.json.gz", "at") as file:
        file.write(json.dumps(row) + "\n")
    tables = amazon.read(folder, max_bad_share=0.5)
    assert tables.bad_rows.select("table", "row", "column").rows() == [("events", 10, column)]


def test_invalid_folders_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected one \*\.seq\.txt\.gz or one reviews_\*"):
        amazon.read(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        amazon.read(tmp_path / "nowhere")
    twice = json.dumps({"asin": "i1", "title": "again"}) + "\n"
    with pytest.raises(InputError, match=r"row 5, column 'asin': 'i1' occurs again"):
        amazon.read(compact(tmp_path, twice))
    (tmp_path / "toy.seq.txt.gz").write_bytes(b"\x1f\x8b not gzip")
    with pytest.raises(InputError, match="cannot be read"):
        amazon.read(tmp_path)
    with gzip.open(tmp_path / "toy.seq.txt.gz", "wb"):
        pass
    with pytest.raises(InputError, match="the file is empty"):
        amazon.read(tmp_path)
