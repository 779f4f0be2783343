"""Erasure in place: a user leaves the log, all else stays where it was, and a crash leaves nothing half done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.errors import StorageError
from leadre.serve.events import event_log, records, user_records, user_texts
from leadre.serve.events.event_log import MAGIC
from leadre.serve.events.log_writer import EventLog
from leadre.serve.events.records import EventRecord, RequestRecord
from leadre.types import Bid, Outcome, Verdict

from .test_event_log import REQUEST, event, flipped, segments

USER = "user-4711"


def request(user: str, **fields: object) -> RequestRecord:
    return msgspec.structs.replace(REQUEST, user_id=user, **fields)


@settings(deadline=None)
@given(
    st.text(min_size=1, max_size=300),
    st.text(max_size=400),
    st.lists(st.text(max_size=10), max_size=3),
    st.booleans(),
)
def test_erased_record_has_its_length_and_no_user(
    user: str, reason: str, segment_ids: list[str], is_event: bool
) -> None:
    record: EventRecord | RequestRecord = event(1, user)
    if not is_event:
        record = request(user, reason=reason, request={"segments": segment_ids, "country": "DEU"})
    body = records.encode(record)
    erased = user_records.erased_body(body, [user])
    assert len(erased) == len(body)
    scrubbed = records.decode(user_texts.scrubbed_body(body, [user]))
    assert records.user_of(scrubbed) == user and records.user_of(records.decode(erased)) == ""
    if len(user.encode()) < user_texts.MIN_BYTES:
        assert records.decode(erased) == records.without(record, user)


@pytest.mark.parametrize("chars", [*range(1, 12), *range(225, 270), *range(65_500, 65_560)])
def test_every_length_of_an_id_can_be_padded(chars: int) -> None:
    record = request("u" * chars)
    body = records.encode(record)
    assert len(user_records.erased_body(body, [record.user_id])) == len(body)


def test_records_are_written_in_their_shortest_form() -> None:
    """An erasure decodes a record without its types and writes it again, in the same length.

    msgspec takes three bytes for the head of a map of 16 and more fields of which some are left out.
    """
    shortest = [event(1, USER), REQUEST, request(USER, bids=(REQUEST.bids[0], full_bid()))]
    for record in shortest:
        body = records.encode(record)
        assert msgspec.msgpack.encode(msgspec.msgpack.decode(body)) == body


def full_bid() -> Bid:
    """A bid whose numbers all differ from their defaults."""
    bid = REQUEST.bids[0]
    numbers = ("worth_nanos", "reserved_nanos", "ranked_nanos", "action_nanos")
    changes = dict.fromkeys(numbers, 10**12) | {"price_propensity": 0.5, "explores_price": True}
    return msgspec.structs.replace(bid, **changes)


def test_record_of_another_length_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EventLog(tmp_path) as log:
        log.append([request("another", caller_request_id=USER)], 5)
        log.rotate()
    before = segments(tmp_path)[0].read_bytes()
    monkeypatch.setattr(user_texts, "scrubbed_body", lambda body, users: body[:-2])
    with pytest.raises(StorageError, match="cannot be erased"):
        user_records.erase(tmp_path, tmp_path / "journal", [USER])
    assert segments(tmp_path)[0].read_bytes() == before


def test_record_of_an_older_release_is_erased_in_its_length() -> None:
    """Its bytes lack the fields that came later, so the record of this release is longer."""
    old = {"type": "answered", "request_id": "r", "at_us": 1, "user_id": "u"}
    body = msgspec.msgpack.encode(old)
    erased = user_records.erased_body(body, ["u"])
    assert len(erased) == len(body) and records.decode(erased) == RequestRecord(request_id="r", at_us=1)


def test_only_frames_of_the_user_change(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with EventLog(tmp_path) as log:
        log.append([event(1, USER), request(f"{USER}2"), request(USER), event(2)], 5)
        log.rotate()
        log.append([event(3, USER)], 6)
        path = segments(tmp_path)[0]
        before = path.read_bytes()
        inode = path.stat().st_ino
        assert user_records.erase(tmp_path, journal, [USER]) == {USER: 2}
        after = path.read_bytes()
    assert len(after) == len(before) and path.stat().st_ino == inode and not journal.exists()
    frames = list(event_log.scan(before, 1))
    for frame in frames:
        is_same = before[frame.start : frame.end] == after[frame.start : frame.end]
        assert is_same == (frame.number in (2, 4))
    assert [records.user_of(entry.record) for entry in event_log.read(tmp_path)] == ["", f"{USER}2", "", "u1", USER]
    assert after.count(USER.encode()) == 1, "the other user, whose ID begins alike"


@pytest.mark.parametrize("count", [1, user_records.MAX_SEARCHED, user_records.MAX_SEARCHED + 1])
def test_users_are_erased_in_one_pass(tmp_path: Path, count: int) -> None:
    users = [f"user-{number}" for number in range(count)]
    with EventLog(tmp_path) as log:
        for _ in range(3):
            log.append([record for user in [*users, "kept"] for record in (event(1, user), request(user))], 5)
            log.rotate()
    assert user_records.erase(tmp_path, tmp_path / "journal", users) == dict.fromkeys(users, 6)
    assert {records.user_of(entry.record) for entry in event_log.read(tmp_path)} == {"", "kept"}
    assert not user_records.erase(tmp_path, tmp_path / "journal", users)


def test_journal_is_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_records, "MAX_JOURNAL_BYTES", 500)
    with EventLog(tmp_path) as log:
        log.append([event(number, USER) for number in range(20)], 5)
        log.rotate()
    assert user_records.erase(tmp_path, tmp_path / "journal", [USER]) == {USER: 20}
    assert USER.encode() not in segments(tmp_path)[0].read_bytes()


@pytest.mark.parametrize("others", [0, user_records.MAX_SEARCHED])
def test_texts_of_callers_lose_the_id_and_keep_the_record(tmp_path: Path, others: int) -> None:
    """As an earlier release wrote them: an exchange or an advertiser put the ID into a text of its own."""
    bid = msgspec.structs.replace(REQUEST.bids[0], bid_id=f"b-{USER}", imp_id=f"imp-{USER}")
    texts = {"caller_request_id": USER, "request": {"site": f"{USER}.example", "imps": [{"imp_id": f"imp-{USER}"}]}}
    texts |= {"placements": {f"imp-{USER}": "top"}, "verdicts": {f"imp-{USER}": (Verdict.BID,), "2": ()}}
    conversion = msgspec.structs.replace(event(1, "other"), key=f"conv/c/{USER}é")
    with EventLog(tmp_path) as log:
        log.append([request("other", **texts, bids=(bid,)), conversion, request("other", reason=f"x{USER}9")], 5)
        log.rotate()
        before = segments(tmp_path)[0].read_bytes()
        users = [USER, *(f"another-{number}" for number in range(others))]
        assert not +user_records.erase(tmp_path, tmp_path / "journal", users)
    after = segments(tmp_path)[0].read_bytes()
    assert len(after) == len(before) and after.count(USER.encode()) == 2, "our own texts: a bid's ID, a reason"
    logged, converted, _ = (entry.record for entry in event_log.read(tmp_path))
    imp_id = logged.request["imps"][0]["imp_id"]
    assert imp_id == logged.bids[0].imp_id and logged.verdicts == {imp_id: (Verdict.BID,), "2": ()}
    assert logged.placements == {imp_id: "top"} and len(imp_id) == len(f"imp-{USER}") and logged.user_id == "other"
    assert converted.outcome == conversion.outcome and len(converted.key.encode()) == len(conversion.key.encode())


def test_short_id_is_erased_as_a_user_alone(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.append(
            [request("u1", caller_request_id="xu1"), request("other", caller_request_id="xu1"), event(3, "u1")], 5
        )
        log.rotate()
    assert user_records.erase(tmp_path, tmp_path / "journal", ["u1"]) == {"u1": 2}
    first, second, _ = (entry.record for entry in event_log.read(tmp_path))
    assert first.caller_request_id == second.caller_request_id == "xu1"


@pytest.mark.parametrize("user", ["4711", USER])
@pytest.mark.parametrize("others", [0, user_records.MAX_SEARCHED])
def test_id_is_erased_as_an_extended_id_of_every_source(tmp_path: Path, user: str, others: int) -> None:
    extended = [f"id5-sync.com:{user}", f"pubcid.org:{user}"]
    kept = [f"{user}:1", f"x:{user}:1", f"nodomain:{user}", f"pubcid.org:{user}0", f"pubcid.org:0{user}"]
    with EventLog(tmp_path) as log:
        log.append([record for name in (user, *extended, *kept) for record in (event(1, name), request(name))], 5)
        log.rotate()
    users = [user, *(f"another-{number}" for number in range(others))]
    assert user_records.erase(tmp_path, tmp_path / "journal", users) == {user: 6}
    named = {records.user_of(entry.record) for entry in event_log.read(tmp_path)}
    assert named == {"", *kept}


def test_frame_inside_a_text_is_not_taken_for_a_record(tmp_path: Path) -> None:
    """A caller may send a text that is a frame, and in it the ID of another user."""
    with EventLog(tmp_path) as log:
        log.append([event(1)], 5)
        inner = event_log.framed(2, 5, event(2, USER)).decode("latin-1")
        outcome = Outcome(kind="conv", at_us=1, bid_id=inner, request_id="r", ad_id="a", campaign_id="c", user_id="v")
        log.append([EventRecord(key="k", outcome=outcome), event(3, USER)], 5)
        log.rotate()
    assert user_records.erase(tmp_path, tmp_path / "journal", [USER]) == {USER: 1}
    assert [records.user_of(entry.record) for entry in event_log.read(tmp_path)] == ["u1", "v", ""]


def test_damaged_frame_of_the_user_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.append([event(1, USER), event(2, USER)], 5)
        log.rotate()
    path = segments(tmp_path)[0]
    path.write_bytes(flipped(path.read_bytes(), len(MAGIC) + 26))
    before = path.read_bytes()
    with pytest.raises(StorageError, match="record 1 is damaged; stop the bidder and run `leadre serve repair`"):
        user_records.erase(tmp_path, tmp_path / "journal", [USER])
    assert path.read_bytes() == before


def test_records_of_a_user_are_found_in_order(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        for number in range(6):
            log.append([event(number, USER), event(number, "other")], 5)
            if number % 2:
                log.rotate()
    times_us = [record.outcome.at_us for record in user_records.find(tmp_path, USER) if isinstance(record, EventRecord)]
    assert times_us == list(range(6))
    assert not list(user_records.find(tmp_path, "nobody"))


# Kills the process before its Nth call that writes to the disk.
KILLED = """
import os, signal, sys
from pathlib import Path
from leadre.serve.events import durable, user_records

folder = Path(sys.argv[1])
left = int(sys.argv[2])

def counted(call, half=None):
    def wrapped(*values, **named):
        global left
        left -= 1
        if left == 0:
            if half:
                half(*values)
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*values, **named)
    return wrapped

pwrite = os.pwrite
os.pwrite = counted(pwrite, lambda file, data, at: pwrite(file, data[: len(data) // 2], at))
os.fsync = counted(os.fsync)
durable.replace = counted(durable.replace)
Path.unlink = counted(Path.unlink)
user_records.erase(folder, folder / "journal", ["user-4711"])
print("done")
"""


def test_erasure_that_is_killed_anywhere_is_finished_by_the_next_start(tmp_path: Path) -> None:
    """Killed before each write, and in the middle of a frame: afterwards `recover` leaves whole records alone."""
    outcomes = set()
    for left in range(1, 20):
        folder = tmp_path / str(left)
        with EventLog(folder) as log:
            for _ in range(2):
                log.append([event(1, USER), request(USER), event(2)], 5)
                log.rotate()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        code = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder), str(left)]
        status = subprocess.run(code, env=environment, capture_output=True, timeout=60).returncode
        had_journal = (folder / "journal").exists()
        user_records.recover(folder, folder / "journal")
        users = {records.user_of(entry.record) for entry in event_log.read(folder)}
        assert users == ({"", "u1"} if had_journal or status == 0 else users)
        assert not (folder / "journal").exists()
        assert sum(user_records.erase(folder, folder / "journal", [USER]).values()) in (0, 4)
        assert all(USER.encode() not in path.read_bytes() for path in segments(folder))
        outcomes.add((status, had_journal))
        if status == 0:
            break
    assert outcomes == {(-signal.SIGKILL, False), (-signal.SIGKILL, True), (0, False)}


def test_damaged_journal_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"x")
    with pytest.raises(StorageError, match=r"journal: damaged .* request the erasures of the last day again"):
        user_records.recover(tmp_path, tmp_path / "journal")
