"""Events as they are read from their URLs: prices that bill, prices that are refused, lateness, values, click IDs."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from leadre.serve.events import clicks
from leadre.serve.events.outcomes import CONVERSION_US
from leadre.serve.events.tokens import CLICK_US, TokenKeys
from leadre.serve.ipc.messages import EventRequest
from leadre.serve.processes.event_reading import Refusal, read

from ..conftest import make_ad, make_campaign, make_token

NOW_US = 1_790_000_000_000_000
KEYS = TokenKeys({1: bytes(32)})
BID_NANOS = 2_000_000  # a CPM of 2


@pytest.fixture
def catalogue(campaign_store, reader):
    from leadre.serve.catalogue import eligibility

    campaign_store.add([make_campaign(max_value_nanos=500)], [make_ad()])
    return eligibility.load(reader)


@pytest.fixture
def read_event(catalogue):
    """Read an event whose token is of the same kind, unless ``of`` names another."""

    def read_event(kind, at_us=NOW_US, *, of=None, post_view=False, terms=(), **query):
        token = make_token(NOW_US, BID_NANOS, **dict(terms))
        query = {"t": KEYS.encrypt(token, of or kind)} | query
        return read(kind, query, KEYS, catalogue, at_us, post_view=post_view)[1]

    return read_event


@pytest.mark.parametrize(
    ("price", "nanos"), [("1.5", 1_500_000), ("2", BID_NANOS), ("9", BID_NANOS), ("1e0", 1_000_000), ("0.000001", 1)]
)
def test_bill_costs_its_price_and_at_most_the_signed_one(read_event, price, nanos):
    assert read_event("bill", price=price).price_nanos == nanos
    assert read_event("win", price=price).price_nanos == nanos


@pytest.mark.parametrize(
    "price", ["0", "0.0", "-1", "nan", "inf", "1,5", "0x1", "1 ", "x", "1" * 13, "0.0000001", "\u0661"]
)
def test_price_that_cannot_be_billed_is_refused(read_event, price):
    assert read_event("bill", price=price) == Refusal("price", 400)
    assert read_event("bill", price=price, terms={"bills_signed_price": True}) == Refusal("price", 400)
    assert read_event("win", price=price).price_nanos == 0, "a notice of a win charges nothing"


@pytest.mark.parametrize("price", ["${AUCTION_PRICE}", "%24%7BAUCTION_PRICE%7D", "${AUCTION_PRICE:B64}", ""])
def test_bill_without_a_price_costs_the_signed_one_where_the_auction_has_no_other(read_event, price):
    assert read_event("bill", price=price) == Refusal("price", 400)
    assert read_event("bill", price=price, terms={"bills_signed_price": True}).price_nanos == BID_NANOS


@pytest.mark.parametrize("price", ["0.000001", "9", "0", "x", ""])
def test_price_in_a_bill_of_a_fixed_price_is_ignored(read_event, price):
    assert read_event("bill", price=price, terms={"has_fixed_price": True}).price_nanos == BID_NANOS


@pytest.mark.parametrize("terms", [{}, {"bills_signed_price": True}, {"has_fixed_price": True}], ids=str)
def test_audit_is_not_billed(read_event, terms):
    assert read_event("bill", price="AUDIT", terms=terms) == Refusal("audit", 204)


def test_event_is_late_after_its_own_time(read_event):
    end_us = make_token(NOW_US, 1).expires_at_us
    for kind in ("win", "bill", "loss", "imp", "view", "conv"):
        assert isinstance(read_event(kind, end_us, price="1"), EventRequest)
        assert read_event(kind, end_us + 1, price="1") == Refusal("late", 403)
    assert isinstance(read_event("click", end_us + CLICK_US), EventRequest)
    assert read_event("click", end_us + CLICK_US + 1) == Refusal("late", 403)


def test_late_click_still_leads_to_its_landing_page(catalogue):
    token = make_token(NOW_US, 1)
    query = {"t": KEYS.encrypt(token, "click")}
    assert read("click", query, KEYS, catalogue, NOW_US + CONVERSION_US) == (token, Refusal("late", 403))
    late_us = token.ends_at_us("click") + CONVERSION_US + 1
    assert read("click", query, KEYS, catalogue, late_us) == (None, Refusal("late", 403))


def test_token_of_another_kind_is_forged(read_event):
    for kind, of in (("conv", "click"), ("conv", "imp"), ("bill", "win"), ("click", "imp"), ("loss", "bill")):
        assert read_event(kind, of=of, price="1") == Refusal("forged", 403)


def test_conversion_without_a_click_is_a_setting(read_event):
    assert read_event("conv", of="imp", post_view=True).token_kind == "imp"
    end_us = make_token(NOW_US, 1).expires_at_us + CONVERSION_US
    assert isinstance(read_event("conv", end_us, of="imp", post_view=True), EventRequest)
    assert read_event("conv", end_us + 1, of="imp", post_view=True) == Refusal("late", 403)
    assert read_event("conv", of="bill", post_view=True) == Refusal("forged", 403)


@pytest.mark.parametrize(
    ("value", "nanos"), [("0", 0), ("7", 7), ("500", 500), ("501", 500), ("9" * 18, 500), ("9" * 19, 0), ("-1", 0)]
)
def test_value_of_a_conversion_is_bounded_by_its_campaign(read_event, value, nanos):
    assert read_event("conv", value_nanos=value).value_nanos == nanos
    assert read_event("conv", value_nanos=value, terms={"campaign_id": "unknown"}).value_nanos == 0


@pytest.mark.parametrize(
    ("landing", "expected"),
    [
        ("https://shop.example", "https://shop.example?leadre_click=ID"),
        ("https://shop.example/a?x=1&y=%20#top", "https://shop.example/a?x=1&y=%20&leadre_click=ID#top"),
        ("https://shop.example/{click_id}/a#{click_id}", "https://shop.example/ID/a#ID"),
        ("https://shop.example/?c=%7Bclick_id%7D", "https://shop.example/?c=ID"),
    ],
)
def test_landing_page_gets_the_click_id(landing, expected):
    assert clicks.landing_url(landing, "ID") == expected
    assert "leadre_click" not in clicks.landing_url(landing, "") and "{" not in clicks.landing_url(landing, "")


def test_click_id_is_a_token_of_conversions_for_seven_days(catalogue):
    token = make_token(NOW_US, BID_NANOS, charge_type="cpa")
    clicked = clicks.click_id(KEYS, token, NOW_US + 5)
    url = clicks.landing_url("https://shop.example/a", clicked)
    (text,) = parse_qs(urlsplit(url).query)["leadre_click"]
    last_us = NOW_US + 5 + CONVERSION_US
    assert isinstance(read("conv", {"t": text}, KEYS, catalogue, last_us)[1], EventRequest)
    assert read("conv", {"t": text}, KEYS, catalogue, last_us + 1)[1] == Refusal("late", 403)
    assert read("click", {"t": text}, KEYS, catalogue, NOW_US)[1] == Refusal("forged", 403)


def test_click_without_permission_to_measure_has_no_id():
    assert clicks.click_id(KEYS, make_token(NOW_US, 1, may_measure=False), NOW_US) == ""
