"""No response has a bid that Prebid Server would reject, for mutated requests and odd catalogues."""

from __future__ import annotations

import json
import math
import random

import pytest

from leadre.errors import BadRequest
from leadre.serve.protocol import openrtb
from leadre.types import Targeting

from .alone import Alone
from .conftest import make_ad, make_campaign
from .protocol.test_openrtb_mutated import mutated

USERS = ["", "u0", "u1", "u2", "é" * 9]
SIZES = [(300, 250), (728, 90), (1, 1)]


def maybe(rng, *values):
    return rng.choice(values)


def plausible(rng):
    """A well-formed request with odd values."""
    imps = []
    for name in rng.sample(["1", "0", "é", "x" * 300, " ", "a/b", "null"], rng.randint(1, 4)):
        width, height = rng.choice(SIZES)
        imp = {"id": name, "banner": {"format": [{"w": width, "h": height}]}, "secure": rng.randint(0, 1)}
        imp |= maybe(rng, {}, {}, {"bidfloor": rng.choice([0, -1, 1e-9, 0.5, 2.0, 2.0000001, 1e300])})
        imp |= maybe(rng, {}, {}, {"bidfloorcur": rng.choice(["USD", "eur", "JPY", ""])})
        imp |= maybe(rng, {}, {}, {}, {"pmp": {"private_auction": rng.randint(0, 1), "deals": [{"id": "d"}]}})
        imps.append(imp)
    request = {"id": rng.choice(["r", "é", "x" * 900]), "imp": imps, "user": {"id": rng.choice(USERS)}}
    request |= maybe(
        rng, {}, {"cur": rng.choice([[], ["USD"], ["EUR"], ["eur", "USD"], ["JPY"], ["usd"], ["", "USD"]])}
    )
    request |= maybe(
        rng, {}, {}, {"regs": {"coppa": 1}}, {"regs": {"ext": {"dsa": {"dsarequired": rng.randint(0, 3)}}}}
    )
    request |= maybe(rng, {}, {}, {"test": 1}, {"wseat": ["leadre"]}, {"badv": ["odd.test"]}, {"bcat": ["IAB7"]})
    return json.dumps(request).encode()


@pytest.fixture
def alone(tmp_path):
    """Prices from nothing to absurd in two currencies, capped, budgeted and targeted campaigns, IDs of all kinds."""
    with Alone(tmp_path / "state", seed=3, exploration=0.3) as alone:
        names = ["a", "0", "ä 1", "a?b&c", "x" * 120, "<b>", "plain"]
        terms = [{"bid_nanos": price} for price in (0, 1, 999, 2_000_000, 9 * 10**15)]
        terms += [{"currency": "EUR"}, {"bid_type": "cpc", "bid_nanos": 3}, {"bid_type": "cpa", "bid_nanos": 10**12}]
        terms += [{"cap_per_day": 3}, {"daily_nanos": 50_000_000}, {"targeting": Targeting(hours=frozenset({12}))}]
        ad_ids = []
        for number, fields in enumerate(terms):
            alone.campaign_store.put_campaign(make_campaign(f"c{number}", **fields))
            for name in names[number % 3 :: 3]:
                ad_ids.append(f"{name}{number}")
                odd = {"adomain": "odd.test"} if number % 2 else {"iab_categories": ("IAB7-1",)}
                odd |= {"sizes": (SIZES[number % 3],) if number % 4 else (), "title": "<${AUCTION_ID}"}
                alone.campaign_store.put_ad(make_ad(ad_ids[-1], campaign_id=f"c{number}", **odd))
        rng = random.Random(4)
        for user in ("*", *filter(None, USERS)):
            rng.shuffle(ad_ids)
            alone.put_list(user, *ad_ids[:12])
        alone.renew()
        yield alone


def currencies(body, request):
    """Currencies that a request accepts, from its bytes if a strict parser reads them."""
    try:
        return {code.upper() for code in json.loads(body).get("cur") or []} or {"USD"}
    except ValueError:  # bytes that are no UTF-8, in a field that is not read
        return set(request.currencies)


def check(body, request, content):
    """The bids of a response, each after the checks of Prebid Server, from the bytes on the wire."""
    response = json.loads(content)
    accepted = currencies(body, request)
    bids = [bid for seat in response.get("seatbid", ()) for bid in seat["bid"]]
    assert response["id"] == request.request_id
    for bid in bids:
        assert isinstance(bid["id"], str) and bid["id"], "no ID"
        assert bid["impid"] in [imp.imp_id for imp in request.imps] and bid["impid"], "no imp of the request"
        assert math.isfinite(bid["price"]) and bid["price"] >= 0, "a negative price"
        assert bid["price"] > 0 or bid.get("dealid"), "a price of 0 without a deal"
        assert isinstance(bid["crid"], str) and bid["crid"], "no creative ID"
        assert (response.get("cur") or "USD") in accepted, "a currency that was not in the request"
    assert len({bid["id"] for bid in bids}) == len({bid["impid"] for bid in bids}) == len(bids)
    return bids


@pytest.mark.parametrize("count", [600, pytest.param(100_000, marks=pytest.mark.soak)])
def test_no_bid_is_one_that_prebid_server_rejects(alone, count):
    rng = random.Random(count)
    refused = 0
    sent = 0
    for number in range(count):
        if number % 200 == 199:
            alone.clock.wall_us += 60_000_000
            alone.renew()
        body = mutated(rng) if number % 3 == 0 else plausible(rng)
        try:
            request = openrtb.read(body)
        except BadRequest:
            refused += 1
            continue
        decision = alone.respond(request)
        if decision.reason is None:
            content = openrtb.write(request, decision.rendered, seat="leadre", fills_macros=rng.random() < 0.5)
            bids = check(body, request, content)
            assert len(bids) == len(decision.rendered), "a bid was reserved and not sent"
            sent += len(bids)
        else:
            status, content = openrtb.no_bid(request, decision.reason, is_debug=rng.random() < 0.5)
            assert (status, content) == (204, b"") or check(body, request, content) == []
    assert count * 0.05 < refused < count * 0.3 and sent > count / 2, (refused, sent)
