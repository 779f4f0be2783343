"""Goals in the writer: days of bids, charges and clicks through a real ledger and log, kills, late and odd events."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

from leadre.data.bids import PRIOR_RATES
from leadre.serve.ipc.messages import AppendRequest, EraseRequest, EventRequest
from leadre.serve.paths import StatePaths
from leadre.serve.processes.writer_state import WriterState
from leadre.types import Goal

from ..alone import Alone, banner_request, pacing_of, urls_of
from ..bidding.test_respond import offer

CLICK = 10**9
CTR = PRIOR_RATES["cpc"]
CPC = {"bid_nanos": 50_000_000, "goal": Goal(kind="cpc", target_nanos=CLICK)}
ROAS = {"bid_nanos": 50_000_000, "goal": Goal(kind="roas", target_return=4.0, conversion_nanos=40 * CLICK)}


class Market:
    """Requests to one bidder whose writer tracks the goal of the campaign of ad ``a``."""

    def __init__(self, folder, **terms):
        self.alone = Alone(folder)
        offer(self.alone, "a", **terms)
        self.alone.put_list("*", "a")
        self.alone.renew()

    def wait(self, seconds=61):
        self.alone.clock.wall_us += seconds * 1_000_000
        self.alone.clock.elapsed_s += max(seconds, 0)
        self.alone.renew()

    def request(self, **fields):
        """The rendered bid of a request, which the log gets; None without one."""
        return next(iter(self.alone.bid_logged(**fields).rendered), None)

    def post(self, rendered, kind, url_kind="", **fields):
        request = event_of(self.alone, rendered, kind, url_kind, **fields)
        return self.alone.writer.handle([request], self.alone.clock.wall_us)[0].outcome

    def convert(self, rendered, value_nanos, event_id=""):
        """A conversion: of the page, or with ``event_id`` of the advertiser's server."""
        assert self.post(rendered, "conv", "imp", value_nanos=value_nanos, event_id=event_id) == "new"

    @property
    def pacing(self):
        (campaign,) = pacing_of(self.alone.writer, self.alone.clock.wall_us)
        return campaign

    @property
    def goal(self):
        return self.pacing.goal


def event_of(alone, rendered, kind, url_kind="", **fields):
    """An event of a bid; ``url_kind``: whose token it has, if it is another's."""
    token = re.search(r"[?&]t=([^&]+)", urls_of(rendered)[url_kind or kind])[1]
    return EventRequest(kind=kind, token=token, at_us=alone.clock.wall_us, token_kind=url_kind or None, **fields)


@pytest.fixture
def market(tmp_path):
    markets = []

    def open_market(**terms):
        markets.append(Market(tmp_path / f"state{len(markets)}", **terms))
        return markets[-1]

    yield open_market
    for opened in markets:
        opened.alone.__exit__()


def test_new_goal_bids_a_little_above_its_value(market):
    market = market(**CPC)
    assert market.pacing.multiplier == pytest.approx(1.1)
    assert market.request().bid.price_nanos == pytest.approx(1.1 * CTR * CLICK, rel=1e-6)
    assert (market.pacing.budget_nanos, market.goal.actions, market.goal.cost_nanos) == (0, 0, 0)


def test_impressions_charges_and_clicks_are_counted_once(market):
    market = market(**CPC)
    shown, lost, silent = (market.request() for _ in range(3))
    assert market.post(shown, "bill", price_nanos=4_000_000) == "new"
    for kind in ("imp", "click"):
        assert market.post(shown, kind) == "new" and market.post(shown, kind) == "known"
    assert market.post(shown, "bill", price_nanos=4_000_000) == "known"
    assert market.post(lost, "loss") == "new"
    market.wait()
    state = market.alone.writer._derived.pacing._goals.state("c-a")
    assert sum(predicted for _, predicted in state.shown_H) == pytest.approx(CTR)
    assert (market.goal.cost_nanos, market.goal.actions) == (4_000_000, 1)
    assert silent is not None


def test_target_is_kept_where_a_third_of_the_predicted_clicks_happen(market):
    """A request in two seconds. An impression is predicted to click in .5, and does in .17.

    Counts of the ad, by which it is priced, are held at the wrong rate, so that the goal alone must learn.
    """
    rng = np.random.default_rng(5)
    market = market(bid_nanos=10**10, goal=Goal(kind="cpc", target_nanos=CLICK))
    alone = market.alone
    counts = {"a": (10**9, 10**9 // 2, 0)}
    alone.renew(counts)
    paid = clicks = 0
    for _ in range(40):
        decided = [(request := banner_request(), alone.respond(request)) for _ in range(30)]
        records = [alone.record(request, decision) for request, decision in decided]
        alone.writer.handle([AppendRequest(records)], alone.clock.wall_us)
        events = []
        for _, decision in decided:
            (rendered,) = decision.rendered
            price_nanos = round(0.2 * CLICK * np.exp(rng.normal()))
            if rendered.bid.price_nanos >= price_nanos:
                events.append(event_of(alone, rendered, "bill", price_nanos=price_nanos))
                paid += price_nanos
                if rng.random() < 0.17:
                    events.append(event_of(alone, rendered, "click"))
                    clicks += 1
        alone.writer.handle(events, alone.clock.wall_us)
        alone.clock.wall_us += 61 * 1_000_000
        alone.renew(counts)
    assert (market.goal.cost_nanos, market.goal.actions) == (paid, clicks)
    assert market.goal.factors.correction == pytest.approx(0.34, abs=0.1)
    assert 0.75 < paid / clicks / CLICK < 1.25, (paid / clicks, clicks)


def test_goal_survives_a_kill_of_the_writer(market, tmp_path):
    """The snapshot and the log records behind it give the same state."""
    market = market(**CPC)
    for number in range(10):
        rendered = market.request()
        market.post(rendered, "bill", price_nanos=3_000_000)
        if number % 3 == 0:
            market.post(rendered, "click")
        market.wait()
    market.alone.writer._derived.save()
    rendered = market.request()
    market.post(rendered, "bill", price_nanos=3_000_000)
    market.post(rendered, "click")
    writer = market.alone.writer
    folder = shutil.copytree(market.alone.paths.folder, tmp_path / "killed")  # nothing was closed
    paths = StatePaths(folder=folder, store=f"lmdb:{folder / 'lists'}")
    again = WriterState(paths, retain_days=90, clock=market.alone.clock)
    try:
        assert again._derived.pacing._goals.state("c-a") == writer._derived.pacing._goals.state("c-a")
        market.alone.clock.wall_us += 61 * 1_000_000
        for state in (again, writer):
            state.maintain(market.alone.clock.wall_us)
        (campaign,) = pacing_of(again, market.alone.clock.wall_us)
        assert campaign.goal == market.goal
        assert market.goal.actions == 5
    finally:
        again.close()


def test_bill_of_a_bid_before_a_start_moves_no_dual(market):
    market = market(**CPC)
    rendered = market.request()
    goals = market.alone.writer._derived.pacing._goals
    goals._bids.clear()  # as after a start
    before = goals.state("c-a").return_dual
    market.post(rendered, "bill", price_nanos=5_000_000)
    market.wait()
    assert goals.state("c-a").return_dual == pytest.approx(before)
    assert market.goal.cost_nanos == 5_000_000


def test_pause_and_a_clock_set_back_keep_what_was_learned(market):
    market = market(**CPC)
    for _ in range(5):
        market.post(market.request(), "bill", price_nanos=1_000_000)
        market.wait()
    learned = market.goal
    market.alone.campaign_store.set_campaign_status("c-a", "paused")
    market.wait()
    assert market.request() is None
    assert (market.goal.cost_nanos, market.goal.factors.return_dual) == (5_000_000, learned.factors.return_dual)
    market.alone.campaign_store.set_campaign_status("c-a", "active")
    market.wait(-2 * 3_600)
    assert market.goal.factors.return_dual == learned.factors.return_dual
    assert market.goal.factors.correction == pytest.approx(1.0, abs=0.01)
    dual = learned.factors.return_dual
    market.post(market.request(), "bill", price_nanos=1_000_000)
    market.wait()
    assert market.goal.factors.return_dual < dual, "no clock stops the learning"


def test_another_target_keeps_the_state_and_another_kind_does_not(market):
    market = market(**CPC)
    rendered = market.request()
    market.post(rendered, "bill", price_nanos=1_000_000)
    market.wait()
    offer(market.alone, "a", **CPC | {"goal": Goal(kind="cpc", target_nanos=2 * CLICK)})
    market.wait()
    assert market.goal.cost_nanos == 1_000_000
    offer(market.alone, "a", **CPC | {"goal": Goal(kind="cpa", target_nanos=2 * CLICK)})
    market.wait()
    assert market.goal.cost_nanos == 0
    offer(market.alone, "a", bid_nanos=2_000_000, daily_nanos=10**9, plan="even")
    market.wait(2)
    assert market.goal is None and market.pacing.multiplier <= 1
    offer(market.alone, "a", bid_nanos=2_000_000)
    market.wait(2)
    assert pacing_of(market.alone.writer, market.alone.clock.wall_us) == []


def test_plan_and_goal_join_their_duals(market):
    market = market(**CPC, daily_nanos=10**9, plan="even")
    factors = market.goal.factors
    assert factors.budget_dual == pytest.approx(9.0), "a new plan begins at a tenth of the value"
    assert market.pacing.multiplier == pytest.approx((1 + 10) / (9 + 10))
    assert market.pacing.budget_nanos == 10**9


def test_value_of_a_page_counts_as_expected_and_that_of_a_server_as_sent(market):
    """Anyone who loads an ad could send the value of its conversion."""
    market = market(**ROAS)
    for number, (value, event_id) in enumerate(((10**13, ""), (80 * CLICK, "order-1"), (10**13, "order-2"))):
        rendered = market.request()
        market.post(rendered, "bill", price_nanos=1_000_000)
        market.convert(rendered, value, event_id)
        market.wait()
        assert market.goal.actions == number + 1
    state = market.alone.writer._derived.pacing._goals.state("c-a")
    assert state.actions == 1 + 2 + 10, "the highest counts as ten"
    assert market.goal.value_nanos == 40 * CLICK + 80 * CLICK + 10**13


def test_events_of_an_erased_user_count(market):
    market = market(**CPC)
    rendered = market.request(user={"id": "u"})
    market.post(rendered, "bill", price_nanos=1_000_000)
    market.alone.writer.handle([EraseRequest("u")], market.alone.clock.wall_us)
    market.post(rendered, "click")
    market.wait()
    assert (market.goal.cost_nanos, market.goal.actions) == (1_000_000, 1)
