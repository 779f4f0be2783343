"""Repair of a damaged log: every whole record stays under its number, the file is kept aside, the loss is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from leadre.errors import InputError, StorageError
from leadre.serve.events import event_log
from leadre.serve.events.log_writer import EventLog
from leadre.serve.events.records import StatusRecord
from leadre.serve.events.repair import Loss, repair


def record(number: int) -> StatusRecord:
    return StatusRecord(at_us=number, ad_id=f"ad-{number}", is_live=True)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of 60 records in six segments; record n was written at n."""
    folder = tmp_path / "events"
    with EventLog(folder) as log:
        for number in range(1, 61):
            log.append([record(number)], number)
            if number % 10 == 0 and number < 60:
                log.rotate()
    return folder


def damage(path: Path, *numbers: int) -> bytes:
    """Flip a bit in the middle of records of a segment; returns the new content."""
    data = bytearray(path.read_bytes())
    for frame in list(event_log.scan(bytes(data), event_log.first_number(path))):
        if frame.number in numbers:
            data[(frame.start + frame.end) // 2] ^= 1
    path.write_bytes(data)
    return bytes(data)


def numbers(folder: Path) -> list[int]:
    entries = list(event_log.read(folder))
    assert all(entry.record == record(entry.number) and entry.written_at_us == entry.number for entry in entries)
    return [entry.number for entry in entries]


@pytest.mark.parametrize(
    ("segment", "lost"),
    [(5, (52, 53, 57)), (5, (51,)), (1, (14,)), (1, (20,)), (2, (21, 22, 23)), (3, tuple(range(31, 41)))],
)
def test_whole_records_are_saved_and_the_lost_are_reported(log: Path, tmp_path: Path, segment: int, lost) -> None:
    path = event_log.segments(log)[segment]
    damaged = damage(path, *lost)
    with pytest.raises(StorageError, match=rf"{path}: damaged at byte \d+, record {lost[0]}\b.*leadre serve repair"):
        numbers(log)
    losses = repair(log, tmp_path / "aside", 60)
    assert tuple(n for loss in losses for n in range(loss.first, loss.last + 1)) == lost
    assert {loss.segment for loss in losses} == {tmp_path / "aside" / path.name}
    assert (tmp_path / "aside" / path.name).read_bytes() == damaged
    saved = [number for number in range(1, 61) if number not in lost]
    assert numbers(log) == saved
    assert repair(log, tmp_path / "aside", 60) == [], "a second repair finds nothing"
    with EventLog(log, known=60) as writer:
        assert writer.append([record(61)], 61) == 61
    assert numbers(log) == [*saved, 61]


def test_times_of_a_loss_are_those_of_its_neighbours(log: Path, tmp_path: Path) -> None:
    path = event_log.segments(log)[2]
    damage(path, 24, 25)
    assert repair(log, tmp_path / "aside", 60) == [Loss(tmp_path / "aside" / path.name, 24, 25, 23, 26)]


def test_log_that_ends_before_a_known_record_continues_behind_it(log: Path, tmp_path: Path) -> None:
    damage(event_log.segments(log)[-1], 59, 60)
    losses = repair(log, tmp_path / "aside", 60)
    assert [(loss.first, loss.last) for loss in losses] == [(59, 60)]
    with EventLog(log, known=60) as writer:
        assert writer.append([record(61)], 61) == 61
    assert numbers(log) == [*range(1, 59), 61]


def test_torn_tail_is_left_to_the_writer(log: Path, tmp_path: Path) -> None:
    path = event_log.segments(log)[-1]
    torn = path.read_bytes()[:-3]
    path.write_bytes(torn)
    assert repair(log, tmp_path / "aside", 59) == [] and path.read_bytes() == torn
    assert not (tmp_path / "aside").exists()


def test_killed_repair_is_completed_by_the_next(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leadre.serve.events import durable

    damage(event_log.segments(log)[1], 13, 17)
    replace = durable.replace
    left = [0]

    def killed(*arguments, **options):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        replace(*arguments, **options)

    monkeypatch.setattr(durable, "replace", killed)
    for writes in range(4):
        left[0] = writes
        with pytest.raises(KeyboardInterrupt):
            repair(log, tmp_path / "aside", 60)
        with pytest.raises(StorageError):
            numbers(log)
    monkeypatch.undo()
    losses = repair(log, tmp_path / "aside", 60)
    assert [(loss.first, loss.last) for loss in losses] == [(13, 13), (17, 17)]
    assert numbers(log) == [number for number in range(1, 61) if number not in (13, 17)]


def test_repair_is_refused_while_a_bidder_writes(log: Path, tmp_path: Path) -> None:
    with EventLog(log), pytest.raises(InputError, match="another process writes this log; stop it first"):
        repair(log, tmp_path / "aside", 60)
