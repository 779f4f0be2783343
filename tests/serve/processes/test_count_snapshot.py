"""A start reads the counts from their snapshot and the log behind it; without a snapshot it counts the whole log."""

import msgspec
import pytest

from leadre.serve.events import event_log
from leadre.serve.events.log_writer import retain
from leadre.serve.ipc.messages import CountsRequest, RecordRequest, ReportRequest
from leadre.serve.processes import count_snapshot
from leadre.serve.processes.writer_state import SNAPSHOT_US

from ..alone import NOON_US, Alone, urls_of
from ..conftest import make_ad, make_campaign

REPORT = ReportRequest(["c1"], 0, 1 << 52)


def serve(bidder, *names):
    """A bid, its record and its events for each name, in a segment of their own."""
    for name in names:
        decision = bidder.bid_logged(id=name, user={"id": f"user-{name}"})
        urls = urls_of(decision.rendered[0])
        assert bidder.post_events(("imp", urls["imp"]), ("click", urls["click"])) == ["new", "new"]
    bidder.writer.log.rotate()


def counts(bidder):
    """Replies with all that the writer derives from its log, as they are sent."""
    requests = [CountsRequest(), REPORT, *(RecordRequest(name) for name in ("r-0", "r-1", "r-2", ""))]
    replies = bidder.writer.handle(requests, bidder.clock.wall_us)
    return [msgspec.json.decode(msgspec.json.encode(reply)) for reply in replies]


@pytest.fixture
def folder(tmp_path):
    """A state with three requests; the segment of the last one is behind the snapshot."""
    folder = tmp_path / "state"
    with Alone(folder) as bidder:
        bidder.campaign_store.add([make_campaign()], [make_ad(), make_ad("a2")])
        bidder.put_list("*", "a1", "a2")
        bidder.renew()
        bidder.bid()  # the first bid requests a lease
        bidder.renew()
        serve(bidder, "r-0", "r-1")
        bidder.clock.wall_us += SNAPSHOT_US
        bidder.renew()
        older = bidder.paths.counts.read_bytes()
        serve(bidder, "r-2")
        expected = counts(bidder)
    bidder.paths.counts.write_bytes(older)  # as after a kill
    return folder, expected


def test_counts_are_equal_with_a_snapshot_before_the_end_of_the_log_without_one_and_with_a_damaged_one(folder):
    state, expected = folder
    assert sum(events[0] for events in expected[0]["by_ad"].values()) == 3
    with Alone(state) as bidder:
        assert counts(bidder) == expected
    path = bidder.paths.counts
    path.unlink()
    with Alone(state) as bidder:
        assert counts(bidder) == expected
    whole = path.read_bytes()
    for damaged in (b"", b"\n", whole[:-1], whole[:20] + b"!" + whole[21:], b"00000000\n" + whole[9:]):
        path.write_bytes(damaged)
        assert count_snapshot.read(path, 1 << 60) is None
        with Alone(state) as bidder:
            assert counts(bidder) == expected


def test_start_needs_no_segment_before_the_snapshot(folder):
    state, expected = folder
    with Alone(state) as bidder:
        first = event_log.segments(bidder.paths.events)[0]
        bidder.writer.log.rotate_before(NOON_US + 1)
        retain(bidder.paths.events, NOON_US + 1)  # deletes the segments of the first two requests
    assert not first.exists()
    with Alone(state) as bidder:
        assert counts(bidder)[:2] == expected[:2]
        assert bidder.writer.handle([RecordRequest("r-0")], 0)[0].record is None
        bidder.renew()
        statuses = [entry.record for entry in event_log.read(bidder.paths.events, expected[0]["last"])]
        assert statuses == [], "both ads are live in the log already"


def test_snapshot_of_a_longer_log_is_not_read(folder):
    """A log of an older backup: its records are counted, not those that it lacks."""
    state, expected = folder
    with Alone(state) as bidder:
        pass
    assert count_snapshot.read(bidder.paths.counts, expected[0]["last"]) is not None
    assert count_snapshot.read(bidder.paths.counts, expected[0]["last"] - 1) is None


def test_snapshot_names_no_user(folder):
    state, _ = folder
    assert b"user-r" not in (state / "counts").read_bytes()
