"""Recent records are found by both IDs, for a while, and name no erased user."""

import pytest
from msgspec.structs import replace

from leadre.serve.events.records import RequestRecord
from leadre.serve.processes import recent_records
from leadre.serve.processes.recent_records import RecentRecords


def record(number, user_id="u1"):
    return RequestRecord(
        request_id=f"r{number}",
        at_us=number,
        user_id=user_id,
        caller_request_id=f"caller-{number}",
        request={"imp": [{"id": "1"}], "segments": ["s1"]},
    )


@pytest.fixture
def recent():
    records = RecentRecords()
    for number in range(3):
        records.add(record(number, user_id=f"u{number}"))
    return records


def test_record_is_found_as_it_was_by_our_id_and_by_the_callers(recent):
    assert recent.find("r1") == recent.find("caller-1") == record(1, "u1")
    assert recent.find("") == record(2, "u2"), "the newest"
    assert recent.find("r9") is None and RecentRecords().find("") is None


def test_record_is_known_by_our_id_alone(recent):
    assert record(1) in recent and record(9) not in recent
    assert RequestRecord(request_id="caller-1", at_us=1) not in recent, "an exchange's ID is not ours"


def test_erased_user_is_in_no_record(recent):
    recent.erase("u1")
    for request_id in ("r1", "caller-1"):
        record_left = recent.find(request_id)
        assert (record_left.user_id, record_left.request) == ("", {"imp": [{"id": "1"}]})
    assert recent.find("r2").user_id == "u2"
    assert not any(b"u1" in entry.packed for entry in recent._by_id.values())


def test_old_records_are_forgotten(recent, monkeypatch):
    recent.forget_before(1)
    assert recent.find("r0") is None and recent.find("r1") is not None
    monkeypatch.setattr(recent_records, "MAX_RECENT", 2)
    recent.add(record(3))
    assert recent.find("r1") is None and recent.find("r3") is not None


def test_large_records_leave_room_for_the_newest_and_stay_known():
    """A caller with requests of 44 kB must not fill the memory of the writer."""
    recent = RecentRecords(max_bytes=100_000)
    large = [replace(record(number), request={"padding": "x" * 20_000}) for number in range(50)]
    for item in large:
        recent.add(item)
    stored = [item.request_id for item in large if recent.find(item.request_id) is not None]
    assert stored == ["r46", "r47", "r48", "r49"]
    assert all(item in recent for item in large)
    recent.erase("u1")
    assert recent.find("r49").user_id == "" and recent._bytes < 100_000
    recent.forget_before(10**18)
    assert recent._bytes == 0 and large[49] not in recent
    huge = replace(record(50), request={"padding": "x" * 200_000})
    recent.add(huge)
    assert recent.find("") == huge, "the newest has room whatever its size"
