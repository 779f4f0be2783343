"""Callers' request and event IDs: stored as keyed hashes, looked up and recognised by them, old clear ones replaced."""

from contextlib import closing

import pytest

from leadre import database
from leadre.auction.budget import schema
from leadre.errors import InputError
from leadre.serve.events import clicks
from leadre.serve.events.caller_ids import CallerIds, clean_ledger
from leadre.serve.ipc.messages import EventRequest, RecordRequest
from leadre.serve.processes.writer_state import WriterState

from ..alone import Alone, urls_of
from ..conftest import make_ad, make_campaign

SECRET = "alice-7f3a@mail.example"


@pytest.fixture
def bidder(tmp_path):
    with Alone(tmp_path / "state") as bidder:
        bidder.campaign_store.add([make_campaign(bid_type="cpa")], [make_ad()])
        bidder.put_list("*", "a1")
        bidder.renew()
        bidder.bid()  # the first bid requests a lease
        bidder.renew()
        yield bidder


def files_with(folder, text):
    return [path.name for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def convert(bidder, event_id):
    """A bid, its record, and its conversion; returns the outcome of the conversion."""
    decision = bidder.bid_logged(id=f"r-{SECRET}")
    text = urls_of(decision.rendered[0])["click"].split("t=")[1]
    keys = bidder.writer.token_keys
    click_id = clicks.click_id(keys, keys.check(text, "click", bidder.clock.wall_us), bidder.clock.wall_us)
    event = EventRequest(kind="conv", token=click_id, at_us=bidder.clock.wall_us, event_id=event_id)
    return bidder.writer.handle([event], bidder.clock.wall_us)[0].outcome


def find(writer, request_id):
    (reply,) = writer.handle([RecordRequest(request_id)], 1)
    return reply.record


def test_ids_of_callers_are_in_no_file_and_are_known_again(bidder):
    assert convert(bidder, f"order-{SECRET}") == "new"
    assert convert(bidder, f"order-{SECRET}") == "known", "of another bid, with the same event_id"
    assert convert(bidder, "order-2") == "new"
    assert files_with(bidder.paths.folder, SECRET) == []
    record = find(bidder.writer, f"r-{SECRET}")
    assert record.caller_request_id == f"r-{SECRET}"
    assert find(bidder.writer, record.request_id).caller_request_id.startswith("#")
    bidder.writer.close()
    bidder.writer = WriterState(bidder.paths, retain_days=90, clock=bidder.clock)
    assert find(bidder.writer, f"r-{SECRET}").request_id == record.request_id
    assert convert(bidder, f"order-{SECRET}") == "known"


def test_clear_event_ids_of_a_ledger_are_replaced_and_leave_no_byte(tmp_path):
    """Entries that are known, and entries that were forgotten, whose bytes are in free pages."""
    ids = CallerIds.open(tmp_path / "ids.key")
    path = tmp_path / "ledger.db"
    with closing(database.connect(path, schema.MIGRATIONS)) as connection:
        connection.execute("PRAGMA secure_delete=OFF")
        rows = [(f"conv/c/1/{SECRET}-{n}", "c/1", "", 9, 0, 0) for n in range(2000)]
        rows += [(f"test/c2/{SECRET}", "c2", "", 9, 0, 0), ("0a0b/imp", "c2", "", 9, 0, 0)]
        connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", rows)
        connection.execute("DELETE FROM entries WHERE event_id LIKE ?", (f"%{SECRET}-%5",))
        connection.execute("PRAGMA secure_delete=ON")
        assert files_with(tmp_path, SECRET)
        clean_ledger(connection, ids)
        assert files_with(tmp_path, SECRET) == []
        kept = {key for (key,) in connection.execute("SELECT event_id FROM entries")}
        assert len(kept) == 1802 and f"conv/c/1/{ids.hash('event', f'{SECRET}-1')}" in kept and "0a0b/imp" in kept
        clean_ledger(connection, ids)
        assert kept == {key for (key,) in connection.execute("SELECT event_id FROM entries")}


def test_deleted_rows_leave_no_byte(tmp_path):
    with closing(database.connect(tmp_path / "x.db", ("CREATE TABLE t (name TEXT)",))) as connection:
        connection.executemany("INSERT INTO t VALUES (?)", [(f"{SECRET}-{n}",) for n in range(1000)])
        connection.execute("DELETE FROM t")
        database.truncate_wal(connection)
        assert files_with(tmp_path, SECRET) == []


def test_hashes_depend_on_the_key_and_the_kind(tmp_path):
    ids, same, other = (CallerIds.open(tmp_path / name) for name in ("a.key", "a.key", "b.key"))
    assert ids.hash("event", "1") == same.hash("event", "1") != other.hash("event", "1")
    assert ids.hash("event", "1") != ids.hash("request", "1") and ids.hash("event", "") == ""
    assert ids.hash_once("event", ids.hash("event", "1")) == ids.hash("event", "1") == ids.hash_once("event", "1")
    (tmp_path / "a.key").write_text("x")
    with pytest.raises(InputError, match=r"a\.key: holds no key of 32 bytes in hex"):
        CallerIds.open(tmp_path / "a.key")
