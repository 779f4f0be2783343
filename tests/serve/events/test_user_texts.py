"""IDs of users inside texts: in records, in requests that were set aside, and in copies of damaged segments."""

import msgspec

from leadre.serve.events import records, repair, user_texts
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import AppendRequest
from leadre.serve.processes.set_aside import SetAsideRequests

from .test_event_log import REQUEST, event

USER = "user-4711-ü"
TEXTS = {"request": {"site": f"{USER}.example", "country": "DEU"}, "placements": {f"imp-{USER}": f"top-{USER}"}}


def record(user_id, **fields):
    return msgspec.structs.replace(REQUEST, user_id=user_id, **(TEXTS | fields))


def names(item):
    return USER.encode() in msgspec.json.encode(item)


def test_record_without_a_user_has_no_id_of_its_request():
    for user_ids in ((USER, "another"), ("", f"id5-sync.com:{USER}")):
        anonymous = user_texts.anonymous(record(""), user_ids)
        assert not names(anonymous) and anonymous.request["country"] == "DEU" and anonymous.bids == REQUEST.bids
    assert user_texts.anonymous(record(USER), (USER,)) == record(USER), "an erasure finds it by its user"
    assert user_texts.anonymous(record(""), ("someone-else",)) == record("")


def test_erased_record_loses_user_and_texts():
    erased = user_texts.erased(record(f"pubcid.org:{USER}"))
    assert not names(erased) and erased.user_id == "" and erased.reason == REQUEST.reason
    assert user_texts.erased(record("u1")) == records.without_user(record("u1"))


def test_request_that_was_set_aside_loses_its_content(tmp_path):
    requests = SetAsideRequests(tmp_path / "refused.jsonl", TokenKeys.open(tmp_path / "token.keys"))
    for user_id in (USER, "other"):
        requests.add(AppendRequest([record(user_id, caller_request_id=f"r-{USER}")]), f"failed at {user_id}", 5)
    lines = (tmp_path / "refused.jsonl").read_bytes().splitlines()
    assert b"r-user" not in lines[0] and all(USER.encode() in line for line in lines)
    requests.erase("never-was")
    assert (tmp_path / "refused.jsonl").read_bytes().splitlines() == lines
    requests.erase(USER)
    kept = [msgspec.json.decode(line) for line in (tmp_path / "refused.jsonl").read_bytes().splitlines()]
    assert kept == [{"at_us": 5, "kind": "AppendRequest", "why": "erased", "request": {}}] * 2


def test_copy_of_a_damaged_segment_loses_the_id_and_keeps_its_length(tmp_path):
    body = b"damage" + records.encode(event(1, USER)) + records.encode(event(2, "u1")) + f"x{USER}".encode()
    (tmp_path / "1.log").write_bytes(body)
    repair.erase(tmp_path, [USER, "u1"])
    left = (tmp_path / "1.log").read_bytes()
    assert len(left) == len(body) and USER.encode() not in left and b"u1" not in left and left.startswith(b"damage")
    repair.erase(tmp_path / "missing", [USER])
