"""A start that lacks the counts of a long log books at once; another process counts the log meanwhile."""

import os
import signal
import time

import msgspec
import pytest

from leadre.serve.events import event_log
from leadre.serve.events.records import StatusRecord
from leadre.serve.processes import derived_state, log_counting
from leadre.serve.processes.event_counts import EventCounts
from leadre.serve.processes.log_counting import LogPart
from leadre.serve.processes.writer_state import RECOUNT_US

from ..alone import Alone
from ..conftest import make_ad
from .test_count_snapshot import counts, folder, serve

__all__ = ["folder"]


@pytest.fixture
def long_log(folder, monkeypatch):
    """(state folder, counts), and every log is too long from now on to be counted by the start itself."""
    monkeypatch.setattr(derived_state, "FOREGROUND_BYTES", 0)
    return folder


def impressions(replies):
    return sum(events[0] for events in replies[0]["by_ad"].values())


def statuses(bidder, after):
    """(ad, whether it is live) of the status records behind a number."""
    records = [entry.record for entry in event_log.read(bidder.paths.events, after)]
    return [(record.ad_id, record.is_live) for record in records if isinstance(record, StatusRecord)]


def wait_until_whole(bidder):
    """Maintain the writer until it has all counts."""
    for _ in range(600):
        bidder.renew()
        if bidder.writer._derived.is_whole:
            return
        time.sleep(0.1)
    raise AssertionError("the history is not counted")


@pytest.mark.parametrize("has_snapshot", [True, False], ids=["behind a snapshot", "without a snapshot"])
def test_start_books_before_it_has_counted_and_counts_all(long_log, has_snapshot):
    state, expected = long_log
    if not has_snapshot:
        (state / "counts").unlink()
    with Alone(state) as bidder:
        partial = counts(bidder)
        assert [partial[0]["is_whole"], partial[1]["is_whole"]] == [False, False]
        assert partial[2:] == expected[2:], "recent records are there at once"
        serve(bidder, "r-3")
        bidder.writer._derived.save()
        assert (state / "counts").exists() == has_snapshot, "counts that lack a part are not saved"
        wait_until_whole(bidder)
        whole = counts(bidder)
        assert [whole[0]["is_whole"], whole[1]["is_whole"]] == [True, True]
        assert impressions(whole) == impressions(expected) + 1
        assert statuses(bidder, expected[0]["last"]) == [], "both ads are live in the log already"
    with Alone(state) as bidder:
        assert bidder.writer._derived.is_whole, "the snapshot is that of the whole log"
        assert counts(bidder) == whole


def test_statuses_that_changed_while_the_bidder_was_off_are_logged_once_the_old_ones_are_known(long_log):
    state, expected = long_log
    (state / "counts").unlink()
    with Alone(state) as bidder:
        bidder.campaign_store.add([], [make_ad("a3")])
        bidder.campaign_store.set_ad_status("a2", "ended")
        bidder.renew()
        assert statuses(bidder, expected[0]["last"]) == []
        wait_until_whole(bidder)
        bidder.renew()
        assert sorted(statuses(bidder, expected[0]["last"])) == [("a2", False), ("a3", True)]


def test_count_that_was_killed_begins_again(long_log, capfd):
    state, expected = long_log
    (state / "counts").unlink()
    with Alone(state) as bidder:
        bidder.renew()
        bidder.writer._derived._counting._process.kill()
        bidder.writer._derived._counting._process.join()
        bidder.renew()
        assert "its process was killed" in capfd.readouterr().err
        assert not bidder.writer._derived.is_whole
        bidder.clock.wall_us += RECOUNT_US
        wait_until_whole(bidder)
        assert impressions(counts(bidder)) == impressions(expected)


def test_damaged_segment_is_named_and_the_writer_books_on(long_log, capfd, monkeypatch):
    state, _ = long_log
    monkeypatch.setattr(derived_state, "MAX_RECENT", 1)  # read by the start itself
    (state / "counts").unlink()
    first = event_log.segments(state / "events")[0]
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    with Alone(state) as bidder:
        for _ in range(100):
            bidder.renew()
            if bidder.writer._derived._counting is None:
                break
            time.sleep(0.1)
        assert f"{first}: damaged at byte" in capfd.readouterr().err
        assert not counts(bidder)[0]["is_whole"]
        serve(bidder, "r-3")


def test_process_that_counts_ends_with_the_writer(long_log):
    state, _ = long_log
    (state / "counts").unlink()
    with Alone(state) as bidder:
        bidder.renew()
        process = bidder.writer._derived._counting._process
        os.kill(process.pid, signal.SIGSTOP)
    assert not process.is_alive()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_part_of_a_log_is_counted_up_to_its_last_record(folder):
    state, expected = folder
    part = LogPart(folder=str(state / "events"), after=0, last=expected[0]["last"], zones={}, live=["gone"])
    assert log_counting.count(part).by_ad == {name: tuple(events) for name, events in expected[0]["by_ad"].items()}
    assert log_counting.count(part).live == ["a1", "a2", "gone"]
    half = msgspec.structs.replace(part, last=expected[0]["last"] // 2)
    rest = msgspec.structs.replace(part, after=half.last)
    totals = EventCounts(lambda campaign_id: "UTC")
    for counted in (log_counting.count(rest), log_counting.count(half)):
        totals.extend(counted.by_ad, counted.by_day)
    assert totals.totals()[0] == log_counting.count(part).by_ad
