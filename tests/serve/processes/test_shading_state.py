"""Learning of shading in the writer: what each event teaches, a market that is found, and a kill."""

from __future__ import annotations

import random
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from leadre.serve.bidding.shade import Shading
from leadre.serve.events.records import EventRecord, RequestRecord
from leadre.serve.processes.event_reading import read
from leadre.serve.processes.shading_state import MIN_AUCTIONS, WAIT_S, ShadingState
from leadre.types import Bid, Outcome
from leadre.units import US_PER_S

from ..conftest import make_campaign

EXP_S = 120


def state(*, shading=True):
    catalogue = SimpleNamespace(campaigns=[make_campaign(shading=shading)])
    return ShadingState(SimpleNamespace(catalogue=catalogue), EXP_S)


def request(number, bid_nanos, *, at_us=0, worth_nanos=2_000_000, **fields):
    bid = Bid(
        bid_id=f"b{number}",
        imp_id="1",
        ad_id="a1",
        campaign_id="c1",
        advertiser_id="acme",
        price_nanos=bid_nanos,
        currency="USD",
        size=(300, 250),
        source="stored",
        propensity=1.0,
        worth_nanos=worth_nanos,
    )
    usual = {"request": {"is_first_price": True}, "caller": "exchange"}
    return RequestRecord(request_id=f"r{number}", at_us=at_us, bids=(bid,), **usual | fields)


def event(number, kind, **fields):
    outcome = Outcome(kind=kind, at_us=0, bid_id=f"b{number}", request_id="", ad_id="a1", campaign_id="c1")
    return EventRecord(key=f"{number}/{kind}", outcome=outcome, **fields)


def bounds(learner):
    """(low, high, won) of all auctions of the exchange."""
    auctions = learner._auctions["exchange", "USD"]
    return [(auction.low_nanos, auction.high_nanos, auction.is_won) for auction in auctions]


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("imp", {}, [(0, 500, True)]),
        ("bill", {}, [(0, 500, True)]),
        ("win", {"min_to_win_nanos": 400}, [(400, 400, True)]),
        ("loss", {}, [(500, 0, False)]),
        ("loss", {"loss_reason": 102, "min_to_win_nanos": 600}, [(600, 600, False)]),
        ("loss", {"min_to_win_nanos": 400}, [(500, 0, False)]),  # contradicts the loss
        ("win", {"min_to_win_nanos": 600}, [(0, 500, True)]),
        ("loss", {"loss_reason": 205}, []),  # the creative was refused
        ("click", {}, []),
    ],
)
def test_event_bounds_the_price(kind, fields, expected):
    learner = state()
    learner.add(request(1, 500))
    learner.add(event(1, kind, **fields))
    learner.add(event(1, "imp"))  # a bid teaches once
    if kind == "click":
        expected = [(0, 500, True)]
    assert bounds(learner) == expected


def test_bid_without_an_event_is_lost_at_its_end():
    learner = state()
    learner.add(request(1, 500))
    learner.tick((EXP_S + WAIT_S) * US_PER_S - 1)
    assert bounds(learner) == []
    learner.tick((EXP_S + WAIT_S) * US_PER_S)
    assert bounds(learner) == [(500, 0, False)]


@pytest.mark.parametrize(
    "fields", [{"request": {}}, {"is_test": True}, {"request": {"is_first_price": False}}, {"caller": ""}], ids=str
)
def test_other_auctions_teach_nothing(fields):
    learner = state()
    learner.add(request(1, 500, **fields))
    learner.add(event(1, "imp"))
    assert not learner._auctions


def test_nothing_is_learned_while_no_campaign_shades():
    learner = state(shading=False)
    learner.add(request(1, 500))
    learner.add(event(1, "imp"))
    assert not learner._auctions


def learned(feedback, auctions=1_500):
    """A learner of a market whose price is uniform in 200,000 to 800,000, for values of 2,000,000."""
    learner = state()
    generator = random.Random(1)
    for number in range(auctions):
        bid = round(generator.uniform(100_000, 2_000_000))
        price = round(generator.uniform(200_000, 800_000))
        learner.add(request(number, bid))
        report = {"min_to_win_nanos": price} if feedback == "prices" else {}
        learner.add(event(number, "win" if bid >= price else "loss", **report))
    learner.tick(0)
    return learner


@pytest.mark.parametrize("feedback", ["prices", "wins"])
def test_best_bid_of_a_market_is_found(feedback):
    """(v - b) (b - .2) / .6 is highest at .8 for v = 2, and at .5 for v = .8."""
    shading = Shading.of(learned(feedback).markets())

    def bid(paced):
        return shading.price(
            "exchange", "USD", worth_nanos=2_000_000, paced_nanos=paced, floor_nanos=1, draws=(0.99, 0.5)
        ).nanos

    assert bid(2_000_000) == pytest.approx(800_000, rel=0.15)
    assert bid(800_000) == pytest.approx(500_000, rel=0.2)


def test_few_auctions_are_no_market():
    assert learned("prices", MIN_AUCTIONS - 1).markets() == []
    assert len(learned("prices", MIN_AUCTIONS).markets()) == 1


def test_auctions_and_laws_survive_their_snapshot():
    learner = learned("prices", 400)
    again = state()
    again.restore(learner.snapshot())
    assert again.markets() == learner.markets(), "before the first tick"
    assert again._auctions == learner._auctions
    again = state()
    auctions = list(learner._auctions["exchange", "USD"])
    again.restore(msgspec.msgpack.encode([("exchange", "USD", auctions), ("", "USD", auctions)]))  # without laws
    again.tick(0)
    assert again.markets() == learner.markets()
    again = state()
    again.restore(b"of another release")
    assert again.markets() == []


def test_exchange_that_reports_high_prices_gets_at_most_the_value():
    learner = state()
    for number in range(400):
        learner.add(request(number, 1_000_000))
        learner.add(event(number, "loss", min_to_win_nanos=10**15))
    learner.tick(0)
    shading = Shading.of(learner.markets())
    for paced in (500_000, 2_000_000):
        price = shading.price(
            "exchange", "USD", worth_nanos=2_000_000, paced_nanos=paced, floor_nanos=1, draws=(0.99, 0.5)
        )
        assert price.nanos <= paced


def test_values_in_groups_have_laws_of_their_own():
    """Prices rise with the value: impressions of 4,000,000 cost 2,000,000, those of 1,000,000 cost 300,000."""
    learner = state()
    generator = np.random.default_rng(1)
    for number in range(2_000):
        worth, price = (4_000_000, 2_000_000) if number % 2 else (1_000_000, 300_000)
        bid = round(float(generator.uniform(0.05, 1.0)) * worth)
        learner.add(request(number, bid, worth_nanos=worth))
        learner.add(event(number, "win" if bid >= price else "loss", min_to_win_nanos=price))
    learner.tick(0)
    shading = Shading.of(learner.markets())
    for worth, price in ((4_000_000, 2_000_000), (1_000_000, 300_000)):
        nanos = shading.price(
            "exchange", "USD", worth_nanos=worth, paced_nanos=worth, floor_nanos=1, draws=(0.99, 0.5)
        ).nanos
        assert price <= nanos < 1.2 * price


def test_notices_report_price_to_win_and_reason(token_reader):
    loss = token_reader("loss", {"min": "0.6", "reason": "102"})
    assert (loss.min_to_win_nanos, loss.loss_reason) == (600_000, 102)
    unfilled = token_reader("loss", {"min": "${AUCTION_MIN_TO_WIN}", "reason": "${AUCTION_LOSS}"})
    assert (unfilled.min_to_win_nanos, unfilled.loss_reason) == (0, 0)
    assert token_reader("loss", {"min": "1e999", "reason": "9" * 30}).loss_reason == 0
    assert token_reader("win", {"price": "1", "min": "0.6"}).min_to_win_nanos == 600_000
    assert token_reader("imp", {"min": "0.6"}).min_to_win_nanos == 0


@pytest.fixture
def token_reader():
    from leadre.serve.events.tokens import TokenKeys

    from ..conftest import make_token

    keys = TokenKeys({1: bytes(32)})
    token = make_token(0, 1_000_000)

    def read_event(kind, query):
        catalogue = SimpleNamespace(row_of_campaign={})
        return read(kind, {"t": keys.encrypt(token, kind)} | query, keys, catalogue, 0)[1]

    return read_event
