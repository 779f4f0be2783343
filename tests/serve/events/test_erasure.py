"""An erased user is unreadable at once; the files that name the user are replaced while bookings go on."""

import polars as pl
import pytest

from leadre.serve.events import erasure, event_log, table_position
from leadre.serve.ipc.messages import EraseReply, EraseRequest, RecordRequest
from leadre.serve.processes.table_writer import TableWriter
from leadre.serve.processes.writer_state import WriterState

from ..alone import Alone, urls_of
from ..conftest import make_ad, make_campaign

USER = "user-to-erase-4711"


def serve(bidder, name, user_id):
    """A bid for a user, its record and an impression; returns the outcome of the impression."""
    decision = bidder.bid_logged(id=name, user={"id": user_id})
    return bidder.post_events(("imp", urls_of(decision.rendered[0])["imp"]))


def names_user(bidder):
    """Whether a log segment or a table names the user."""
    paths = bidder.paths
    tables = [pl.read_parquet(path) for path in paths.tables.glob("*/*.parquet")]
    in_tables = any(USER in table["user_id"].to_list() for table in tables)
    return in_tables or any(USER.encode() in path.read_bytes() for path in event_log.segments(paths.events))


def explained_user(bidder, name):
    (reply,) = bidder.writer.handle([RecordRequest(name)], bidder.clock.wall_us)
    return reply.record.user_id


@pytest.fixture
def bidder(tmp_path):
    """A bidder that has served the user and another one."""
    with Alone(tmp_path / "state") as bidder:
        bidder.campaign_store.add([make_campaign()], [make_ad()])
        bidder.put_list("*", "a1")
        bidder.renew()
        bidder.bid()  # the first bid requests a lease
        bidder.renew()
        assert serve(bidder, "r-1", USER) == serve(bidder, "r-2", "other") == ["new"]
        yield bidder


def test_bookings_go_on_while_an_erasure_replaces_files(bidder):
    paths = bidder.paths
    tables = TableWriter(paths, retain_days=90, clock=bidder.clock)
    with erasure.replacing(paths, wait=True):  # as an erasure that takes long
        assert explained_user(bidder, "r-1") == USER and names_user(bidder)
        assert bidder.writer.handle([EraseRequest(USER)], bidder.clock.wall_us) == [EraseReply()]
        assert explained_user(bidder, "r-1") == ""
        assert serve(bidder, "r-3", USER) == serve(bidder, "r-4", "other") == ["new"]
        assert explained_user(bidder, "r-3") == ""
        tables.flush()
        tables.retain(bidder.clock.wall_us)
        assert table_position.read(paths.tables) == 0, "the tables wait for the erasure"
    assert erasure.erase(paths, [USER])[USER] > 0
    assert not names_user(bidder)
    tables.flush()
    assert table_position.read(paths.tables) == bidder.writer.log.last and not names_user(bidder)
    assert not erasure.erase(paths, [USER])


def test_writer_that_starts_before_the_bytes_are_gone_names_no_erased_user(bidder):
    bidder.writer.handle([EraseRequest(USER)], bidder.clock.wall_us)
    bidder.writer.close()
    bidder.writer = WriterState(bidder.paths, retain_days=90, clock=bidder.clock)
    assert names_user(bidder) and explained_user(bidder, "r-1") == "" and explained_user(bidder, "r-2") == "other"
