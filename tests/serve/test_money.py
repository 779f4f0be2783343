"""Charges of a running bidder: prices of notices, losses, click IDs, conversions, recommendations."""

from __future__ import annotations

import msgspec
import pytest

from leadre.serve.events.tokens import TokenKeys

from .bidder import bids_in, click_id, event_urls, until

CPM = 2_000_000  # nanos of one impression


@pytest.fixture
def offers(bidder):
    """Requests for a user whose list has one ad of a new campaign: a function of the campaign's fields."""

    def offers(user_id, **fields):
        campaign_id, ad_id = bidder.campaign(**fields)
        bidder.list_for(user_id, ad_id)
        return campaign_id, lambda **more: bidder.bids(user={"id": user_id}, **more)

    return offers


def charged(bidder, campaign_id):
    return bidder.report(campaign_id)["charged_nanos"]


def key_of(bidder, advertiser_id):
    """A key by which an account's server reports conversions."""
    key = bidder.manage("POST", "/keys", {"name": "shop", "advertiser_id": advertiser_id, "scopes": ["convert"]})
    return key["key"]


def convert(bidder, key="", **conversion):
    headers = {"authorization": f"Bearer {key or bidder.operator}"}
    return bidder.http.post(f"{bidder.url}/v1/conversions", json=conversion, headers=headers)


def clicked(bidder, bid):
    """The click ID that the landing page gets."""
    return click_id(bidder.http.get(event_urls(bid)["click"]).headers["location"])


@pytest.mark.parametrize("price", ["0", "free", "-1", "1e999", ""])
def test_price_that_cannot_be_billed_is_refused_and_the_true_one_still_counts(bidder, offers, price):
    campaign_id, ask = offers("odd-price")
    (bid,) = ask()
    before = bidder.refused("bill", "price")
    url = bid["burl"].replace("${AUCTION_PRICE}", price)
    assert bidder.http.get(url).status_code == 400
    assert bidder.refused("bill", "price") == before + 1 and charged(bidder, campaign_id) == 0
    response = bidder.http.get(event_urls(bid)["bill"])
    assert response.status_code == 200 and response.headers["content-type"] == "image/gif"
    assert charged(bidder, campaign_id) == CPM


@pytest.mark.parametrize("fields", [{"at": 1}, {"ext": {"prebid": {"channel": {"name": "pbjs"}}}}, {"at": 2}, {}])
def test_unfilled_price_is_the_signed_one_in_a_first_price_auction_and_for_prebid(bidder, offers, fields):
    campaign_id, ask = offers("unfilled")
    (bid,) = ask(**fields)
    assert "${AUCTION_PRICE}" in bid["burl"]
    is_billed = fields.get("at") == 1 or "ext" in fields
    assert bidder.http.get(bid["burl"]).status_code == (200 if is_billed else 400)
    assert charged(bidder, campaign_id) == (CPM if is_billed else 0)


def test_audit_is_not_billed(bidder, offers):
    campaign_id, ask = offers("audit")
    (bid,) = ask(at=1)
    assert bidder.http.get(bid["burl"].replace("${AUCTION_PRICE}", "AUDIT")).status_code == 200
    assert charged(bidder, campaign_id) == 0


def test_bid_has_the_time_in_which_it_may_be_shown(offers):
    _, ask = offers("exp")
    for imp_exp, expected in ((None, 120), (0, 120), (30, 30), (3600, 120), ("x", 120)):
        imp = {"id": "1", "banner": {"w": 300, "h": 250}} | ({} if imp_exp is None else {"exp": imp_exp})
        assert ask(imp=[imp])[0]["exp"] == expected


def test_lost_bids_use_no_frequency_cap_up(offers, bidder):
    _, ask = offers("loses", cap_per_day=3)
    for _ in range(5):
        (bid,) = ask()
        assert bidder.http.get(event_urls(bid)["loss"]).status_code == 204


def test_loss_frees_a_cap_and_an_impression_after_it_is_counted_again(offers, bidder):
    _, ask = offers("capped-by-loss", cap_per_day=1)
    (first,) = ask()
    assert ask() == [], "held by the first bid"
    assert bidder.http.get(event_urls(first)["loss"]).status_code == 204
    (second,) = ask()
    assert bidder.http.get(event_urls(second)["loss"]).status_code == 204
    assert bidder.http.get(event_urls(first)["imp"]).status_code == 200
    assert ask() == [], "the lost bid was shown"


def test_cap_is_held_for_as_long_as_the_bid_may_be_shown(offers):
    _, ask = offers("held-briefly", cap_per_day=1)
    imp = {"id": "1", "banner": {"w": 300, "h": 250}, "exp": 1}
    assert len(ask(imp=[imp])) == 1
    until(lambda: len(ask(imp=[imp])) == 1, "the cap is free again")


def page_bid(bidder, user_id):
    """The bid that a publisher's page gets for a user."""
    bidder.manage("PUT", "/origins", {"origins": ["https://news.example"]})
    request = {"id": "page", "at": 1, "imp": [{"id": "1", "banner": {"w": 300, "h": 250}}], "user": {"id": user_id}}
    headers = {"origin": "https://news.example"}

    def ask():
        return bidder.http.post(f"{bidder.url}/openrtb2/auction", json=request, headers=headers)

    until(lambda: ask().status_code == 200, "the origin is known to the worker")
    (bid,) = bids_in(ask())
    return bid


def test_page_gets_no_url_that_ends_its_reservations_and_none_for_prices_to_learn(bidder, offers):
    offers("page")
    bid = page_bid(bidder, "page")
    assert "lurl" not in bid and "/e/loss" not in str(bid) and "&min=" not in str(bid)


def test_page_cannot_set_the_price_of_its_bid(bidder, offers):
    campaign_id, _ = offers("set-price")
    bill = page_bid(bidder, "set-price")["burl"].partition("&price=")[0]
    assert bidder.http.get(f"{bill}&price=0.000001").status_code == 200
    assert bidder.http.get(f"{bill}&price=2").status_code == 200
    assert charged(bidder, campaign_id) == CPM


def test_token_of_one_kind_reports_no_other(bidder, offers):
    campaign_id, ask = offers("one-kind", bid_type="cpa", bid_nanos=10**9)
    (bid,) = ask()
    for kind, url in event_urls(bid).items():
        for other in {"win", "bill", "loss", "imp", "click", "conv"} - {kind}:
            assert bidder.http.get(url.replace(f"/e/{kind}?", f"/e/{other}?")).status_code == 403
    assert bidder.report(campaign_id) == {"impressions": 0, "clicks": 0, "conversions": 0, "charged_nanos": 0}


def test_conversions_cost_one_action_a_click(bidder, offers):
    campaign_id, ask = offers("cpa", bid_type="cpa", bid_nanos=10**9, max_value_nanos=500)
    account = key_of(bidder, campaign_id)
    (bid,) = ask()
    clicked_id = clicked(bidder, bid)
    page = f"{bidder.url}/e/conv?t={clicked_id}"
    for number in range(3):
        assert bidder.http.get(f"{page}&event_id=made-up-{number}&value_nanos=9").status_code == 204
    assert bidder.report(campaign_id)["conversions"] == 1 and charged(bidder, campaign_id) == 10**9
    for event_id, outcome in (("o-1", "new"), ("o-1", "known"), ("o-2", "new")):
        response = convert(bidder, account, click_id=clicked_id, event_id=event_id, value_nanos=10**9)
        assert (response.status_code, response.json()) == (200, {"outcome": outcome})
    assert bidder.report(campaign_id)["conversions"] == 3 and charged(bidder, campaign_id) == 10**9
    (other,) = ask()
    assert convert(bidder, account, click_id=clicked(bidder, other), event_id="o-3").status_code == 200
    assert charged(bidder, campaign_id) == 2 * 10**9


def test_conversion_needs_a_key_and_a_click_of_the_account(bidder, offers):
    campaign_id, ask = offers("foreign", bid_type="cpa", bid_nanos=10**9)
    stranger = key_of(bidder, "another")
    (bid,) = ask()
    clicked_id = clicked(bidder, bid)
    assert convert(bidder, "wrong", click_id=clicked_id, event_id="o").status_code == 401
    assert convert(bidder, stranger, click_id=clicked_id, event_id="o").status_code == 403
    for url in event_urls(bid).values():
        token = url.split("?t=")[1].split("&")[0]
        assert convert(bidder, click_id=token, event_id="o").status_code == 403, "no token of the bid is a click ID"
    for fault in ({"event_id": ""}, {"event_id": "o", "value_nanos": -1}, {"event_id": "o", "extra": 1}, {}):
        assert convert(bidder, click_id=clicked_id, **fault).status_code == 400
    assert bidder.report(campaign_id)["conversions"] == 0


def test_landing_page_gets_no_click_id_without_permission_to_measure(bidder, offers):
    _, ask = offers("unmeasured")
    (bid,) = ask()
    keys = TokenKeys.open(bidder.state / "token.keys")
    text = event_urls(bid)["click"].split("?t=")[1]
    token = keys.check(text, "click", 0)
    unmeasured = keys.encrypt(msgspec.structs.replace(token, may_measure=False), "click")
    location = bidder.http.get(f"{bidder.url}/e/click?t={unmeasured}").headers["location"]
    assert location.endswith(".example/shoes")


def test_recommended_ad_is_billed_once_at_its_signed_price(bidder, offers):
    campaign_id, _ = offers("reader")
    headers = {"authorization": f"Bearer {bidder.operator}"}
    response = bidder.http.post(f"{bidder.url}/v1/recommend", json={"user_id": "reader", "count": 1}, headers=headers)
    (ad,) = response.json()["ads"]
    for price in ("&price=0.000001", "", "&price=2"):
        assert bidder.http.get(ad["billing_url"] + price).status_code == 200
    assert charged(bidder, campaign_id) == CPM


def test_outranked_candidate_has_a_lease_for_its_next_auction_until_it_is_paused(bidder):
    campaign_id, ad_id = bidder.campaign(daily_nanos=1_000 * CPM)
    _, best = bidder.campaign(bid_nanos=9 * CPM)
    bidder.list_for("standby", best, ad_id)

    def reserved():
        return bidder.manage("GET", f"/campaigns/{campaign_id}/budget")["today"]["reserved_nanos"]

    assert not reserved(), "a test request reserves nothing"
    assert bidder.bids(user={"id": "standby"})
    until(reserved, "a lease without a bid")
    assert reserved() <= 2 * 4 * CPM, "of few bids, in each of two workers"
    bidder.manage("POST", f"/campaigns/{campaign_id}/pause")
    until(lambda: not reserved(), "the leases returned")
