"""The users of runs/loop.sh, and the account of what they brought about.

    python clients/loop.py browse http://127.0.0.1:8180 asked.json --users 110 --rounds 20
    python clients/loop.py tell work/loop/state work/loop-next

User and ad carry numbers in their names. An ad's category is its number modulo 6, as in the synthetic market; a user
wants the category of their own number modulo 6, whatever they wanted in the logs. `browse` asks a bidder over HTTP and
writes down what happened; `tell` compares that with log, tables, lists and model, and fails where they disagree.
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
from urllib.parse import urlsplit

CATEGORIES = 6
CLICKS, STRAYS, BUYS, TWICE = 0.9, 0.05, 0.8, 0.1  # shares: of ads wanted, of others, of clicks, of reports
THREADS = 4
START_S, AGAIN_S = 300.0, 0.2
TOP = 10


def wants(user_id: str, ad_id: str) -> bool:
    """Whether the ad is of the category that the user wants now."""
    return int(user_id.rpartition("-")[2]) % CATEGORIES == int(ad_id.rpartition("-")[2]) % CATEGORIES


class User:
    """One user with a connection of their own."""

    def __init__(self, url: str, number: int, seed: int) -> None:
        self.user_id, self._rng = f"user-{number:05d}", random.Random(f"{seed}/{number}")
        self._http = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        self.did: Counter[str] = Counter()
        self.bought: list[tuple[str, str, int]] = []

    def visit(self, name: str) -> None:
        """Ask for an ad, look at it, perhaps click and buy."""
        asked = {
            "id": name,
            "imp": [{"id": "1", "banner": {"w": 300, "h": 250}}],
            "user": {"id": self.user_id},
            "site": {"domain": "news.example"},
            "tmax": 5000,
        }
        status, body = self._ask("POST", "/openrtb2/bid", json.dumps(asked))
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
            self._report("click", seen["click"])
            if self._rng.random() < BUYS:
                value_nanos = self._rng.randint(10, 90) * 10**9
                sold = seen["click"].replace("/e/click", "/e/conv") + f"&event_id={name}&value_nanos={value_nanos}"
                self._report("conv", sold)
                self.bought.append((self.user_id, bid["crid"], value_nanos))

    def _report(self, kind: str, path: str) -> None:
        for _ in range(2 if self._rng.random() < TWICE else 1):
            while (status := self._ask("GET", path)[0]) == 503:  # its disk is busy; to be sent again
                time.sleep(AGAIN_S)
            assert status in (200, 204, 302), (kind, status)
            self.did["reports"] += 1
        self.did[kind] += 1

    def _ask(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        self._http.request(method, path, body)
        answer = self._http.getresponse()
        return answer.status, answer.read()


def browse(url: str, out: Path, users: int, rounds: int, seed: int) -> None:
    """Every user asks once a round; what they did goes into ``out``."""
    _wait_for(url)
    everybody = [User(url, number, seed) for number in range(users)]
    with ThreadPoolExecutor(THREADS) as threads:
        for visit in range(rounds):
            list(threads.map(lambda user, visit=visit: user.visit(f"{seed}-{visit}-{user.user_id}"), everybody))
    did = sum((user.did for user in everybody), Counter())
    out.write_text(json.dumps({"did": did, "bought": [one for user in everybody for one in user.bought]}))
    _say(f"browse: {users} users, {dict(did)}")


def _wait_for(url: str) -> None:
    """Until writer and language model are there as well."""
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


def tell(state: Path, after: Path) -> None:
    """What changed with the run ``after``, read from what lies in the folders."""
    import polars as pl

    from leadre.serve.events import event_log
    from leadre.serve.events.records import EventRecord, RequestRecord
    from leadre.store import open_store

    first, second = (json.loads((state / name).read_text()) for name in ("asked.json", "asked-next.json"))
    records = [entry.record for entry in event_log.read(state / "events")]
    happened = [one for one in records if isinstance(one, EventRecord)]
    logged = Counter(one.outcome.kind for one in happened)
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
        "who bought what for how much, in the new tables", sorted(map(tuple, first["bought"])), sorted(rows), quiet=True
    )
    _same("bad rows in the new tables", 0, pl.read_parquet(after / "data" / "bad_rows.parquet").height)

    made = {step: json.loads((after / step / "meta.json").read_text()) for step in ("data", "tune-sft")}
    from leadre import artifact

    tables = artifact.read(after / "data", artifact.TABLES)
    _same("the new model was trained on the new tables", made["tune-sft"]["parents"]["data"], tables.hash, quiet=True)
    requests = pl.read_parquet(after / "data" / "requests.parquet")
    train = requests.filter(pl.col("split") == "train")["request_id"]
    count = learnt.filter((pl.col("action") == "conversion") & pl.col("request_id").is_in(train.to_list())).height
    _say(f"tell: of these conversions {count:,} are in its {len(train):,} training requests")

    store = open_store(f"lmdb:{state / 'lists'}")
    old, new = store.versions().history[-2:]
    shares = {version: _wanted(dict(store.scan(version))) for version in (old, new)}
    store.close()
    bought = {one.outcome.request_id for one in happened if one.outcome.kind == "conv"}
    answers = [one for one in records if isinstance(one, RequestRecord) and one.bids]
    later = [one for one in answers if one.caller_request_id.startswith("1-")]
    sources = Counter(one.bids[0].source for one in later)
    models = {one.versions["model"][:12] for one in later if "model" in one.versions}
    trained = artifact.read(after / "tune-sft", artifact.MODEL).hash[:12]
    _same("the lists that answered later", {new}, {one.versions["lists"] for one in later if "lists" in one.versions})
    _same("the models that answered later", models & {trained}, models)
    _say(f"tell: {len(later):,} bids of the new run: {dict(sources)}")
    for name, version in (("first", old), ("new", new)):
        mine = [one for one in answers if one.versions.get("lists") == version]
        rate = sum(one.request_id in bought for one in mine) / len(mine)
        _say(
            f"tell: {name} lists {version}: {shares[version]:.3f} of the best {TOP} are what users want now;"
            f" {rate:.3f} conversions a bid"
        )


def _wanted(lists: dict[str, Any]) -> float:
    """The share of the best ads of all lists that their users want."""
    pairs = [(user, ad) for user, one in lists.items() if user.startswith("user-") for ad in one.ad_ids[:TOP]]
    return sum(wants(user, ad) for user, ad in pairs) / len(pairs)


def _same(what: str, wanted: object, found: object, *, quiet: bool = False) -> None:
    if wanted != found:
        sys.exit(f"tell: {what}: {wanted} is not {found}")
    _say(f"tell: {what}: " + ("yes" if quiet else f"{found}"))


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    asking = verbs.add_parser("browse", help="ask a bidder, as its users")
    asking.add_argument("url")
    asking.add_argument("out", type=Path)
    asking.add_argument("--users", type=int, default=110)
    asking.add_argument("--rounds", type=int, default=20)
    asking.add_argument("--seed", type=int, default=0)
    telling = verbs.add_parser("tell", help="what changed, from the artifacts")
    for name in ("state", "after"):
        telling.add_argument(name, type=Path)
    given = vars(parser.parse_args())
    (browse if given.pop("verb") == "browse" else tell)(**given)


if __name__ == "__main__":
    main()
