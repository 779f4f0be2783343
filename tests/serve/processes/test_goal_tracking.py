"""Goals in the writer: days of bids, charges and clicks through a real ledger and log, kills, late and odd events."""

from __future__ import annotations

import re
import shutil

import msgspec
import numpy as np
import pytest

from leadre.auction.goal import START_DUAL
from leadre.data.bids import PRIOR_RATES
from leadre.serve.ipc.messages import AppendRequest, EraseRequest, EventRequest
from leadre.serve.paths import StatePaths
from leadre.serve.processes.open_money import OpenSums
from leadre.serve.processes.pacing_snapshot import EarlierGoalState
from leadre.serve.processes.writer_state import WriterState
from leadre.types import Goal

from ..alone import Alone, banner_request, pacing_of, urls_of
from ..bidding.test_respond import offer

CLICK = 10**9
CTR = PRIOR_RATES["cpc"]
CPC = {"bid_nanos": 50_000_000, "goal": Goal(kind="cpc", target_nanos=CLICK)}
CPA = {"bid_type": "cpc", "bid_nanos": CLICK, "goal": Goal(kind="cpa", target_nanos=5 * CLICK)}
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

    @property
    def state(self):
        return self.alone.writer._derived.pacing._goals.state("c-a")

    @property
    def shown(self):
        """Predicted actions of the impressions shown."""
        return sum(predicted for _, predicted in self.state.shown_N) + self.state.fresh[1]

    def kill(self, folder):
        """A writer that starts from the files as they are now: nothing was closed."""
        shutil.copytree(self.alone.paths.folder, folder)
        return WriterState(
            StatePaths(folder=folder, store=f"lmdb:{folder / 'lists'}"), retain_days=90, clock=self.alone.clock
        )


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
    assert market.shown == pytest.approx(CTR)
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
    again = market.kill(tmp_path / "killed")
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


def test_bids_that_are_open_at_a_start_teach_as_others_do(market, tmp_path):
    """A bid for clicks with a target per conversion: its impression and its charge come after the start."""
    market = market(**CPA)
    rendered = market.request()
    market.wait()
    market.alone.writer._derived.save()
    again = market.kill(tmp_path / "killed")
    events = [event_of(market.alone, rendered, kind) for kind in ("imp", "click")]
    try:
        for writer in (market.alone.writer, again):
            for event in events:
                assert writer.handle([event], market.alone.clock.wall_us)[0].outcome == "new"
        assert again._derived.pacing._goals.state("c-a") == market.state
        assert market.shown == pytest.approx(PRIOR_RATES["cpa"], rel=1e-6)
        assert (market.state.new_shown, market.state.new_nanos) == (market.shown, market.goal.cost_nanos)
        assert market.goal.cost_nanos > 0
    finally:
        again.close()


def test_goal_is_learned_again_from_the_log_without_a_snapshot(market, tmp_path):
    """Impressions of ten hours, without a click: a writer that reads them at once knows the same."""
    market = market(**CPC)
    counts = {"a": (10**9, 10**9 // 2, 0)}
    for _ in range(10):
        market.alone.renew(counts)
        market.post(market.request(), "bill", price_nanos=3_000_000)
        market.wait(3_600)
    market.alone.paths.counts.unlink(missing_ok=True)
    again = market.kill(tmp_path / "killed")
    try:
        again.maintain(market.alone.clock.wall_us)
        state = again._derived.pacing._goals.state("c-a")
        assert state.correction == pytest.approx(market.state.correction, rel=0.02)
        assert state.correction < 0.6 and state.cost_nanos == 30_000_000
    finally:
        again.close()


def test_impression_of_a_bid_for_impressions_counts_with_its_charge(market):
    """A page that sends the impression of a bid that is not billed looks like one for nothing."""
    market = market(**CPC)
    rendered = market.request()
    market.post(rendered, "imp")
    assert (market.shown, market.state.new_shown) == (0.0, 0.0)
    market.post(rendered, "bill", price_nanos=1_000_000)
    assert market.shown == pytest.approx(CTR)


@pytest.mark.parametrize("kinds", [("imp", "bill"), ("bill", "imp")])
def test_impression_of_a_bid_for_clicks_counts_once(market, kinds):
    market = market(**CPA)
    rendered = market.request()
    for kind in kinds:
        assert market.post(rendered, kind, price_nanos=1_000_000 if kind == "bill" else 0) == "new"
    assert market.shown == pytest.approx(PRIOR_RATES["cpa"], rel=1e-6)


def test_impression_after_a_loss_counts_as_its_click_does(market):
    market = market(**CPC)
    rendered = market.request()
    for kind in ("loss", "bill", "click"):
        assert market.post(rendered, kind, price_nanos=1_000_000 if kind == "bill" else 0) == "new"
    assert (market.shown, market.goal.actions, market.goal.cost_nanos) == (pytest.approx(CTR), 1, 1_000_000)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"bid_nanos": 2_000_000}, CPC),
        ({"bid_nanos": 50_000_000, "goal": Goal(kind="cpa", target_nanos=CLICK)}, CPC),
        (ROAS, ROAS | {"goal": Goal(kind="roas", target_return=4.0, conversion_nanos=20 * CLICK)}),
    ],
)
def test_actions_of_bids_from_before_the_goal_do_not_count(market, before, after):
    """Late ones of bids that had another goal or none, and their charges; then one of the goal's own."""
    kind, url_kind = ("conv", "imp") if after["goal"].kind == "roas" else ("click", "")
    market = market(**before)
    early = [market.request() for _ in range(21)]
    for rendered in early[:20]:
        market.post(rendered, "bill", price_nanos=1_000_000)
    market.wait()
    offer(market.alone, "a", **after)
    market.wait()
    for rendered in early[:20]:
        assert market.post(rendered, kind, url_kind) == "new"
    assert market.post(early[20], "bill", price_nanos=1_000_000) == "new"
    market.wait()
    assert (market.goal.actions, market.goal.cost_nanos) == (0, 0)
    assert market.goal.factors[:2] == (pytest.approx(1.0), START_DUAL)
    own = market.request()
    market.post(own, "bill", price_nanos=1_000_000)
    market.post(own, kind, url_kind)
    assert (market.goal.actions, market.goal.cost_nanos) == (1, 1_000_000)
    assert sum(market.state.actions_B) == 1


def test_goal_that_was_changed_and_changed_back_begins_without_a_past(market):
    """Between two looks of the writer at the catalogue."""
    market = market(**CPC)
    market.post(market.request(), "bill", price_nanos=1_000_000)
    market.wait()
    offer(market.alone, "a", bid_nanos=2_000_000)
    offer(market.alone, "a", **CPC)
    market.wait()
    assert (market.goal.cost_nanos, market.shown) == (0, 0.0)


def test_sale_that_page_and_server_report_is_one_action(market):
    """In any order; further sales of the click are none either: the target is for a click's conversion."""
    market = market(**CPA)
    for orders in (("", "order-1"), ("order-2", ""), ("order-3", "order-4"), ("", "order-5", "order-6")):
        rendered = market.request()
        market.post(rendered, "imp")
        before = market.goal.actions
        for order in orders:
            market.post(rendered, "conv", "imp", event_id=order)
        assert (market.goal.actions - before, sum(market.state.actions_B)) == (1, before + 1), orders


def test_value_of_the_server_replaces_that_of_the_page(market):
    """And a further sale of the click adds to it."""
    market = market(**ROAS)
    rendered = market.request()
    market.post(rendered, "bill", price_nanos=1_000_000)
    values = [("", 10**13, 1.0), ("order-1", 80 * CLICK, 2.0), ("order-2", 20 * CLICK, 2.5)]
    for order, value_nanos, total in values:
        market.convert(rendered, value_nanos, order)
        assert sum(market.state.actions_B) == total
        assert market.goal.value_nanos == total * 40 * CLICK
    assert market.goal.actions == 2


def test_snapshot_of_the_first_release_keeps_totals_dual_and_a_low_correction(market):
    """It forgot late actions wrongly, so that its correction is kept as far as it lowers bids."""
    market = market(**CPC)
    early = market.request()
    market.wait()
    earlier = EarlierGoalState("cpc", 0, 3.0, ((1, 40.0), (2, 60.0)), 100.0, 80.0, 7_000_000, 90, 0)
    paced = {"campaign_id": "c-a", "day": None, "traffic_Q": {}, "sums": OpenSums(), "goal": earlier}
    market.alone.writer._derived.pacing.restore(msgspec.msgpack.encode((market.alone.clock.wall_us, [paced])))
    market.wait()
    assert (market.goal.cost_nanos, market.goal.actions) == (7_000_000, 90)
    assert market.goal.factors.return_dual == 3.0
    assert market.goal.factors.correction == pytest.approx(0.4, abs=0.02)
    due = sum(market.state.actions_B)
    market.post(early, "click")
    assert (market.goal.actions, sum(market.state.actions_B)) == (91, due), "its impression is not known any more"


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
    assert sum(market.state.actions_B) == 1 + 2 + 10, "the highest counts as ten"
    assert market.goal.value_nanos == 40 * CLICK + 80 * CLICK + 10**13


def test_events_of_an_erased_user_count(market):
    market = market(**CPC)
    rendered = market.request(user={"id": "u"})
    market.post(rendered, "bill", price_nanos=1_000_000)
    market.alone.writer.handle([EraseRequest("u")], market.alone.clock.wall_us)
    market.post(rendered, "click")
    market.wait()
    assert (market.goal.cost_nanos, market.goal.actions) == (1_000_000, 1)
