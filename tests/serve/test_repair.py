"""Damaged files of a state folder: the start is refused in one line, and the guide's procedure repairs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from leadre.__main__ import main
from leadre.errors import InputError, StorageError
from leadre.serve import backup
from leadre.serve.events import event_log, records, table_position, training
from leadre.serve.events.erased import ErasedUsers
from leadre.serve.events.records import EventRecord
from leadre.serve.paths import StatePaths

from .bidder import Bidder, event_urls, until

FLAGS = ("--workers", "1", "--generate", "false")


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)
    return bytes(data)


def refused(bidder):
    """The line with which `leadre serve` refuses to start. AssertionError for any other end."""
    command = [sys.executable, "-m", "leadre", "serve", "--work", str(bidder.work), "--run", "served", *FLAGS]
    command += ["--state", str(bidder.state), "--port", str(bidder.port), "--manage-port", str(bidder.manage_port)]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120, env=bidder.environment())
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    (line,) = (line for line in ended.stderr.splitlines() if "the writer ends" in line)
    assert ended.stderr.splitlines()[-1] == line
    return line


@pytest.mark.slow
def test_damaged_log_is_refused_and_the_procedure_of_the_guide_repairs_it(work, tmp_path, capfd):
    with Bidder(work, tmp_path / "state", *FLAGS) as bidder:
        campaign_id, ad_id = bidder.campaign(total_nanos=10**12)
        bidder.list_for("u", ad_id)
        for _ in range(30):
            assert bidder.http.get(event_urls(bid_of(bidder, ad_id))["bill"]).status_code == 200
        charged = bidder.report(campaign_id)["charged_nanos"]
        assert charged == 30 * 2_000_000
        bidder.stop()
        (segment,) = event_log.segments(bidder.state / "events")
        data = segment.read_bytes()
        bills = [
            (frame, record)
            for frame in event_log.scan(data, 1)
            if isinstance(record := records.decode(event_log.body_of(data, frame)), EventRecord)
        ]
        lost = bills[10][0]
        damaged = flip(segment, lost.end - 5)
        line = refused(bidder)
        assert (
            f"{segment}: damaged at byte {lost.start}, record {lost.number}" in line and "leadre serve repair" in line
        )
        assert segment.read_bytes() == damaged
        paths = StatePaths(folder=bidder.state, store="")
        with pytest.raises(StorageError, match="leadre serve repair"):
            backup.write(paths, tmp_path / "backup")
        state = ["--work", str(work), "--run", "served", "--state", str(bidder.state)]
        capfd.readouterr()
        assert main(["serve", "repair", *state]) == 0
        said = capfd.readouterr().err
        assert f"1 records lost, {lost.number} to {lost.number}" in said and "the ledger has their charges" in said
        assert (bidder.state / "damaged" / segment.name).read_bytes() == damaged
        bidder.start()
        kept = {entry.number for entry in event_log.read(paths.events)}
        assert {frame.number for frame, _ in bills} - kept == {lost.number}
        assert bidder.report(campaign_id)["charged_nanos"] == charged, "the snapshot of the counts has the record"
        assert bidder.http.get(event_urls(bid_of(bidder, ad_id))["bill"]).status_code == 200


def bid_of(bidder, ad_id):
    """A bid with the ad for the user `u`, as soon as the worker has a lease for it."""
    bids = []
    until(lambda: bids.extend(bidder.bids(user={"id": "u"})) or (bids and bids[-1]["crid"] == ad_id), "a bid")
    return bids[-1]


def test_flipped_bit_in_the_file_of_erased_users_is_an_error_with_its_name(tmp_path):
    path = tmp_path / "erased"
    erased = ErasedUsers(path)
    erased.add("gone")
    size = path.stat().st_size
    whole = path.read_bytes()
    for offset in range(size - 1):
        flip(path, offset)
        with pytest.raises(InputError, match=f"{path}: wants a key and hashes"):
            ErasedUsers(path)
        path.write_bytes(whole)
    key, hashed, _ = whole.split(b"\n", 2)
    path.write_bytes(key + b"\n" + hashed + b"\n")  # of an earlier release
    assert "gone" in ErasedUsers(path) and "other" not in ErasedUsers(path)


@pytest.mark.parametrize("content", [b"", b"1q", b"1 2", b"-1", b"12 1 x", b"\xff"])
def test_damaged_position_of_the_tables_is_an_error_with_its_remedy(tmp_path, content):
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / table_position.POSITION).write_bytes(content)
    with pytest.raises(StorageError, match=rf"{folder / table_position.POSITION}: damaged .* delete {folder}:"):
        table_position.read(folder)


def test_damaged_table_is_an_error_with_its_remedy(tmp_path):
    folder = tmp_path / "tables"
    (folder / "events").mkdir(parents=True)
    (folder / "events" / "2026-01-01.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(StorageError, match=rf"2026-01-01.parquet: damaged .* delete {folder}:"):
        training.erase(folder, ["u"])
