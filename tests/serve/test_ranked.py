"""A bidder with a ranker, as its operator runs it: published at the start, replaced and rolled back in service."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import httpx
import pytest

from leadre import artifact
from leadre.serve.events import event_log
from leadre.serve.events.records import RequestRecord
from leadre.serve.rankers.published import PublishedRankers
from leadre.store.contract import Profile, ProfileEvent

from .bidder import Bidder, until


def command(bidder, *words, check=True):
    """Run a command on the bidder's state; its stderr."""
    line = [sys.executable, "-m", "leadre", *words, "--work", str(bidder.work), "--run", "served"]
    done = subprocess.run(line, capture_output=True, text=True, env=bidder.environment(), check=False)
    assert (done.returncode == 0) is check, done.stderr
    return done.stderr


def records(bidder):
    entries = event_log.read(bidder.state / "events")
    return [entry.record for entry in entries if isinstance(entry.record, RequestRecord)]


def ranker_of(bidder):
    """The version of the ranker in the record of a new request."""
    before = len(records(bidder))
    bidder.ask(user={"id": "u"}, id=f"v{before}", tmax=5000)
    until(lambda: len(records(bidder)) > before, "logged")
    return records(bidder)[-1].versions.get("ranker", "none")


def status_page(bidder):
    """The part of the status page with the figures of now."""
    with httpx.Client(base_url=f"http://127.0.0.1:{bidder.manage_port}", timeout=30.0) as http:
        http.post("/status/login", data={"key": bidder.operator})
        return http.get("/status/now").text


@pytest.fixture(scope="module")
def ranked(ranked_work, tmp_path_factory):
    """A worker on a run with a ranker, and a user with a history."""
    state = tmp_path_factory.mktemp("ranked") / "state"
    with Bidder(ranked_work, state, "--generate", "false") as bidder:
        objects = json.loads((ranked_work / "served" / "rank-train" / "objects.json").read_text())
        store = bidder.store()
        events = tuple(ProfileEvent(objects[n % 4], 10**15 + n, "ad") for n in range(12))
        store.write_profiles(Profile("u", events, (), 10**15 + 20))
        store.close()
        yield bidder


def test_the_first_start_publishes_the_ranker_of_the_run(ranked):
    assert "prices ads" in ranked.said()
    assert ranker_of(ranked) != "none"
    record = records(ranked)[-1]
    scored = [score for score in record.scores if score is not None]
    assert scored and all(0 < score < 1 for score in scored) and len(record.scores) == len(record.candidates)
    assert record.ranked.event == "conversion" and record.ranked.is_price
    assert record.versions["events"] == "12"
    assert "ranker" not in httpx.get(f"{ranked.url}/readyz").json()["away"]


def test_replay_repeats_ranked_decisions(ranked, tmp_path):
    ranker_of(ranked)
    config = tmp_path / "replay.toml"
    config.write_text(f"[serve]\nexploration = 0\ngenerate = false\nstate = {json.dumps(str(ranked.state))}\n")
    command(ranked, "evaluate", "replay", "--generate", "false", "--config", str(config))
    report = json.loads((ranked.work / "served" / "evaluate-replay" / "replay.json").read_text())
    assert report["compared"] == report["alike"] > 0 and report["gaps"]["ranker"] < 1e-5


def test_another_ranker_is_published_and_rolled_back_without_a_restart(ranked, ranked_work):
    first = ranker_of(ranked)
    run = ranked_work / "served"
    trained = artifact.read(run / "rank-train", artifact.RANKER)
    with artifact.create(
        run / "rank-calibrate", kind=artifact.CALIBRATION, config={}, seed=1, parents=[trained]
    ) as temporary:
        (temporary / "calibration.json").write_text(json.dumps({"slope": 1.0, "intercept_S": [-1.0, -1.0]}))
    said = command(ranked, "serve", "ranker", "--state", str(ranked.state))
    second = said.split("serve: ranker ")[1].split()[0]
    assert second != first
    until(lambda: ranker_of(ranked) == second, "the new ranker")
    assert re.search(
        rf"<td>{second}</td></tr>\s*<tr><th scope=\"row\">published</th><td>[^<]+ ago", status_page(ranked)
    )
    assert f"before it {second}" in command(ranked, "serve", "ranker", "--state", str(ranked.state), "--to", "none")
    until(lambda: ranker_of(ranked) == "none", "no ranker")
    command(ranked, "serve", "ranker", "--state", str(ranked.state), "--rollback", "true")
    command(ranked, "serve", "ranker", "--state", str(ranked.state), "--rollback", "true")
    until(lambda: ranker_of(ranked) == first, "the ranker before")
    entries = [entry for entry in ranked.manage("GET", "/audit")["items"] if entry["kind"] == "ranker"]
    assert [entry["after"] for entry in entries] == [second, "none", second, first]


def test_a_backup_has_the_published_rankers(ranked, tmp_path):
    command(ranked, "serve", "backup", "--state", str(ranked.state), "--to", str(tmp_path / "backup"))
    rankers = PublishedRankers(tmp_path / "backup" / "state" / "rankers")
    assert rankers.load(rankers.current()) and rankers.current() == ranker_of(ranked)


def test_a_damaged_version_leaves_the_old_one_in_service(ranked):
    first = ranker_of(ranked)
    state = ranked.state / "rankers"
    (state / "current.json").write_text(json.dumps([first, "missing"]))
    until(lambda: "ranker" in httpx.get(f"{ranked.url}/readyz").json()["away"], "away")
    assert "is missing; publish a ranker or roll back" in status_page(ranked)
    assert ranker_of(ranked) == first
    assert f"bids go on with ranker {first}" in ranked.said() and "missing" in ranked.said()
    command(ranked, "serve", "ranker", "--state", str(ranked.state), "--to", first)
    until(lambda: "ranker" not in httpx.get(f"{ranked.url}/readyz").json()["away"], "back")
