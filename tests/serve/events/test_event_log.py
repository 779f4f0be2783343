"""The event log: acknowledged records survive kills, full disks and torn writes; erased users are in no byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from leadre.errors import InputError, StorageError
from leadre.serve.events import durable, event_log, user_records
from leadre.serve.events.log_writer import EventLog, retain
from leadre.serve.events.records import EventRecord, Record, RequestRecord, StatusRecord
from leadre.types import Bid, Candidate, Outcome
from leadre.units import US_PER_DAY, US_PER_S


def event(number: int, user_id: str = "u1") -> EventRecord:
    outcome = Outcome(
        kind="click", at_us=number, bid_id=f"b{number}", request_id="r", ad_id="a", campaign_id="c", user_id=user_id
    )
    return EventRecord(key=f"k{number}", outcome=outcome, owed_nanos=5, is_training=True)


REQUEST = RequestRecord(
    request_id="r",
    at_us=1,
    user_id="u1",
    placements={"1": "top"},
    candidates=(Candidate(ad_id="a", source="stored", log_p=-0.5), Candidate(ad_id="z", source="contextual", log_p=-2)),
    scores=(0.25, 0.125),
    bids=(
        Bid(
            bid_id="b",
            imp_id="1",
            ad_id="a",
            campaign_id="c",
            advertiser_id="v",
            price_nanos=1_234_567,
            currency="EUR",
            size=(300, 250),
            source="stored",
            propensity=0.75,
        ),
    ),
    versions={"model": "abc"},
)


def records(folder: Path, after: int = 0) -> list[Record]:
    return [entry.record for entry in event_log.read(folder, after)]


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


def test_records_are_read_with_number_and_time(tmp_path: Path) -> None:
    kinds: list[Record] = [REQUEST, event(1), StatusRecord(at_us=3, ad_id="a", is_live=False)]
    with EventLog(tmp_path) as log:
        assert log.append(kinds[:2], 10) == 2 and log.append(kinds[2:], 20) == 3 and log.append([], 30) == 3
        assert records(tmp_path) == kinds, "readers see acknowledged records"
        assert [(entry.number, entry.written_at_us) for entry in event_log.read(tmp_path)] == [
            (1, 10),
            (2, 10),
            (3, 20),
        ]
        assert records(tmp_path, after=2) == kinds[2:] and records(tmp_path, after=3) == []
    with EventLog(tmp_path) as log:
        assert (log.last, log.cut_bytes) == (3, 0)
        assert log.append([event(4)], 40) == 4
    assert records(tmp_path) == [*kinds, event(4)]


def test_append_syncs_once_before_it_returns(tmp_path: Path) -> None:
    order: list[str] = []

    def sync(file: int) -> None:
        os.fsync(file)
        order.append(f"disk has {len(records(tmp_path))}")

    with EventLog(tmp_path, sync=sync) as log:
        order.clear()
        order.append(f"acknowledged {log.append([event(n) for n in range(100)], 0)}")
        order.append(f"acknowledged {log.append([event(100)], 0)}")
    assert order == ["disk has 100", "acknowledged 100", "disk has 101", "acknowledged 101"]


def test_torn_tail_is_cut_at_any_byte(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.append([event(1), event(2)], 0)
        (path,) = segments(tmp_path)
        whole = path.read_bytes()
        log.append([event(3)], 0)
    longer = path.read_bytes()
    flipped = longer[:-1] + bytes([longer[-1] ^ 1])
    for torn in [*(longer[:end] for end in range(len(whole), len(longer), 7)), flipped, whole + bytes(50)]:
        path.write_bytes(torn)
        assert records(tmp_path) == [event(1), event(2)]
        with EventLog(tmp_path) as log:
            assert log.cut_bytes == len(torn) - len(whole)
            assert path.read_bytes() == whole
            assert log.append([event(9)], 0) == 3
        assert records(tmp_path) == [event(1), event(2), event(9)]


@pytest.mark.parametrize("size", range(len(event_log.MAGIC)))
def test_segment_with_a_torn_head_is_started_again(tmp_path: Path, size: int) -> None:
    with EventLog(tmp_path) as log:
        log.append([event(1)], 0)
        log.rotate()
    assert [path.name for path in segments(tmp_path)] == [f"{1:020d}.log", f"{2:020d}.log"]
    segments(tmp_path)[1].write_bytes(event_log.MAGIC[:size])
    with EventLog(tmp_path) as log:
        assert log.append([event(2)], 0) == 2
    assert records(tmp_path) == [event(1), event(2)]


def test_segments_end_by_size_and_by_age(tmp_path: Path) -> None:
    with EventLog(tmp_path / "size", segment_bytes=1000) as log:
        for number in range(30):
            log.append([event(number)], 0)
    assert len(segments(tmp_path / "size")) > 3
    assert all(path.stat().st_size <= 1000 for path in segments(tmp_path / "size"))
    assert records(tmp_path / "size", after=17) == [event(number) for number in range(17, 30)]
    for at_us in (
        0,
        59 * US_PER_S,
        60 * US_PER_S,
        100 * US_PER_S,
    ):  # opened again each time: the age counts from the first record
        with EventLog(tmp_path / "age", segment_s=60) as log:
            log.append([event(at_us)], at_us)
    assert [path.name[18:20] for path in segments(tmp_path / "age")] == ["01", "03"]


def test_damaged_segment_is_an_error_with_its_name(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.append([event(1), event(2)], 0)
        log.rotate()
        log.append([event(3)], 0)
    first = segments(tmp_path)[0]
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    with pytest.raises(StorageError, match=r"01\.log: damaged at byte \d+, record 2; nothing was changed: stop"):
        records(tmp_path)
    assert records(tmp_path, after=2) == [event(3)]


@pytest.mark.parametrize("place", ["magic", "length", "number", "body"])
def test_flipped_bit_before_whole_records_is_refused_and_no_byte_changes(tmp_path: Path, place: str) -> None:
    with EventLog(tmp_path) as log:
        log.append([event(number) for number in range(1, 640)], 1)
    (path,) = segments(tmp_path)
    whole = path.read_bytes()
    frames = list(event_log.scan(whole, 1))
    frame = frames[81].start
    offset = {"magic": 3, "length": frame + 1, "number": frame + 9, "body": frame + 40}[place]
    damaged = flipped(whole, offset)
    path.write_bytes(damaged)
    number, at_byte = (1, 0) if place == "magic" else (82, frame)
    message = rf"{path}: damaged at byte {at_byte}, record {number}, and record \d+ follows at byte \d+;"
    with pytest.raises(StorageError, match=message):
        EventLog(tmp_path)
    with pytest.raises(StorageError, match=message):
        records(tmp_path)
    assert path.read_bytes() == damaged
    path.write_bytes(whole)
    with EventLog(tmp_path) as log:
        assert (log.last, log.cut_bytes) == (639, 0)


def test_record_that_ledger_or_tables_know_is_not_cut_off(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.append([event(1)], 1)
        log.append([event(2)], 2)
    (path,) = segments(tmp_path)
    damaged = flipped(path.read_bytes(), -1)
    path.write_bytes(damaged)
    with pytest.raises(StorageError, match=r"ends at byte .* with record 1, and ledger or tables know record 2"):
        EventLog(tmp_path, known=2)
    assert path.read_bytes() == damaged


def test_retention_keeps_a_damaged_segment_with_young_records(tmp_path: Path) -> None:
    with EventLog(tmp_path, segment_s=1) as log:
        log.append([event(1), event(2)], US_PER_DAY)
        log.append([event(3)], 9 * US_PER_DAY)
        path = segments(tmp_path)[0]
        path.write_bytes(flipped(path.read_bytes(), len(event_log.MAGIC) + 1))  # a length
        assert retain(tmp_path, US_PER_DAY) == 0 and path.exists()


def flipped(data: bytes, offset: int) -> bytes:
    changed = bytearray(data)
    changed[offset] ^= 16
    return bytes(changed)


def test_retention_deletes_old_segments_and_numbers_continue(tmp_path: Path) -> None:
    with EventLog(tmp_path, segment_s=1) as log:
        for day in range(4):
            log.append([event(day)], day * US_PER_DAY)
        log.rotate_before(2 * US_PER_DAY)
        assert retain(tmp_path, 2 * US_PER_DAY) == 2
        assert records(tmp_path) == [event(2), event(3)]
        assert retain(tmp_path, 9 * US_PER_DAY) == 1, "the newest segment stays"
        log.rotate_before(9 * US_PER_DAY)
        assert retain(tmp_path, 9 * US_PER_DAY) == 1 and records(tmp_path) == []
    with EventLog(tmp_path) as log:
        assert log.append([event(4)], 0) == 5


def test_erased_user_is_in_no_byte_and_the_records_stay(tmp_path: Path) -> None:
    user = "user-4711"
    journal = tmp_path / "erasing.journal"
    with EventLog(tmp_path) as log:
        log.append([event(1, user), event(2, "user-47112"), REQUEST], 5)
        log.rotate()
        log.append([event(3)], 6)
        log.rotate()
        log.append([RequestRecord(request_id="r2", at_us=7, user_id=user)], 7)
        untouched = segments(tmp_path)[1].stat().st_mtime_ns
        (tmp_path / f".{4:020d}.log.new").write_bytes(b"left over by a kill: user-4711")
    with EventLog(tmp_path) as log:
        log.rotate()
        assert [user_records.erase(tmp_path, journal, [user])[user] for _ in range(2)] == [2, 0]
        raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert raw.count(user.encode()) == raw.count(b"user-47112") == 1
        assert segments(tmp_path)[1].stat().st_mtime_ns == untouched
        kept = list(event_log.read(tmp_path))
        assert [(entry.number, entry.written_at_us) for entry in kept] == [(1, 5), (2, 5), (3, 5), (4, 6), (5, 7)]
        first = kept[0].record
        last = kept[4].record
        assert isinstance(first, EventRecord) and isinstance(last, RequestRecord)
        assert (first.key, first.outcome.user_id, first.is_training, last.user_id) == ("k1", "", False, "")
        assert log.append([event(6)], 8) == 6


def test_second_writer_is_refused(tmp_path: Path) -> None:
    with EventLog(tmp_path), pytest.raises(InputError, match="another process writes this log"):
        EventLog(tmp_path)
    EventLog(tmp_path).close()


def test_log_refuses_writes_after_a_failed_sync_until_opened_again(tmp_path: Path) -> None:
    broken = [False]

    def sync(file: int) -> None:
        if broken[0]:
            raise OSError(5, "Input/output error")
        os.fsync(file)

    with EventLog(tmp_path, sync=sync) as log:
        log.append([event(1)], 0)
        broken[0] = True
        with pytest.raises(StorageError, match="could not be synced"):
            log.append([event(2)], 0)
        broken[0] = False
        with pytest.raises(StorageError, match="open the log again"):
            log.append([event(2)], 0)
    with EventLog(tmp_path) as log:
        assert log.append([event(3)], 0) == 2
    assert records(tmp_path) == [event(1), event(3)]


def test_file_that_cannot_be_replaced_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        durable.replace(tmp_path / "file" / "below", b"")


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_full_disk_is_an_error_and_leaves_no_partial_record(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: writes end in the middle of a record, as on a full disk."""
    code = """
    import pathlib, resource, sys
    from leadre.errors import StorageError
    from leadre.serve.events.log_writer import EventLog
    from leadre.serve.events.records import StatusRecord
    folder = pathlib.Path(sys.argv[1])
    records = [StatusRecord(at_us=0, ad_id="x" * 100, is_live=True)] * 7
    with EventLog(folder) as log:
        log.append([StatusRecord(at_us=0, ad_id="user-4711", is_live=True)], 0)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        for attempt in range(3):
            try:
                while True:
                    log.append(records, 0)
            except StorageError as error:
                print(log.last, error, flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        print(log.append(records, 0), flush=True)
    """
    with run(code, tmp_path) as process:
        output = process.communicate(timeout=150)[0].splitlines()
    assert len(output) == 4 and all(
        line.startswith("8 ") and "cannot be written (File too large); free" in line for line in output[:3]
    )
    assert output[3] == "15" and len(records(tmp_path)) == 15
    with EventLog(tmp_path) as log:
        assert (log.last, log.cut_bytes) == (15, 0)


def test_killed_writer_keeps_every_acknowledged_record(tmp_path: Path) -> None:
    code = """
    import pathlib, sys
    from leadre.serve.events.log_writer import EventLog
    from leadre.serve.events.records import StatusRecord
    with EventLog(pathlib.Path(sys.argv[1]), segment_bytes=5000) as log:
        while True:
            print(log.append([StatusRecord(at_us=log.last, ad_id="a", is_live=True)] * 3, 0), flush=True)
    """
    acknowledged = 0
    for lines in (1, 40, 200):
        with run(code, tmp_path) as process:
            assert process.stdout is not None
            for _ in range(lines):
                acknowledged = int(process.stdout.readline())
            os.kill(process.pid, signal.SIGKILL)
        numbers = [entry.number for entry in event_log.read(tmp_path)]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= acknowledged
