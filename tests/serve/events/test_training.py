"""Tables for training: `leadre data` reads the users, requests, events and live ads that serving logged."""

from __future__ import annotations

import resource
from collections import defaultdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from leadre import checked_parquet
from leadre.data import histories
from leadre.data.sources import files, raw
from leadre.data.split import SplitTimes
from leadre.data.tables import Tables
from leadre.errors import InputError, StorageError
from leadre.serve.events import table_parts, table_position, training, user_records
from leadre.serve.events.log_writer import EventLog
from leadre.serve.events.records import EventRecord, Record, RequestRecord, StatusRecord
from leadre.types import Ad, Bid, Candidate, EventKind, Outcome
from leadre.units import US_PER_DAY, US_PER_HOUR, US_PER_S

START = round(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * US_PER_S
START_TIME = datetime(2026, 3, 1)
ADS = [
    Ad(
        ad_id=f"a{n}",
        object_id=f"o{n}",
        campaign_id="c",
        advertiser_id="v",
        title=f"Ad {n}" if n else "",
        sizes=((300, 250),),
    )
    for n in range(3)
]


def request(request_id: str, at_us: int, user_id: str = "u1", **change: Any) -> RequestRecord:
    bid = Bid(
        bid_id=f"b-{request_id}",
        imp_id="1",
        ad_id="a0",
        campaign_id="c",
        advertiser_id="v",
        price_nanos=1_000_000,
        currency="EUR",
        size=(300, 250),
        source="stored",
        propensity=0.5,
    )
    candidates = (
        Candidate(ad_id="a0", source="stored", log_p=-1.0),
        Candidate(ad_id="a1", source="generated", log_p=-2),
    )
    fields: dict[str, Any] = {
        "placements": {"1": "top"},
        "candidates": candidates,
        "bids": (bid,),
        "scores": (0.5, 0.25),
    }
    fields |= {"versions": {"model": "m1"}} | change
    return RequestRecord(request_id=request_id, at_us=at_us, user_id=user_id, **fields)


def event(
    request_id: str, kind: EventKind, at_us: int, user_id: str = "u1", value: int = 0, **flags: Any
) -> EventRecord:
    outcome = Outcome(
        kind=kind,
        at_us=at_us,
        bid_id=f"b-{request_id}",
        request_id=request_id,
        ad_id="a0",
        campaign_id="c",
        user_id=user_id,
        value_nanos=value,
    )
    return EventRecord(key=f"{request_id}/{kind}", outcome=outcome, **({"is_training": True} | flags))


def market() -> list[Record]:
    """Six days with a request and its outcomes for each of two users; a2 is live on the first day alone."""
    records: list[Record] = [StatusRecord(at_us=START, ad_id=f"a{n}", is_live=True) for n in range(3)]
    records.append(StatusRecord(at_us=START + US_PER_DAY, ad_id="a2", is_live=False))
    for day in range(6):
        for user in ("u1", "u2"):
            at_us = START + day * US_PER_DAY + US_PER_HOUR
            name = f"{user}-{day}"
            records += [
                request(name, at_us, user),
                event(name, "win", at_us + 1, user, is_training=False),
                event(name, "imp", at_us + 2 * US_PER_S, user),
                event(name, "click", at_us + 9 * US_PER_S, user),
                event(name, "conv", at_us + US_PER_DAY, user, value=7_000_000_000),
            ]
    records += [
        request("unknown-user", START + US_PER_DAY, user_id=""),
        event("unknown-user", "imp", START + US_PER_DAY, user_id=""),
        request("test", START + US_PER_DAY, is_test=True),
        event("test", "imp", START + US_PER_DAY, is_test=True, is_training=False),
    ]
    return records


@pytest.fixture
def log(tmp_path: Path) -> Path:
    with EventLog(tmp_path / "events") as writer:
        writer.append(market(), START)
    return tmp_path / "events"


def read(folder: Path) -> Tables:
    return files.read(
        folder,
        files.FileOptions(unordered=True, max_bad_share=0.0),
        SplitTimes(valid_share=0.2, test_share=0.2),
        keep_empty=True,
    )


def test_leadre_data_reads_the_tables(log: Path, tmp_path: Path) -> None:
    assert training.compact(log, tmp_path / "tables", ADS) == len(market())
    tables = read(tmp_path / "tables")
    assert tables.bad_rows.height == 0
    assert tables.users["user_id"].to_list() == ["u1", "u2"]
    assert tables.events["action"].value_counts().sort("action").rows() == [
        ("click", 12),
        ("conversion", 12),
        ("impression", 12),
    ]
    assert tables.events.filter(pl.col("value_nanos") > 0)["action"].unique().to_list() == ["conversion"]
    assert tables.requests["request_id"].sort().to_list() == [
        f"{user}-{day}" for user in ("u1", "u2") for day in range(6)
    ]
    assert tables.requests["placement_id"].unique().to_list() == ["top"]
    assert tables.requests["at"].dt.epoch("us").min() == START + US_PER_HOUR
    live = histories.of_tables(tables, "conversion")
    first = int(live.request_at_us_R.argmin())
    assert live.inventory(first).tolist() == [0, 1, 2]
    assert {tuple(live.inventory(r)) for r in range(len(live.request_at_us_R))} == {(0, 1, 2), (0, 1)}
    assert tables.ads.select("title", "object_id", "creative_sizes").row(0) == ("a0", "o0", ["300x250"])


def test_answers_have_candidates_scores_and_propensities(log: Path, tmp_path: Path) -> None:
    training.compact(log, tmp_path, ADS)
    answers = pl.read_parquet(tmp_path / "answers" / "*.parquet")
    assert answers.height == 13, "unknown users included, tests not"
    row = answers.filter(pl.col("request_id") == "u1-0").row(0, named=True)
    assert row["candidates"][1] == {"ad_id": "a1", "source": "generated", "log_p": -2.0, "score": 0.25}
    assert (row["bids"][0]["propensity"], row["bids"][0]["price_nanos"]) == (0.5, 1_000_000)
    assert row["versions"] == '{"model":"m1"}'
    assert answers.filter(pl.col("user_id").is_null())["request_id"].to_list() == ["unknown-user"]


def content(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each file, and of all parts of a day together, sorted by time."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(folder.rglob("*.parquet")):
        rows[str(path.relative_to(folder)).partition(".")[0]] += pl.read_parquet(path).to_dicts()
    return {
        name: sorted(of_day, key=lambda row: (row.get("at") or START_TIME, str(row))) for name, of_day in rows.items()
    }


def test_tables_are_the_same_in_one_run_in_parts_and_repeated(log: Path, tmp_path: Path) -> None:
    training.compact(log, tmp_path / "whole", ADS)
    parts = tmp_path / "parts"
    other = tmp_path / "events-2"
    with EventLog(other) as writer:
        for start in range(0, len(market()), 10):
            writer.append(market()[start : start + 10], START)
            training.compact(other, parts, ADS)
    assert content(parts) == content(tmp_path / "whole")
    (parts / table_position.POSITION).write_text("25")  # rows beyond it, as in a backup that was made during a flush
    training.recover(parts)
    numbers = pl.concat([pl.read_parquet(path, columns=["number"]) for path in (parts / "answers").iterdir()])
    assert numbers["number"].max() == 25
    while training.compact(other, parts, ADS, max_records=7) == 7:
        pass
    assert content(parts) == content(tmp_path / "whole")
    assert training.compact(other, parts, ADS) == 0 and table_position.read(parts) == len(market())


def test_status_changes_become_live_intervals() -> None:
    def intervals(*statuses: tuple[int, str, bool]) -> list[tuple[str, int, int | None]]:
        old = pl.DataFrame(schema=training._INTERVALS)
        changes = [StatusRecord(at_us=at_us, ad_id=ad_id, is_live=is_live) for at_us, ad_id, is_live in statuses]
        for _ in range(2):  # a second time changes nothing
            old = training._live_intervals(old, changes)
        return old.select("ad_id", pl.col("starts_at", "ends_at").dt.epoch("us")).rows()

    assert intervals((1, "a", True), (5, "a", False), (7, "a", True)) == [("a", 1, 5), ("a", 7, None)]
    assert intervals((1, "a", True), (2, "b", True), (3, "b", False)) == [("a", 1, None), ("b", 2, 3)]
    assert intervals((1, "a", False), (4, "a", True), (4, "a", False)) == []
    assert intervals((1, "a", True), (2, "a", True)) == [("a", 1, None)]


def test_erased_user_is_in_no_file(log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    training.compact(log, folder, ADS)
    (folder / "events" / ".2026-03-01.parquet.new").write_bytes(b"left over by a kill: u1")
    untouched = (folder / "ads.parquet").read_bytes()
    assert training.erase(folder, ["u1", "u9"]) == {"u1": 18 + 6 + 6} and not training.erase(folder, ["u1"])
    for path in folder.rglob("*.parquet"):
        assert "u1" not in pl.read_parquet(path).get_column("user_id", default=pl.Series([""])).to_list()
    assert not list(folder.rglob(".*.new"))
    assert (folder / "ads.parquet").read_bytes() == untouched
    assert pl.read_parquet(folder / "answers" / "*.parquet").height == 13
    assert read(folder).users["user_id"].to_list() == ["u2"]


def test_user_erased_in_the_log_is_not_in_its_tables(log: Path, tmp_path: Path) -> None:
    with EventLog(log) as writer:
        writer.rotate()
        assert user_records.erase(log, tmp_path / "journal", ["u1"]) == {"u1": 6 * 5 + 2}, "tests too"
    training.compact(log, tmp_path / "tables", ADS)
    assert read(tmp_path / "tables").users["user_id"].to_list() == ["u2"]


def test_flipped_bit_of_a_part_is_an_error_that_names_file_and_remedy(log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    training.compact(log, folder, ADS)
    (path,) = sorted((folder / "events").glob("*.parquet"))[:1]
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 16]) + whole[201:])
    with pytest.raises(StorageError, match=f"{path}: damaged .* delete {folder}: the next start writes the tables"):
        training.erase(folder, ["u1"])
    with pytest.raises(InputError, match=f"{path.name}: is damaged, .* delete the folder of its tables"):
        read(folder)
    path.write_bytes(whole)
    assert training.erase(folder, ["u1"])["u1"] > 0


def test_parts_of_a_release_without_checksums_are_read(log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    training.compact(log, folder, ADS)
    before = sum(training.erase(folder, ["nobody"]).values())
    for path in folder.glob("*/*.parquet"):
        pl.read_parquet(path).write_parquet(path)
        assert checked_parquet.KEY not in pl.read_parquet_metadata(path)
    assert before == 0 and training.erase(folder, ["u1"])["u1"] > 0


def test_retention_deletes_days_and_ended_intervals(log: Path, tmp_path: Path) -> None:
    training.compact(log, tmp_path / "tables", ADS)
    training.retain(tmp_path / "tables", date(2026, 3, 4))
    days = {
        name: sorted(path.name[:10] for path in (tmp_path / "tables" / name).iterdir())
        for name in ("events", "requests", "answers")
    }
    assert days["requests"] == days["answers"] == ["2026-03-04", "2026-03-05", "2026-03-06"]
    assert days["events"] == ["2026-03-04", "2026-03-05", "2026-03-06", "2026-03-07"]
    assert pl.read_parquet(tmp_path / "tables" / "inventory.parquet")["ad_id"].to_list() == ["a0", "a1"], (
        "a2 ended before"
    )


def files_of(folder: Path) -> dict[Path, int]:
    """File -> inode: a file that is replaced has a new one."""
    return {path: path.stat().st_ino for path in folder.glob("*/*.parquet")}


def test_flush_touches_no_file_of_earlier_flushes(log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    training.compact(log, folder, ADS)
    before = files_of(folder)
    with EventLog(log) as writer:
        writer.append([request("late", START + US_PER_HOUR), event("late", "imp", START + US_PER_HOUR)], START)
    assert training.compact(log, folder, ADS) == 2
    after = files_of(folder)
    assert before.items() <= after.items() and len(after) == len(before) + 3
    assert read(folder).requests.filter(pl.col("request_id") == "late").height == 1


def small_flushes(log: Path, folder: Path, count: int) -> None:
    with EventLog(log) as writer:
        for _ in range(count):
            writer.append([request(f"small-{writer.last}", START + writer.last)], START)
            training.compact(log, folder, ADS)


def test_small_parts_of_a_day_are_merged_unless_a_reader_has_them(tmp_path: Path) -> None:
    log = tmp_path / "events"
    folder = tmp_path / "tables"
    small_flushes(log, folder, 1)
    with raw.reading(folder):
        small_flushes(log, folder, 3 * table_parts.MERGED - 1)
        assert len(files_of(folder)) == 2 * 3 * table_parts.MERGED
    small_flushes(log, folder, 1)
    assert [len(table_parts.parts(folder / name)) for name in ("requests", "answers")] == [1, 1]
    numbers = pl.read_parquet(folder / "answers" / "*.parquet")["number"].to_list()
    assert numbers == list(range(1, table_position.read(folder) + 1))


def test_merge_is_bounded_however_few_bytes_the_parts_have(tmp_path: Path) -> None:
    """20 flushes of a busy bidder, whose rows are packed into some bytes."""
    length = training.MAX_RECORDS
    for flush in range(20):
        table_parts.path_of(tmp_path, "2026-03-04", flush * length + 1, (flush + 1) * length).write_bytes(b"rows")
        of_day = table_parts.parts(tmp_path, "2026-03-04")
        while merged := table_parts.to_merge(of_day):
            assert merged[-1].last - merged[0].first < table_parts.MERGED_RECORDS
            table_parts.path_of(tmp_path, "2026-03-04", merged[0].first, merged[-1].last).write_bytes(b"rows")
            for part in merged:
                part.path.unlink()
            of_day = table_parts.parts(tmp_path, "2026-03-04")
    lengths = [part.last - part.first + 1 for part in of_day]
    assert sum(lengths) == 20 * length
    assert len(lengths) <= 2 * sum(lengths) // table_parts.MERGED_RECORDS + 1, "small parts are merged"


def test_rows_of_a_killed_merge_or_a_failed_flush_are_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "events"
    folder = tmp_path / "tables"
    small_flushes(log, folder, table_parts.MERGED - 1)
    expected = table_position.read(folder) + 1
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
        with EventLog(log) as writer:
            writer.append([request("last", START)], START)
        training.compact(log, folder, ADS)
    assert len(table_parts.parts(folder / "answers")) == table_parts.MERGED + 1
    training.recover(folder)
    answers = folder / "answers"
    assert [(part.first, part.last) for part in table_parts.parts(answers)] == [(1, expected)]
    (folder / table_position.POSITION).unlink()  # as if killed before the position was written
    with EventLog(log) as writer:
        writer.append([request("after", START)], START)
    training.compact(log, folder, ADS)
    assert pl.read_parquet(answers / "*.parquet")["number"].sort().to_list() == list(range(1, expected + 2))


def test_full_disk_leaves_the_tables_unchanged(log: Path, tmp_path: Path) -> None:
    """RLIMIT_FSIZE: a file ends early, as on a full disk."""
    folder = tmp_path / "tables"
    training.compact(log, folder, ADS)
    before = content(folder)
    with EventLog(log) as writer:
        writer.append([event("u1-5", "click", START + 5 * US_PER_DAY + 4000 * US_PER_S)], START)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot be written \(File too large\); free or repair the disk"):
            training.compact(log, folder, ADS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(folder) == before and not list(folder.rglob(".*.new"))
    assert training.compact(log, folder, ADS) == 1
    assert len(pl.read_parquet(folder / "events" / "*.parquet")) == 37


def test_request_sent_again_much_later_is_in_the_tables_once(tmp_path):
    """A worker without a reply repeats its records; the writer knows the newest requests alone."""
    late = START + 60 * US_PER_S
    with EventLog(tmp_path / "events") as writer:
        writer.append([request("first", START + US_PER_S), request("other", START + US_PER_S)], START + US_PER_S)
        training.compact(tmp_path / "events", tmp_path / "tables", ADS)
        writer.append([request("first", START + US_PER_S), request("slow", START + 2 * US_PER_S)], late)
        training.compact(tmp_path / "events", tmp_path / "tables", ADS)
    (tmp_path / "tables" / table_position.POSITION).write_text("2")  # killed before the position was written
    training.compact(tmp_path / "events", tmp_path / "tables", ADS)
    for table in ("requests", "answers"):
        names = [
            name
            for path in (tmp_path / "tables" / table).glob("*.parquet")
            for name in pl.read_parquet(path)["request_id"]
        ]
        assert sorted(names) == ["first", "other", "slow"]


def test_erased_user_is_in_no_text_of_a_caller_in_the_tables(tmp_path: Path) -> None:
    """Tables may have been written before the erasure, with requests of the user, of others and of unknown users."""
    user = "find-me-4711"
    log = tmp_path / "log"
    folder = tmp_path / "tables"
    with EventLog(log) as writer:
        for number, user_id in enumerate((user, f"id5-sync.com:{user}", "somebody-else", "")):
            record = request(f"r{number}", START + number, user_id, placements={"1": f"place-{user}"})
            bids = (*record.bids, msgspec.structs.replace(record.bids[0], imp_id=f"imp-{user}"))
            writer.append([msgspec.structs.replace(record, bids=bids)], START + number)
    training.compact(log, folder, ADS)
    training.erase(folder, [user])
    frames = [pl.read_parquet(path) for path in sorted(folder.rglob("*.parquet"))]
    assert [line for frame in frames for line in frame.write_ndjson().splitlines() if user in line] == []
    answers = pl.read_parquet(folder / "answers" / "*.parquet").sort("at")
    assert answers["user_id"].to_list() == [None, None, "somebody-else", None]
    assert [[bid["imp_id"] for bid in row] for row in answers["bids"]] == [["1", None]] * 4
    assert answers["bids"][2][1]["price_nanos"] == 1_000_000
