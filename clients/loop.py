"""Simulated users of runs/loop.sh, and the check of their effect on the next model.

    python clients/loop.py browse http://127.0.0.1:8180 asked.json --users 110 --rounds 20
    python clients/loop.py verify work/loop/state work/loop-next

User and ad IDs end in numbers. The category of an ad is its number modulo 6, as in the synthetic market; a user wants
the category of their own number modulo 6, a preference that the logs do not contain. `browse` sends bid requests over
HTTP and records the events; `verify` compares them with log, tables, lists and model, and fails if they disagree.
"""

from __future__ import annotations

import argparse
import html
import http.client
import json
import random
import re
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

CATEGORIES = 6
CLICKS, STRAYS = 0.9, 0.05  # click rates of wanted ads and of others
BUYS = 0.8  # conversions a click
TWICE = 0.1  # share of events that are sent twice
THREADS = 4
START_S, AGAIN_S = 300.0, 0.2
TOP = 10


def wants(user_id: str, ad_id: str) -> bool:
    """True if the ad has the category that the user wants now."""
    return int(user_id.rpartition("-")[2]) % CATEGORIES == int(ad_id.rpartition("-")[2]) % CATEGORIES


class User:
    """One user with a connection of their own."""

    def __init__(self, url: str, number: int, seed: int) -> None:
        self.user_id = f"user-{number:05d}"
        self._seed = seed
        self._rng = random.Random(f"{seed}/{number}")
        self._http = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        self._redirected_to = ""
        self.did: Counter[str] = Counter()
        self.bought: list[tuple[str, str, int]] = []

    def visit(self, name: str) -> None:
        """Request an ad, report its impression, then click and buy at the rates above."""
        bid_request = {
            "id": name,
            "imp": [{"id": "1", "banner": {"w": 300, "h": 250}}],
            "user": {"id": self.user_id},
            "site": {"domain": _site(self._seed)},
            "tmax": 5000,
        }
        status, body = self._send("POST", "/openrtb2/bid", json.dumps(bid_request))
        assert status in (200, 204), status
        self.did["requests"] += 1
        if status == 204:
            return
        bid = json.loads(body)["seatbid"][0]["bid"][0]
        self.did["bids"] += 1
        urls = [html.unescape(url) for url in re.findall(r"https?://[^\"'\s<>)]+/e/[^\"'\s<>)]+", bid["adm"])]
        seen = {url.split("/e/")[1].split("?")[0]: "/e/" + url.split("/e/")[1] for url in urls}
        self._report("imp", seen["imp"])
        self._report("bill", "/e/" + bid["burl"].split("/e/")[1].replace("${AUCTION_PRICE}", str(bid["price"])))
        if self._rng.random() < (CLICKS if wants(self.user_id, bid["crid"]) else STRAYS):
            landing_url = self._report("click", seen["click"])
            if self._rng.random() < BUYS:
                value_nanos = self._rng.randint(10, 90) * 10**9
                click_id = parse_qs(urlsplit(landing_url).query)["leadre_click"][0]
                self._report("conv", f"/e/conv?t={click_id}&value_nanos={value_nanos}")
                self.bought.append((self.user_id, bid["crid"], value_nanos))

    def _report(self, kind: str, path: str) -> str:
        """Send an event. Returns the landing page to which a click is redirected, else ""."""
        landing_url = ""
        for _ in range(2 if self._rng.random() < TWICE else 1):
            while (status := self._send("GET", path)[0]) == 503:  # the writer's disk is busy: send the event again
                time.sleep(AGAIN_S)
            assert status in (200, 204, 302), (kind, status)
            self.did["reports"] += 1
            landing_url = self._redirected_to
        self.did[kind] += 1
        return landing_url

    def _send(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        self._http.request(method, path, body)
        reply = self._http.getresponse()
        self._redirected_to = reply.getheader("location", "")
        return reply.status, reply.read()


def browse(url: str, out: Path, users: int, rounds: int, seed: int) -> None:
    """Every user sends one request a round; the events are written to ``out``."""
    _wait_for(url)
    population = [User(url, number, seed) for number in range(users)]
    with ThreadPoolExecutor(THREADS) as threads:
        for visit in range(rounds):
            list(threads.map(lambda user, visit=visit: user.visit(f"{seed}-{visit}-{user.user_id}"), population))
    did = sum((user.did for user in population), Counter())
    bought = [conversion for user in population for conversion in user.bought]
    out.write_text(json.dumps({"did": did, "bought": bought}))
    _say(f"browse: {users} users, {dict(did)}")


def _site(seed: int) -> str:
    """The site of one `browse`, by which its requests are found in the log, where request IDs are hashes."""
    return f"news-{seed}.example"


def _wait_for(url: str) -> None:
    """Wait until writer and model server are ready too."""
    end_s = time.monotonic() + START_S
    while True:
        try:
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
            connection.request("GET", "/readyz")
            if not json.loads(connection.getresponse().read())["away"]:
                return
        except OSError:
            pass
        if time.monotonic() > end_s:
            sys.exit(f"{url}: not ready within {START_S:.0f} s; is `leadre serve` running?")
        time.sleep(0.2)


def verify(state: Path, after: Path) -> None:
    """Compare the users' events with the log of ``state`` and the artifacts of the run ``after``.

    Exits with an error at the first difference.
    """
    import polars as pl

    from leadre.serve.events import event_log
    from leadre.serve.events.records import EventRecord, RequestRecord
    from leadre.store import open_store

    first, second = (json.loads((state / name).read_text()) for name in ("asked.json", "asked-next.json"))
    records = [entry.record for entry in event_log.read(state / "events")]
    events = [record for record in records if isinstance(record, EventRecord)]
    logged = Counter(event.outcome.kind for event in events)
    sent = Counter(first["did"]) + Counter(second["did"])
    for kind in ("imp", "bill", "click", "conv"):
        _same(f"{kind} events sent, logged", sent[kind], logged[kind])
    actions = {"imp": "impression", "click": "click", "conv": "conversion"}
    learnt = pl.read_parquet(after / "data" / "events.parquet")
    for kind, action in actions.items():
        count = learnt.filter(pl.col("action") == action).height
        _same(f"{action}s of the first users sent, in the new tables", first["did"].get(kind, 0), count)
    columns = ("user_id", "item_id", "value_nanos")
    rows = learnt.filter(pl.col("action") == "conversion").select(columns).rows()
    _same(
        "users, ads and values of the conversions, in the new tables",
        sorted(map(tuple, first["bought"])),
        sorted(rows),
        quiet=True,
    )
    _same("bad rows in the new tables", 0, pl.read_parquet(after / "data" / "bad_rows.parquet").height)

    meta = json.loads((after / "tune-sft" / "meta.json").read_text())
    from leadre import artifact

    tables = artifact.read(after / "data", artifact.TABLES)
    _same("the new model was trained on the new tables", meta["parents"]["data"], tables.hash, quiet=True)
    requests = pl.read_parquet(after / "data" / "requests.parquet")
    train = requests.filter(pl.col("split") == "train")["request_id"]
    count = learnt.filter((pl.col("action") == "conversion") & pl.col("request_id").is_in(train.to_list())).height
    _say(f"verify: of these conversions {count:,} are in its {len(train):,} training requests")

    store = open_store(f"lmdb:{state / 'lists'}")
    old, new = store.versions().history[-2:]
    shares = {version: _wanted_share(dict(store.scan(version))) for version in (old, new)}
    store.close()
    bought = {event.outcome.request_id for event in events if event.outcome.kind == "conv"}
    answers = [record for record in records if isinstance(record, RequestRecord) and record.bids]
    later = [answer for answer in answers if answer.request.get("site") == _site(1)]
    sources = Counter(answer.bids[0].source for answer in later)
    models = {answer.versions["model"][:12] for answer in later if "model" in answer.versions}
    lists = {answer.versions["lists"] for answer in later if "lists" in answer.versions}
    trained = artifact.read(after / "tune-sft", artifact.MODEL).hash[:12]
    _same("the lists that answered later", {new}, lists)
    _same("the models that answered later", models & {trained}, models)
    _say(f"verify: {len(later):,} bids of the new run: {dict(sources)}")
    for name, version in (("first", old), ("new", new)):
        bids = [answer for answer in answers if answer.versions.get("lists") == version]
        rate = sum(answer.request_id in bought for answer in bids) / len(bids)
        _say(
            f"verify: {name} lists {version}: {shares[version]:.3f} of the first {TOP} ads are wanted now;"
            f" {rate:.3f} conversions a bid"
        )


def _wanted_share(lists: dict[str, Any]) -> float:
    """The share of wanted ads among the first ``TOP`` of all users' lists."""
    pairs = [(user, ad) for user, ads in lists.items() if user.startswith("user-") for ad in ads.ad_ids[:TOP]]
    return sum(wants(user, ad) for user, ad in pairs) / len(pairs)


def _same(label: str, expected: object, actual: object, *, quiet: bool = False) -> None:
    if expected != actual:
        sys.exit(f"verify: {label}: {actual}, not {expected}")
    _say(f"verify: {label}: " + ("yes" if quiet else f"{actual}"))


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    browsing = verbs.add_parser("browse", help="send bid requests and events, as simulated users")
    browsing.add_argument("url")
    browsing.add_argument("out", type=Path)
    browsing.add_argument("--users", type=int, default=110)
    browsing.add_argument("--rounds", type=int, default=20)
    browsing.add_argument("--seed", type=int, default=0)
    verifying = verbs.add_parser("verify", help="compare the events with log, tables, lists and model")
    for name in ("state", "after"):
        verifying.add_argument(name, type=Path)
    options = vars(parser.parse_args())
    (browse if options.pop("verb") == "browse" else verify)(**options)


if __name__ == "__main__":
    main()
