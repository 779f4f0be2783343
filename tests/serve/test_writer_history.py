"""The history that `bench/writer.py` copies from a template is the one that the code of the writer makes."""

import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import polars as pl
import pytest

from leadre.auction.budget.ledger import Ledger
from leadre.clock import ManualClock, SystemClock
from leadre.serve.events import event_log
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import CountsRequest, EventReply, EventRequest, RecordRequest, ReportRequest
from leadre.serve.processes.writer_state import WriterState
from leadre.units import US_PER_DAY, US_PER_HOUR

from .bidder import Bidder, until

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from history_blocks import Times
from writer_history import build, flush, grow
from writer_records import ERASED, paths_of, token_of

COUNT = 3_500  # three chunks, two of them old enough to be forgotten, and a part of one; two days
NOW_US = 1_772_330_400_000_000  # 2026-03-01T02:00:00Z
TIMES = Times(began_us=NOW_US - 4 * US_PER_HOUR, now_us=NOW_US, count=COUNT)
SEGMENT_BYTES = 4 << 20


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(paths of the history from the template, paths of the one that the code of the writer makes)"""
    copy = build(tmp_path_factory.mktemp("history") / "copy", COUNT, TIMES, segment_bytes=SEGMENT_BYTES)
    original = paths_of(tmp_path_factory.mktemp("history") / "original")
    original.folder.mkdir()
    grow(original, COUNT, TIMES, SEGMENT_BYTES)
    flush(original)
    return copy, original


def test_log_is_the_same_byte_for_byte(folders):
    copy, original = folders
    assert [path.name for path in event_log.segments(copy.events)] == [
        path.name for path in event_log.segments(original.events)
    ]
    for path in event_log.segments(original.events):
        assert (copy.events / path.name).read_bytes() == path.read_bytes()
    records = [entry.record for entry in event_log.read(copy.events)]
    assert len(records) == 4 * COUNT
    assert sum(getattr(record, "user_id", "") == ERASED for record in records) == 319


def test_small_segments_are_cut_at_the_same_records(tmp_path):
    hour = Times(began_us=NOW_US - 60, now_us=NOW_US, count=COUNT)
    copy = build(tmp_path / "copy", COUNT, hour, segment_bytes=SEGMENT_BYTES)
    original = paths_of(tmp_path / "original")
    original.folder.mkdir()
    grow(original, COUNT, hour, SEGMENT_BYTES)
    names = [path.name for path in event_log.segments(original.events)]
    assert len(names) > 1
    assert [path.name for path in event_log.segments(copy.events)] == names


def test_tables_have_the_same_rows(folders):
    copy, original = folders
    for name in ("events", "requests", "answers"):
        rows, expected = (
            pl.concat(pl.read_parquet(path) for path in sorted((paths.tables / name).glob("*.parquet")))
            for paths in folders
        )
        assert expected.height == COUNT * (2 if name == "events" else 1)
        assert rows.equals(expected.select(rows.columns)) and rows.schema == expected.schema, name
    days = [sorted({path.name[:10] for path in paths.tables.glob("*/*.parquet")}) for paths in folders]
    assert days[0] == days[1]
    assert (copy.tables / "ads.parquet").read_bytes() == (original.tables / "ads.parquet").read_bytes()


def test_ledger_has_the_same_rows(folders):
    tables = ("budgets", "days", "entries", "leases", "log")
    rows = []
    for paths in folders:
        with Ledger(paths.ledger) as ledger:
            assert ledger.verify() == []
            rows.append([sorted(ledger.connection.execute(f"SELECT * FROM {table}")) for table in tables])
    assert rows[0] == rows[1]
    assert len(rows[0][2]) > 1000, "events that are still known"


def test_writer_opens_it_counts_all_and_books(folders, tmp_path):
    assert folders[0].counts.exists()
    replies = []
    for number, paths in enumerate(folders):
        paths = paths_of(shutil.copytree(paths.folder, tmp_path / str(number)))
        keys = TokenKeys.open(paths.token_keys)
        paths.caller_id_key.write_text("5a" * 32)  # the hashes of both are the same
        state = WriterState(paths, retain_days=90, clock=ManualClock(NOW_US))
        requests = [CountsRequest(), ReportRequest(["c01", "c49"], 0, 1 << 52), RecordRequest("")]
        replies.append(state.handle(requests, NOW_US))
        event = EventRequest(
            kind="bill",
            token=keys.encrypt(token_of(COUNT, "user", NOW_US), "bill"),
            at_us=NOW_US,
            price_nanos=1_500_000,
        )
        assert state.handle([event, event], NOW_US) == [EventReply("new"), EventReply("known")]
        known = EventRequest(kind="imp", token=keys.encrypt(token_of(COUNT - 1, "user", NOW_US), "imp"), at_us=NOW_US)
        assert state.handle([known], NOW_US) == [EventReply("known")]
        state.close()
    assert replies[0] == replies[1]
    assert sum(impressions for impressions, _, _ in replies[0][0].by_ad.values()) == COUNT


@pytest.mark.slow
def test_bidder_reports_that_it_still_counts_a_long_log(work, tmp_path):
    count = 60_000  # as long as no start counts itself
    now = SystemClock().now_us()
    times = Times(began_us=now - US_PER_DAY, now_us=now, count=count)
    paths = build(tmp_path / "state", count, times, has_snapshot=False)
    bidder = Bidder(work, paths.folder, "--generate", "false")
    span = {"since": "2020-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z"}

    def report():
        headers = {"authorization": f"Bearer {bidder.operator}"}
        url = f"http://127.0.0.1:{bidder.manage_port}/reports/campaigns"
        return bidder.http.get(url, params=span, headers=headers)

    def is_counting():
        return bidder.http.get(f"{bidder.url}/readyz").json()["counting"]

    stopping = threading.Thread(target=stop_history_count, args=(bidder,))
    stopping.start()
    with bidder:
        stopping.join()
        until(is_counting, "counting")
        assert report().status_code == 503
        assert "still counts the events" in report().text
        _, ad_id = bidder.campaign()
        bidder.list_for("u", ad_id)
        until(lambda: bidder.bids(user={"id": "u"}), "bids")
        os.kill(history_count_of(bidder), signal.SIGCONT)
        until(lambda: not is_counting(), "whole")
        days = report().json()["items"]
        assert sum(day["impressions"] for day in days) == count


def stop_history_count(bidder):
    """Stop the process that counts the history as soon as it runs."""
    until(lambda: bidder._process is not None and history_count_of(bidder), "a history count", bidder.said)
    os.kill(history_count_of(bidder), signal.SIGSTOP)


def history_count_of(bidder):
    """The process that counts the history, 0 if there is none."""
    for writer in bidder.pids("writer"):
        for children in Path(f"/proc/{writer}/task").glob("*/children"):
            for child in children.read_text().split():
                if Path(f"/proc/{child}/comm").read_text().startswith("leadre history"):
                    return int(child)
    return 0
