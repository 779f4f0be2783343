"""Parity: a replay of the log of a bidder with several processes gives the same decisions, to the last digit."""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import polars as pl
import pytest

from leadre.__main__ import main
from leadre.serve.events import event_log
from leadre.serve.events.records import RequestRecord
from leadre.store.contract import Profile, ProfileEvent, StoredList
from leadre.types import Verdict

from ...serve.bidder import Bidder, bid_request, bids_in, event_urls, until

OPTIONS = "[serve]\nexploration = 0.3\n"
LISTED, PROFILED, USERS = 20, 30, 40  # users with a list; the next ones have a history alone, the last ones nothing


@pytest.mark.slow
def test_replay_repeats_the_logged_decisions(work, tmp_path, capsys):
    log_and_replay(work, tmp_path, requests=200)
    state = tmp_path / "state"
    report, status = replayed(work, state, tmp_path, "--generate", "false", options="")
    assert status == 0 and report["skipped"] == {"options": 200} and report["compared"] == 0
    (state / "draws.key").write_text("00" * 32)
    report, status = replayed(work, state, tmp_path, "--generate", "false")
    assert status == 2 and "have another response than logged" in capsys.readouterr().err
    assert report["skipped"]["model"] and report["differences"]
    differences = pl.read_csv(work / "served" / "evaluate-replay" / "differences.csv")
    assert {"winner", "price", "verdicts", "propensity"} <= set(differences["what"]) and "scores" not in differences[
        "what"
    ]


@pytest.mark.soak
def test_ten_thousand_requests_replay(work, tmp_path):
    log_and_replay(work, tmp_path, requests=10_000)


def every_worker_has_a_model(bidder):
    """Whether 30 new connections, which any worker may take, find the model connected."""
    return not any("model" in httpx.get(f"{bidder.url}/readyz").json()["away"] for _ in range(30))


def new_ads_have_ids(bidder):
    """Whether the model server has embedded new ads, and none in the last seconds: each one changes its version."""
    before = bidder.said().count("embedding, distinct texts")
    time.sleep(4.0)
    return 0 < before == bidder.said().count("embedding, distinct texts")


def log_and_replay(work, tmp_path, requests):
    """Let a bidder answer and count, and see that each request is answered alike but those that a deadline cut."""
    callers = tmp_path / "state" / "callers.toml"  # a bid is shaded for a named caller alone
    callers.parent.mkdir()
    callers.write_text('[exchange]\naddresses = ["127.0.0.1"]\nmax_open_money = 1e6\n')
    with Bidder(work, tmp_path / "state", "--workers", "2", "--exploration", "0.3") as bidder:
        prepare(bidder, work)
        until(lambda: every_worker_has_a_model(bidder), "a language model")
        until(lambda: new_ads_have_ids(bidder), "IDs of the new ads")
        traffic(bidder, requests)
        until(lambda: len(answered(bidder.state)) == requests, "logged")
        report, status = replayed(work, bidder.state, tmp_path)
    assert status == 0, report
    assert report["logged"] == requests and set(report["skipped"]) <= {"late"}, report
    assert report["alike"] == report["compared"] >= 0.9 * requests
    assert max(report["gaps"].values()) < 1e-5
    assert min(report["sources"][name] for name in ("stored", "generated", "contextual")) >= requests // 50
    verdicts = {verdict for record in answered(bidder.state) for row in record.verdicts.values() for verdict in row}
    expected = {
        Verdict.BID,
        Verdict.NOT_SELECTED,
        Verdict.OUTRANKED,
        Verdict.INELIGIBLE,
        Verdict.BELOW_FLOOR,
        Verdict.PACED,
        Verdict.NO_BUDGET,
        Verdict.FREQUENCY_CAP,
        Verdict.DUPLICATE,
    }
    assert any(bid.price_propensity for record in answered(bidder.state) for bid in record.bids)
    assert expected <= verdicts, "the traffic must meet every way in which a bid fails"


def prepare(bidder, work):
    """Campaigns of every kind beside those of the market, lists, histories."""
    rich = bidder.campaign(bid_nanos=9_000_000, cap_per_day=2, shading=True)[1]
    poor = bidder.campaign(bid_nanos=8_000_000, total_nanos=40_000_000)[1]
    click = bidder.campaign(bid_type="cpc", bid_nanos=900_000_000)[1]
    sale = bidder.campaign(bid_type="cpa", bid_nanos=9_000_000_000)[1]
    paced = bidder.campaign(bid_nanos=8_500_000, daily_nanos=10**9, plan="even", shading=True)[1]
    aims = bidder.campaign(bid_nanos=9_500_000, goal={"kind": "cpc", "target_nanos": 10**9})[1]
    thrown = bidder.campaign(bid_nanos=8_600_000, daily_nanos=10**9, plan="even", pacer="throttle")[1]
    local = bidder.campaign(bid_nanos=7_000_000, targeting={"sites": ["local.example"]})[1]
    usual = pl.read_parquet(work / "served" / "data" / "ads.parquet")["ad_id"].to_list()
    objects = pl.read_parquet(work / "served" / "data" / "ads.parquet")["object_id"].to_list()
    store = bidder.store()
    rng = random.Random(2)
    version = store.versions().current
    for number in range(LISTED):
        ads = [rich, poor, click, sale, local, paced, aims, thrown, *rng.sample(usual, 30)]
        rng.shuffle(ads)
        log_p = tuple(-0.1 * place for place, _ in enumerate(ads))
        store.put_lists(version, {f"u{number}": StoredList(version, 1, tuple(ads), log_p)})
    for number in range(LISTED, PROFILED):
        seen = tuple(ProfileEvent(rng.choice(objects), 1_000_000 * n, "ad") for n in range(1, 9))
        store.write_profiles(Profile(f"u{number}", seen, (), 9_000_000))
    store.close()
    time.sleep(1.0)  # all workers have the catalogue


def traffic(bidder, requests):
    """Requests of all sorts, some of whose ads are seen, clicked, bought, while others are asked for."""
    rng = random.Random(1)
    requests_sent = [ask(rng, number) for number in range(requests)]

    def send(number):
        bids = bids_in(bidder.http.post(f"{bidder.url}/openrtb2/bid", json=requests_sent[number]))
        for bid in bids[: 1 if number % 3 else 0]:
            urls = event_urls(bid)
            for kind in ("imp", "bill", "click")[: 3 if number % 2 else 2]:
                until(lambda url=urls[kind]: bidder.http.get(url).status_code in (200, 204, 302), "taken")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(send, range(requests)))


def ask(rng, number):
    """One request: users of every sort, floors, sizes, places, blocks, refusals, tests."""
    places = [
        {
            "id": str(n),
            "banner": {"w": 300, "h": 250},
            "bidfloor": rng.choice([0, 0, 0.5, 1.9, 5]),
            "bidfloorcur": "USD",
        }
        for n in range(rng.choice([1, 1, 2, 3]))
    ]
    fields = {"id": f"asked-{number}", "imp": places, "user": {"id": f"u{rng.randrange(USERS)}"}, "tmax": 5000}
    fields["at"] = number % 2 + 1
    fields |= {
        "cur": rng.choice([["USD"], ["EUR", "USD"]]),
        "site": {"domain": rng.choice(["a.example", "local.example"])},
    }
    fields |= rng.choice([{}] * 7 + [{"test": 1}, {"badv": ["example.com"]}, {"regs": {"gdpr": 1}}])
    return bid_request(**fields)


def answered(state):
    return [entry.record for entry in event_log.read(state / "events") if isinstance(entry.record, RequestRecord)]


def replayed(work, state, folder, *flags, options=OPTIONS):
    """(replay.json, status) of the verb; it may run beside the bidder."""
    (folder / "replay.toml").write_text(options)
    verb = ["evaluate", "replay", "--config", str(folder / "replay.toml"), *flags]
    status = main([*verb, "--work", str(work), "--run", "served", "--state", str(state)])
    report = json.loads((work / "served" / "evaluate-replay" / "replay.json").read_text())
    return report, status
