"""`read` returns a Request or raises BadRequest for any bytes, and no response has a bid that a caller rejects."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import time
from fractions import Fraction
from pathlib import Path

import msgspec

from leadre.errors import BadRequest
from leadre.serve.protocol import openrtb
from leadre.serve.protocol.openrtb import MAX_NANOS, Rendered, read
from leadre.types import Bid

GOLDEN = [path.read_text() for path in sorted((Path(__file__).parents[2] / "golden/openrtb").glob("*.json"))]
MUTATIONS = int(os.environ.get("LEADRE_MUTATIONS", "2000"))  # 100000 to soak
RATES = {("EUR", "USD"): Fraction("1.1"), ("JPY", "USD"): Fraction("0.0067")}
ADM = "<img src='https://ads.example/e/imp?p=${AUCTION_PRICE}'>"

ODD = [None, True, 0, -1, 1, 2**31, 10**30, 1e308, -0.5, 3.0, "", "1", "é" * 300, "\x00", [], {}, [[]], [None]]
ODD += [["x"] * 5000, list(range(2000)), "x" * 60_000, "9" * 5000, {"id": "1"}, [{"id": "1"}], "1.2.3.4"]


def odd(rng):
    return copy.deepcopy(rng.choice(ODD))


def paths(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*path, key))


def mutated(rng):
    """A golden request after up to three changes to its tree and, every third time, some to its bytes."""
    tree = json.loads(rng.choice(GOLDEN))["request"]
    for _ in range(rng.randrange(4)):
        *above, last = rng.choice([path for path in paths(tree) if path] or [("id",)])
        tree = tree or {"id": None}
        node = tree
        for key in above:
            node = node[key]
        change = rng.randrange(4)
        if change == 0:
            del node[last]
        elif change == 1 and isinstance(node, dict):
            node[rng.choice(["id", "ext", "banner", "format", "consent", "gdpr", "cur", "zz"])] = odd(rng)
        elif change == 2 and isinstance(node, list) and len(node) < 100:  # the app caps bodies, not the lists in them
            node *= rng.choice([2, 60])
        else:
            node[last] = odd(rng)
    body = bytearray(json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode())
    for _ in range(rng.choice([0, 0, 1]) * rng.randrange(1, 4)):
        at = rng.randrange(len(body))
        change = rng.randrange(4)
        if change == 0:
            body[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            del body[at : at + rng.randrange(1, 40)]
            body.append(ord(" "))
        elif change == 2:
            body[at:at] = rng.choice([b"\xff", b"\x00", b'"', b"\\ud800", b"[" * 5000, b"1e400", b"NaN", b"-", b"{"])
        else:
            del body[at + 1 :]
    return bytes(body)


def test_every_mutated_request_is_read_or_refused_in_time_and_answered_acceptably():
    rng = random.Random(0)
    worst_s, read_whole, bids_sent = 0.0, 0, 0
    for _ in range(MUTATIONS):
        body = mutated(rng)
        started_s = time.thread_time()
        try:
            request = read(body)
        except BadRequest:
            request = None
        worst_s = max(worst_s, time.thread_time() - started_s)
        if request is not None:
            read_whole += 1
            check(request)
            bids_sent += check_response(request, rng)
    assert worst_s < 0.1
    assert MUTATIONS * 0.2 < read_whole < MUTATIONS * 0.9, "too many or too few mutations leave a request whole"
    assert bids_sent > read_whole / 2


def check(request):
    """Assert the properties of a Request that its readers rely on."""
    assert request.request_id and request.tmax_ms >= 0 and request.currencies
    for imp in request.imps:
        assert imp.imp_id and 0 <= imp.floor_nanos <= MAX_NANOS and type(imp.floor_nanos) is int
        assert all(width > 0 < height for width, height in imp.sizes)
    msgspec.json.encode(request)  # every text is Unicode, every number is one that can be written


def check_response(request, rng):
    """The number of bids in a response, after the five checks of Prebid Server."""
    names = [imp.imp_id for imp in request.imps] + ["", "other"]
    bids = [
        Bid(
            bid_id=rng.choice(["b1", "b2", ""]),
            imp_id=rng.choice(names),
            ad_id=rng.choice(["ad-1", "ad-2", "ad-3", ""]),
            campaign_id="c-1",
            advertiser_id="adv-1",
            price_nanos=rng.choice([-1, 0, 1, 999_999, 10**12]),
            currency=rng.choice(["USD", "EUR", "JPY"]),
            size=(300, 250),
            source="stored",
            propensity=0.5,
        )
        for _ in range(12)
    ]
    settings = {"seat": "leadre", "rates": rng.choice([{}, RATES]), "fills_macros": rng.random() < 0.5}
    answer = json.loads(openrtb.write(request, [Rendered(bid=bid, adm=ADM) for bid in bids], **settings))
    sent = [bid for seat in answer.get("seatbid", ()) for bid in seat["bid"]]
    for bid in sent:
        assert bid["id"] and bid["impid"], "no ID"
        assert math.isfinite(bid["price"]) and bid["price"] >= 0, "a negative price"
        assert bid["price"] > 0 or bid.get("dealid"), "a price of 0 without a deal"
        assert bid["crid"], "no creative ID"
        assert answer["cur"] in request.currencies, "a currency that was not asked for"
        assert bid["impid"] in names[:-2], "an imp that was not asked for"
    return len(sent)
