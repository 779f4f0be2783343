"""`leadre data --inspect`: the config that it writes runs as it is, guesses are marked, missing parts are named."""

from __future__ import annotations

import gzip
import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from leadre.__main__ import main
from leadre.data.inspection import excerpts
from tests.data.conftest import market, write
from tests.data.test_layouts import LOGS

ROWS = 60  # of a log; by user n % 6 on ad n % 4, every second is a success
START = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Run:
    """Results of an inspection: the config and the console, and the folder from which both commands ran."""

    config: str
    report: str
    notes: str
    folder: Path

    @property
    def data(self) -> dict[str, object]:
        section: dict[str, object] = tomllib.loads(self.config)["data"]
        return section

    def read(self) -> dict[str, pl.DataFrame]:
        """The tables that `leadre data` makes of the config as it is."""
        assert main(["data", "--config", str(self.folder / "logs.toml"), "--work", str(self.folder / "work")]) == 0
        paths = (self.folder / "work" / "logs" / "data").glob("*.parquet")
        return {path.stem: pl.read_parquet(path) for path in paths}


@pytest.fixture
def inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """``inspect(**flags)`` inspects the folder ``logs`` of the temporary folder."""

    def run(**flags: str) -> Run:
        target = tmp_path / "logs.toml"
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        status = main(["data", "--inspect", str(tmp_path / "logs"), "--inspect-to", str(target), *arguments])
        out, err = capsys.readouterr()
        assert status == 0, err
        return Run(config=target.read_text(), report=out, notes=err, folder=tmp_path)

    (tmp_path / "logs").mkdir()
    return run


def at(n: int) -> datetime:
    return START + timedelta(hours=n)


def lines(folder: Path, name: str, header: str, rows: list[str]) -> None:
    text = "".join(f"{line}\n" for line in ([header] if header else []) + rows)
    path = folder / "logs" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


def feed(folder: Path, key: str = "creative") -> None:
    rows = [f"b{n};Boot {n};Shoes|Kind {n % 2};{n},50" for n in range(4)]
    lines(folder, "feed.txt", f"{key};headline;genre;usd", rows)


def words_of_actions(folder: Path) -> None:
    """Parts by day, packed; one row an action, some rows without an item."""
    feed(folder)
    for part in range(2):
        rows = [
            f"{int(at(n).timestamp() * 1000)},{n % 6},{kind},b{n % 4},{2.5 if kind == 'order' else ''}"
            for n in range(part * 30, part * 30 + 30)
            for kind in ("imp", "order" if n % 2 else "click")
        ]
        rows.append(f"{int(at(part * 30 + 29).timestamp() * 1000)},1,heartbeat,,")
        lines(folder, f"log-{part + 1:02}.csv.gz", "ts,cookie,kind,creative,revenue", rows)


def flags_in_json(folder: Path) -> None:
    feed(folder, "ad_id")
    rows = [
        {"user": f"u{n % 6}", "adId": f"b{n % 4}", "time": at(n).isoformat(), "clicked": n % 2, "more": {"x": 1}}
        for n in range(ROWS)
    ]
    lines(folder, "impressions.json", "", [json.dumps(rows)])


def ratings_without_header(folder: Path) -> None:
    rows = [f"{n % 6 + 200}\t{n % 4 + 100}\t{5 if n % 2 else 2 + n % 3}\t{int(at(n).timestamp())}" for n in range(ROWS)]
    lines(folder, "u.data", "", rows)


def parquet_of_floats(folder: Path) -> None:
    rows = [
        {"customer_id": float(n % 6), "article_id": n % 4, "is_click": n % 2 == 1, "t": at(n).replace(tzinfo=None)}
        for n in range(ROWS)
    ]
    write(folder / "logs", "log", rows, "parquet")
    write(folder / "logs", "articles", [{"article_id": n, "name": f"Boot {n}"} for n in range(4)], "parquet")


def american_times(folder: Path) -> None:
    feed(folder, "creative_id")
    rows = [f'{n % 6}|b{n % 4}|"{at(n):%m/%d/%Y %I:%M:%S %p}"|{n % 2}' for n in range(ROWS)]
    lines(folder, "shown/part.psv", "visitor|creative|when|clk", rows)
    lines(folder, "shown/notes.txt", "", ["no table at all"])


def order_without_times(folder: Path) -> None:
    rows = [f"u{n % 6},v{n % 4},{n % 2}" for n in range(ROWS)]
    lines(folder, "log.csv", "user_id,video_id,click", rows)


def profiles(folder: Path) -> None:
    flags_in_json(folder)
    lines(folder, "people.csv", "user,age,where,town", [f"u{n},{20 + n},x,Genoa" for n in range(6)])


FOLDERS: dict[str, tuple[Callable[[Path], None], dict[str, int], list[str]]] = {
    # folder -> (writer, events by action, patterns of the config)
    "words of actions": (
        words_of_actions,
        {"impression": 60, "click": 30, "conversion": 30},
        [
            r'file = "log-\*\.csv\.gz"',
            r'time_unit = "ms"  # guess: .*in ms by its range',
            r"price = \"REPLACE\(usd, ',', '\.'\)\"  # guess",
            r'list_separator = "\|"  # guess',
            r"rows with 'kind' = 'heartbeat' are not read",
            r'where = "creative IS NOT NULL"',
            r'positive = "conversion"  # guess',
        ],
    ),
    "flags in JSON": (flags_in_json, {"impression": 60, "click": 30}, [r'item_id = "adId"', r'positive = "click"']),
    "ratings without a header": (
        ratings_without_header,
        {"click": 60, "conversion": 40},
        [
            r"header = .*column_4.*  # guess: the first row looks like data",
            r'user_id = "column_1"  # guess: by content',
            r'time_unit = "s"',
            r"taken from the events",
            r"no titles; the model reads IDs",
        ],
    ),
    "Parquet": (parquet_of_floats, {"impression": 60, "click": 30}, [r"CAST\(customer_id AS BIGINT\)"]),
    "American times": (
        american_times,
        {"impression": 60, "click": 30},
        [r"STRPTIME\(\\?\"?when\\?\"?, '%m/%d/%Y %I:%M:%S %p'\)", r"shown/notes\.txt: .*separate columns"],
    ),
    "order without times": (
        order_without_times,
        {"impression": 60, "click": 30},
        [r'at = "row_number"  # guess: no column of times', r'time_origin = "2020-01-01"  # guess: made up'],
    ),
    "profiles": (profiles, {"impression": 60, "click": 30}, [r"\[data\.columns\.users\]", r'town = "town"  # guess']),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_config_of_unknown_layout_runs_as_it_is(name: str, tmp_path: Path, inspect: Callable[..., Run]) -> None:
    make, actions, patterns = FOLDERS[name]
    make(tmp_path)
    run = inspect()
    assert "missing: nothing that is needed" in run.report, run.report
    for pattern in patterns:
        assert re.search(pattern, run.config), f"{pattern}\n{run.config}"
    tables = run.read()
    assert dict(tables["events"].group_by("action").len().iter_rows()) == actions
    assert (tables["ads"].height, tables["users"].height, tables["bad_rows"].height) == (4, 6, 0)
    assert tables["events"]["at"].min() == (datetime(2020, 1, 1, 0, 0, 1, tzinfo=UTC) if "order" in name else START)
    assert "6 users and 4 items in the events, 4 ads" in run.report
    shown = run.report.split("events, as they will be read:\n")[1].splitlines()
    assert len(shown) == 11 and shown[0].split()[:2] == ["user_id", "at"]


@pytest.mark.parametrize("name", list(LOGS))
def test_layouts_of_public_logs_are_recognised(name: str, tmp_path: Path, inspect: Callable[..., Run]) -> None:
    LOGS[name](tmp_path / "logs")
    run = inspect()
    assert run.data["layout"] == name
    assert run.read()["ads"].height == 4


@pytest.mark.parametrize("unit", ["", "s"])
def test_tables_of_own_names_need_no_mapping(unit: str, tmp_path: Path, inspect: Callable[..., Run]) -> None:
    for table, rows in market().items():
        if unit and table == "events":
            rows = [row | {"at": int(row["at"].timestamp())} for row in rows]
        write(tmp_path / "logs", table, rows, "csv")
    run = inspect()
    assert set(run.data) == {"source", "path", "positive"} | ({"time_unit"} if unit else set())
    assert run.read()["events"].height == 180


def test_options_of_the_user_hold(tmp_path: Path, inspect: Callable[..., Run]) -> None:
    american_times(tmp_path)
    run = inspect(time_zone="Asia/Shanghai", test_share="0.2")
    assert run.data["time_zone"] == "Asia/Shanghai" and run.data["test_share"] == 0.2
    assert run.read()["events"]["at"].min() == START - timedelta(hours=8)


MISSING: dict[str, tuple[dict[str, str], str]] = {
    "users": ({"log.csv": "ad_id,time,click\n" + "a1,2026-03-01T00:00:00Z,1\n" * 5}, "has no column of users"),
    "events": ({"feed.csv": "sku,name\ns1,Boot\ns2,Shoe\n"}, "events: no table has a column of users or times"),
    "success": (
        {"impressions.csv": "user,ad,time\n" + "".join(f"u{n % 3},a{n % 2},2026-03-0{n + 1}\n" for n in range(9))},
        "no clicks and no conversions were found",
    ),
    "ads of the events": (
        {
            "ads.csv": "ad_id,title\na0,Boot\n",
            "log.csv": "user,ad_id,time,click\n" + "".join(f"u{n % 3},a{n % 2},2026-03-0{n + 1},1\n" for n in range(9)),
        },
        "no ad has the ID",
    ),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_parts_are_named(name: str, tmp_path: Path, inspect: Callable[..., Run]) -> None:
    files, reason = MISSING[name]
    for file, text in files.items():
        (tmp_path / "logs" / file).write_text(text)
    run = inspect()
    assert reason in run.report.split("missing, and needed:")[1]
    assert reason in run.config and str(tmp_path / "logs") not in reason
    assert "add the missing parts" in run.notes


def test_tables_of_own_names_are_needed(tmp_path: Path, inspect: Callable[..., Run]) -> None:
    order_without_times(tmp_path)
    (tmp_path / "logs" / "ads.csv").write_bytes("ad_id,title\nv1,Boot\n".encode("utf-16"))
    assert "ads.csv: is UTF-16" in inspect().report.split("missing, and needed:")[1]


def test_parts_of_other_types_are_named(tmp_path: Path, inspect: Callable[..., Run]) -> None:
    order_without_times(tmp_path)
    for n, tags in enumerate(("red", ["red"])):
        pl.DataFrame({"user_id": ["u1"], "tags": [tags]}).write_parquet(tmp_path / "logs" / f"people-{n}.parquet")
    assert "people-*.parquet: its files differ in the type of a column" in inspect().report


def test_events_out_of_order_are_sorted(tmp_path: Path, inspect: Callable[..., Run]) -> None:
    for table, rows in market().items():
        write(tmp_path / "logs", table, rows[::-1], "csv")
    run = inspect()
    assert run.data["unordered"] is True
    assert run.read()["events"].height == 180


UNREADABLE: dict[str, tuple[str, bytes, str]] = {
    "Latin-1": ("a.csv", b"user,ad\nu1,caf\xe9\n", "iconv -f LATIN1"),
    "UTF-16": ("a.csv", "user,ad\nu1,a1\n".encode("utf-16"), "is UTF-16"),
    "double colons": ("ratings.dat", b"1::1193::5::978300760\n2::1::3::978300761\n", "'::', which is not read"),
    "binary": ("a.bin", b"\0\1\2,\3" * 50, "is no text"),
    "damaged gzip": ("a.csv.gz", gzip.compress(b"user,ad\nu1,a1\n")[:-9], "Truncated"),
    "damaged Parquet": ("a.parquet", b"PAR1nonsensePAR1", "a.parquet"),
    "no rows": ("a.csv", b"", "has no rows"),
    "blank lines": ("a.csv", b"\n \n", "has no rows"),
    "one line": ("a.csv", b"x" * 5000, "longer than 4,096 bytes"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_files_that_cannot_be_read_are_named(
    name: str, tmp_path: Path, inspect: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(excerpts, "MAX_BYTES", 4096)
    file, content, reason = UNREADABLE[name]
    order_without_times(tmp_path)
    (tmp_path / "logs" / file).write_bytes(content)
    assert reason in next(line for line in inspect().report.splitlines() if f"not read: {file}" in line)


@pytest.mark.parametrize("form", ["csv", "jsonl", "json", "parquet", "csv.gz"])
def test_large_files_are_read_to_a_bound(
    form: str, tmp_path: Path, inspect: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"user_id": f"u{n % 6}", "video_id": f"v{n % 4}", "time": n + 1772352000, "click": n % 2} for n in range(9_000)
    ]
    frame = pl.DataFrame(rows)
    if form == "parquet":
        frame.write_parquet(tmp_path / "logs" / "log.parquet")
    elif form.startswith("csv"):
        header, *body = frame.write_csv().splitlines()
        lines(tmp_path, f"log.{form}", header, body)
    else:
        lines(tmp_path, f"log.{form}", "", [json.dumps(rows, indent=1)] if form == "json" else [*map(json.dumps, rows)])
    monkeypatch.setattr(excerpts, "MAX_BYTES", 20_000)
    run = inspect()
    count = int(re.search(r"the first ([\d,]+) rows", run.report)[1].replace(",", ""))  # type: ignore[index]
    assert 100 < count <= 4_096
    assert "rows beyond these were not checked" in run.report
    assert run.read()["events"].height == 13_500


def test_hostile_folder_stays_bounded(
    tmp_path: Path, inspect: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(excerpts, "MAX_FILES", 20)
    monkeypatch.setattr(excerpts, "MAX_TABLES", 3)
    order_without_times(tmp_path)
    for n in range(40):
        lines(tmp_path, f"x{chr(97 + n // 26)}{chr(97 + n % 26)}.csv", "a,b", ["1,2"])
    (tmp_path / "logs" / "loop").symlink_to(tmp_path / "logs")
    (tmp_path / "logs" / "aa\x1b[31m\nrun = 'evil'.csv").write_text('user\x1b[2J,"a""b",ad\n' + "u1,x,a1\n" * 3000)
    run = inspect()
    assert "more than 20 files" in run.report and "more tables than 3" in run.report
    assert "\x1b" not in run.report + run.config
    assert tomllib.loads(run.config)["run"] == "logs"


def test_written_config_is_not_overwritten(
    tmp_path: Path, inspect: Callable[..., Run], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order_without_times(tmp_path)
    before = inspect().config
    monkeypatch.chdir(tmp_path)
    assert main(["data", "--inspect", "logs"]) == 2
    assert "logs.toml: exists already; move it away" in capsys.readouterr().err
    assert (tmp_path / "logs.toml").read_text() == before


@pytest.mark.parametrize(("folder", "reason"), [("nowhere", "not a folder"), ("logs", "has no table")])
def test_folder_without_tables_writes_nothing(
    folder: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    assert main(["data", "--inspect", folder]) == 2
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.glob("*.toml"))


def test_error_of_a_missing_table_names_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    order_without_times(tmp_path)
    assert main(["data", "--source", "files", "--path", str(tmp_path / "logs"), "--work", str(tmp_path / "work")]) == 2
    assert f"leadre data --inspect {tmp_path / 'logs'} writes a config" in capsys.readouterr().err
