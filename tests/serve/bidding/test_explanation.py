"""Explanations of logged requests: names, prices and values of the candidates, from the catalogue of now."""

from __future__ import annotations

import dataclasses
import math

import msgspec
import pytest

from leadre.serve.bidding.account_explanation import of_account
from leadre.serve.bidding.explanation import UNITS, explain
from leadre.serve.events.records import without_user
from leadre.types import Verdict

from ..alone import IMP, Alone, banner_request
from ..conftest import make_ad, make_campaign


@pytest.fixture
def alone(tmp_path):
    """Three ads with the CPMs 2, 3 and 1; the list of `known` has them in another order."""
    with Alone(tmp_path / "state") as alone:
        for name, cpm in (("tea", 2), ("shoes", 3), ("mug", 1)):
            alone.campaign_store.put_campaign(
                make_campaign(f"c-{name}", name=f"Sell {name}", advertiser_id=f"{name} Ltd", bid_nanos=cpm * 1_000_000)
            )
            alone.campaign_store.put_ad(
                make_ad(name, campaign_id=f"c-{name}", advertiser_id=f"{name} Ltd", title=name.title())
            )
        alone.put_list("known", "mug", "shoes", "tea", log_p=[math.log(0.1), math.log(0.2), math.log(0.5)])
        alone.renew()
        yield alone


def logged(alone, **fields):
    """The log record of a request of `known`."""
    request = banner_request(user={"id": "known"}, imp=[IMP | {"bidfloor": 1.5}], **fields)
    return alone.record(request, alone.respond(request))


def explained(alone, record):
    market = alone.bidder.market
    return explain(record, market.catalogue, market.expected_nanos_A, market.log_position)


def test_candidates_have_names_price_value_and_verdict_in_the_order_of_their_rank(alone):
    """.5 x 2 > .2 x 3 > .1 x 1, and a CPM of 1 is below the floor of 1.50."""
    explanation = explained(alone, logged(alone))
    rows = [
        (candidate.title, candidate.campaign, candidate.price_cpm, candidate.verdicts)
        for candidate in explanation.candidates
    ]
    assert rows == [
        ("Tea", "Sell tea", 2.0, {"1": Verdict.BID}),
        ("Shoes", "Sell shoes", 3.0, {"1": Verdict.OUTRANKED}),
        ("Mug", "Sell mug", 1.0, {"1": Verdict.BELOW_FLOOR}),
    ]
    assert [candidate.p for candidate in explanation.candidates] == pytest.approx([0.5, 0.2, 0.1])
    assert [candidate.value_nanos for candidate in explanation.candidates] == pytest.approx([1e6, 6e5, 1e5])
    (bid,) = explanation.bids
    assert (bid.title, bid.price_cpm, bid.price_nanos, bid.source) == ("Tea", 2.0, 2_000_000, "stored")
    assert explanation.prices_as_of == "bid"


def test_bid_keeps_its_logged_price_and_other_prices_are_of_now(alone):
    record = logged(alone)
    for name in ("tea", "shoes"):
        campaign = make_campaign(f"c-{name}", name=f"Sell {name}", advertiser_id=f"{name} Ltd", bid_nanos=9_000_000)
        alone.campaign_store.put_campaign(campaign)
    alone.renew()
    explanation = explained(alone, record)
    prices = {candidate.ad_id: candidate.price_cpm for candidate in explanation.candidates}
    assert prices == {"tea": 2.0, "shoes": 9.0, "mug": 1.0} and explanation.prices_as_of == "now"


def test_ad_that_the_catalogue_lacks_has_neither_names_nor_price(alone, tmp_path):
    record = logged(alone)
    with Alone(tmp_path / "other") as other:
        explanation = explained(other, record)
    tea, *others = explanation.candidates
    assert (tea.ad_id, tea.title, tea.price_nanos, tea.verdicts) == ("tea", "", 2_000_000, {"1": Verdict.BID})
    assert [(candidate.title, candidate.price_cpm, candidate.value_nanos) for candidate in others] == [
        ("", None, None)
    ] * 2


def test_explanation_of_an_erased_user_names_no_user(alone):
    record = logged(alone)
    assert explained(alone, record).user_id == "known"
    assert b"known" not in msgspec.json.encode(explained(alone, without_user(record)))


def test_units_describe_fields_of_the_explanation(alone):
    explanation = msgspec.to_builtins(explained(alone, logged(alone)))
    fields = {*explanation, *explanation["candidates"][0], *explanation["bids"][0]}
    assert UNITS.keys() <= fields and explanation["units"] == UNITS


def test_log_does_not_grow_by_explanations(alone):
    """Titles, prices of losers and campaigns are resolved when a request is explained."""
    encoded = msgspec.msgpack.encode(logged(alone))
    assert not [word for word in (b"Shoes", b"Sell shoes", b"shoes Ltd", b"c-shoes") if word in encoded]


def test_account_sees_its_own_candidates_and_bids_alone(alone):
    explanation = explained(alone, logged(alone))
    assert explanation.user_id == "known" and explanation.request
    shown = {name: of_account(explanation, f"{name} Ltd") for name in ("tea", "mug", "none")}
    assert shown["none"] is None, "to an account without a candidate the request is unknown"
    assert [candidate.ad_id for candidate in shown["tea"].candidates] == ["tea"]
    assert [bid.ad_id for bid in shown["tea"].bids] == ["tea"] and shown["mug"].bids == []
    (tea,) = shown["tea"].candidates
    assert (tea.p, tea.fit, tea.value_nanos, tea.price_nanos) == (None, None, None, 2_000_000)
    unknown = of_account(dataclasses.replace(explanation, has_user=False), "tea Ltd")
    assert unknown.candidates[0].p == pytest.approx(0.5), "of nobody in particular"
    private = {"user_id", "has_user", "placements", "versions", "request", "is_cut"}
    assert private == msgspec.to_builtins(explanation).keys() - msgspec.to_builtins(shown["tea"]).keys()
    text = msgspec.json.encode(shown["mug"]).decode().lower()
    assert not [word for word in ("tea", "shoes", "known") if word in text]
