"""Reading of the log behind a remembered place: what is new, and no byte before it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.errors import StorageError
from leadre.serve.events import event_log, table_position, training, user_records
from leadre.serve.events.event_log import MAGIC, Place, read_placed
from leadre.serve.events.log_writer import EventLog

from .test_event_log import event, flipped, segments


def numbers_behind(folder: Path, place: Place) -> list[int]:
    return [entry.number for entry, _ in read_placed(folder, place.number, place)]


def test_bytes_before_a_place_are_not_read(tmp_path: Path) -> None:
    """A flipped bit in the first record is found by a reader of the whole log, and not by one behind a place."""
    with EventLog(tmp_path) as log:
        log.append([event(number) for number in range(1, 6)], 1)
    places = {place.number: place for _, place in read_placed(tmp_path)}
    path = segments(tmp_path)[0]
    path.write_bytes(flipped(path.read_bytes(), len(MAGIC) + 30))
    assert numbers_behind(tmp_path, places[3]) == [4, 5]
    assert numbers_behind(tmp_path, places[5]) == []
    with pytest.raises(StorageError, match="record 1, and record 2 follows"):
        list(event_log.read(tmp_path, 3))


def test_damage_behind_a_place_is_named_by_its_byte(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.append([event(number) for number in range(1, 6)], 1)
    places = {place.number: place for _, place in read_placed(tmp_path)}
    path = segments(tmp_path)[0]
    path.write_bytes(flipped(path.read_bytes(), places[4].start + 30))
    why = rf"byte {places[4].start}, record 4, and record 5 follows at byte {places[5].start};"
    with pytest.raises(StorageError, match=why):
        numbers_behind(tmp_path, places[2])


def test_write_in_progress_behind_a_place_is_not_returned(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.append([event(number) for number in range(1, 4)], 1)
    (*_, (_, place)) = read_placed(tmp_path)
    whole = segments(tmp_path)[0].read_bytes()
    with segments(tmp_path)[0].open("ab") as file:
        file.write(whole[len(MAGIC) : len(MAGIC) + 40])  # a frame that is not whole
    assert numbers_behind(tmp_path, place) == []
    assert numbers_behind(tmp_path, place._replace(number=2, start=10)) == [3]  # no place of a record


@settings(deadline=None)
@given(st.lists(st.sampled_from(["append", "rotate", "erase u1", "erase u2", "flush"]), max_size=25))
def test_places_survive_rotations_and_erasures(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    """Each flush reads the records since the last one, each once, although erasures write into closed segments."""
    folder = tmp_path_factory.mktemp("log")
    numbers = [0]
    places: list[Place | None] = [None]
    with EventLog(folder) as log:
        for number, step in enumerate([*steps, "flush"]):
            if step == "append":
                log.append([event(number, user) for user in ("u1", "u2")], number)
            elif step == "rotate":
                log.rotate()
            elif step.startswith("erase"):
                log.rotate()
                user_records.erase(folder, folder / "journal", [step.split()[1]])
            else:
                for entry, place in read_placed(folder, numbers[-1], places[-1]):
                    numbers.append(entry.number)
                    places.append(place)
        assert numbers == list(range(log.last + 1))


def test_position_of_an_older_release_is_read(tmp_path: Path) -> None:
    (tmp_path / table_position.POSITION).write_text("12")
    assert (table_position.read(tmp_path), table_position.place(tmp_path)) == (12, None)
    table_position.write(tmp_path, 13, Place(13, 1, 4096))
    assert (table_position.read(tmp_path), table_position.place(tmp_path)) == (13, Place(13, 1, 4096))
    table_position.write(tmp_path, 14, None)
    assert (table_position.read(tmp_path), table_position.place(tmp_path)) == (14, None)


def test_flush_reads_behind_the_last_one(tmp_path: Path) -> None:
    log = tmp_path / "events"
    with EventLog(log) as writer:
        writer.append([event(number) for number in range(1, 4)], 1)
        assert training.compact(log, tmp_path / "tables", ()) == 3
        path = segments(log)[0]
        path.write_bytes(flipped(path.read_bytes(), len(MAGIC) + 30))
        writer.append([event(4)], 1)
        assert training.compact(log, tmp_path / "tables", ()) == 1
    assert table_position.read(tmp_path / "tables") == 4
