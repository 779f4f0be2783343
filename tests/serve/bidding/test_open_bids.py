"""Budgets and frequency caps that a caller holds by requesting and not showing, with a real ledger and store."""

from __future__ import annotations

import dataclasses

import pytest

from leadre.serve.bidding.shade import Shading
from leadre.serve.callers.party import Bound, Party
from leadre.serve.ipc.messages import EventRequest, MarketShading
from leadre.serve.processes.worker import close_open_bid
from leadre.serve.protocol.openrtb import NoBid
from leadre.types import Verdict
from leadre.units import NANOS_PER_UNIT

from ..alone import Alone, chosen, urls_of, verdicts
from ..conftest import make_ad, make_campaign

PRICE_NANOS = 10_000_000  # a hundred impressions cost one unit


def party(name, **fields):
    usual = {"max_bids": 100_000, "max_nanos": 100 * NANOS_PER_UNIT} | fields
    return Party(name=name, bounds=(Bound(name, **usual),), share=name, cap_holder=name)


HONEST = party("honest")
HOSTILE = [party("hostile-1"), party("hostile-2")]


@pytest.fixture
def alone(tmp_path):
    with Alone(tmp_path / "state") as running:
        yield running


def campaign(alone, **fields):
    alone.campaign_store.put_campaign(make_campaign(bid_nanos=PRICE_NANOS, **fields))
    alone.campaign_store.put_ad(make_ad("a"))
    for user_id in ("*", "u"):
        alone.put_list(user_id, "a")
    alone.renew()


def token_of(url):
    return url.partition("?t=")[2].partition("&")[0]


def show(alone, decision):
    """Report the impression and the bill of a bid to the writer, and to the worker's open bids."""
    (rendered,) = decision.rendered
    urls = urls_of(rendered)
    bid = rendered.bid
    bill = EventRequest(
        kind="bill", token=token_of(urls["bill"]), at_us=alone.clock.wall_us, price_nanos=bid.price_nanos
    )
    assert alone.post_events(("imp", urls["imp"])) == ["new"]
    assert [reply.outcome for reply in alone.writer.handle([bill], alone.clock.wall_us)] == ["new"]
    until_us = alone.clock.wall_us + alone.bidder.settings.exp_s * 1_000_000
    alone.bidder.open_bids.close(HONEST.sender, bid.campaign_id, bid.currency, bid.price_nanos, until_us, is_shown=True)


def test_lost_bids_that_were_shaded_give_their_whole_room_back(alone):
    """A bid for clicks is open at its worth, and its price is below it; without a budget no lease has the sum."""
    campaign(alone, bid_type="cpc", shading=True)
    market = MarketShading(caller="honest", currency="USD", edges=[], breaks=[[0.0]], bids=[[0.0, 1.0]])
    alone.bidder.market = dataclasses.replace(alone.bidder.market, shading=Shading.of([market]))
    room_nanos = alone.bidder.open_bids.room_nanos(HONEST, "USD", alone.clock.wall_us)
    decisions = [alone.bid(at=1, party=HONEST) for _ in range(20)]
    assert any(bid.price_nanos < bid.worth_nanos for decision in decisions for bid in [decision.rendered[0].bid])
    for decision in decisions[1:]:
        token = alone.writer.token_keys.check(token_of(decision.rendered[0].lurl), "loss", alone.clock.wall_us)
        close_open_bid(alone.bidder.open_bids, "loss", token)
    worth_nanos = decisions[0].rendered[0].bid.worth_nanos
    left_nanos = alone.bidder.open_bids.room_nanos(HONEST, "USD", alone.clock.wall_us)
    assert left_nanos == room_nanos - worth_nanos, "one bid is open"


def test_three_requests_in_the_name_of_a_user_leave_the_frequency_cap_to_other_callers(alone):
    campaign(alone, cap_per_day=3)
    user = {"id": "u"}
    for hostile in HOSTILE:
        assert [chosen(alone.bid(party=hostile, user=user)) for _ in range(4)] == [["a"]] * 3 + [[]]
    decisions = [alone.bid(party=HONEST, user=user) for _ in range(4)]
    assert [chosen(decision) for decision in decisions] == [["a"]] * 3 + [[]]
    for decision in decisions[:3]:
        show(alone, decision)
    for sender in (HONEST, *HOSTILE):
        assert chosen(alone.bid(party=sender, user=user)) == [], "three were shown"


def test_hundred_unshown_requests_leave_a_budget_to_the_caller_that_shows(alone):
    """The campaign's budget pays a hundred impressions. The hostile callers send as often as the honest one."""
    campaign(alone, total_nanos=NANOS_PER_UNIT)
    shown = 0
    for _ in range(600):
        alone.clock.elapsed_s += 1
        alone.clock.wall_us += 1_000_000
        alone.writer.ledger.expire(alone.clock.wall_us)
        alone.renew()
        for hostile in HOSTILE:
            alone.bid(party=hostile)
        decision = alone.bid(party=HONEST)
        if decision.rendered:
            show(alone, decision)
            shown += 1
        if shown == 98:
            break
    assert shown == 98
    assert alone.writer.ledger.verify() == []


def test_caller_with_as_many_open_bids_as_it_may_have_gets_none(alone):
    campaign(alone)
    few = party("few", max_bids=2)
    cheap = party("cheap", max_nanos=2 * PRICE_NANOS)
    for sender in (few, cheap):
        assert [chosen(alone.bid(party=sender)) for _ in range(2)] == [["a"]] * 2
        decision = alone.bid(party=sender)
        assert decision.reason is NoBid.TOO_MANY_OPEN
        assert verdicts(alone, decision) == {"a": Verdict.OPEN_BIDS}
        assert chosen(alone.bid(party=sender, test=1)) == ["a"], "a test reserves nothing"
    assert chosen(alone.bid(party=HONEST)) == ["a"]
    alone.clock.wall_us += alone.bidder.settings.exp_s * 1_000_000
    assert chosen(alone.bid(party=few)) == ["a"], "its bids can no longer be shown"


def test_bid_of_a_caller_may_be_shown_for_its_own_time_and_costs_the_signed_price(alone):
    campaign(alone)
    short = Party(name="short", share="short", exp_s=30, sends_no_price=True)
    long = Party(name="long", share="long", exp_s=3600)
    for sender, exp_s in ((short, 30), (long, alone.bidder.settings.exp_s)):
        (rendered,) = alone.bid(party=sender).rendered
        assert rendered.exp_s == exp_s
        token = alone.writer.token_keys.check(token_of(rendered.burl), "bill", alone.clock.wall_us)
        assert token.bills_signed_price == sender.sends_no_price
        assert token.sender == sender.name
        assert token.shown_until_us == alone.clock.wall_us + exp_s * 1_000_000
