"""Reviews and limits on a running bidder: an operator decides on the status page, and bids follow."""

from __future__ import annotations

import html
import re

import pytest

from ..bidder import event_urls, until
from .test_status import FRAGMENT, HOSTILE, Browser


@pytest.fixture
def page(bidder):
    with Browser(bidder, bidder.operator) as browser:
        yield browser


@pytest.fixture
def account(bidder):
    """(account, key, campaign ID, ad ID): an ad that the account has made at the API."""
    name, _ = bidder.campaign(bid_nanos=9_000_000)
    key = bidder.manage("POST", "/keys", {"name": name, "advertiser_id": name})["key"]
    ad = {"campaign_id": name, "title": HOSTILE, "landing_url": f"https://{name}.example/new"}
    return name, key, name, bidder.manage("POST", "/ads", ad, key=key)["ad_id"]


def review(page, ad_id, action, reason=""):
    """Submit the form of an ad that waits, as the page has it."""
    form = next(form for form in re.findall(r"<form.*?</form>", page.get("/status/reviews")) if f'"{ad_id}"' in form)
    fields = {name: html.unescape(value) for name, value in re.findall(r'name="(\w+)" value="([^"]*)"', form)}
    data = fields | {"action": action, "reason": reason}
    return page.http.post("/status/reviews", data=data, headers=FRAGMENT)


def test_ad_of_an_account_bids_once_it_is_approved_on_the_page(bidder, page, account):
    name, key, _, ad_id = account
    bidder.list_for(f"seen-{name}", f"ad-{name}", ad_id)
    bidder.manage("POST", f"/ads/ad-{name}/pause")
    shown = page.get()
    assert ad_id in shown and HOSTILE not in shown and "&lt;script&gt;alert(1)" in shown
    assert not bidder.bidding(f"seen-{name}", ad_id)
    assert review(page, ad_id, "rejected").status_code == 409, "a rejection has a reason"
    answer = review(page, ad_id, "approved")
    assert answer.status_code == 200 and ad_id not in answer.text
    until(lambda: bidder.bidding(f"seen-{name}", ad_id), "bids for the approved ad")
    last = bidder.manage("GET", "/audit", key=key)["items"][-1]
    assert (last["item_id"], last["by"], last["key_id"], last["after"]["review"]) == (
        ad_id,
        "operator",
        None,
        "approved",
    )


def test_changed_landing_page_gets_no_click_before_its_approval(bidder, page, account):
    """The ad bids with an approved page; its account then changes the page, and a reader clicks on the earlier bid."""
    name, key, _, ad_id = account
    user_id = f"clicks-{name}"
    assert review(page, ad_id, "approved").status_code == 200
    bidder.list_for(user_id, ad_id)
    (bid,) = bidder.bids(user={"id": user_id})
    click = event_urls(bid)["click"]
    changed = {"campaign_id": name, "title": HOSTILE, "landing_url": f"https://{name}.example/unseen"}
    bidder.manage("PUT", f"/ads/{ad_id}", changed, key=key)
    until(lambda: not bidder.bidding(user_id, ad_id), "waits in every worker")
    assert bidder.http.get(click).headers["location"].startswith(f"https://{name}.example/new")
    bidder.manage("PUT", "/pages", {"landing_url": f"https://{name}.example/new", "reason": "malware"})
    until(lambda: "location" not in bidder.http.get(click).headers, "no click to the rejected page")


def test_decision_wants_the_csrf_token_and_the_content_that_was_read(bidder, page, account):
    _, key, _, ad_id = account
    assert page.http.post("/status/reviews", data={"id": ad_id, "action": "approved"}).status_code == 403
    data = {"csrf": page.csrf, "id": ad_id, "action": "approved", "content_hash": "0" * 16}
    answer = page.http.post("/status/reviews", data=data, headers=FRAGMENT)
    assert answer.status_code == 409 and "changed since it was read" in answer.text
    assert review(page, ad_id, "rejected", "no <b>shoes</b>").status_code == 200
    assert bidder.manage("GET", f"/ads/{ad_id}", key=key)["review_reason"] == "no <b>shoes</b>"


def test_lowered_limit_stops_bids_and_explain_names_the_rule(bidder, account):
    name, _, campaign_id, _ = account
    user_id = f"limited-{name}"
    _, other = bidder.campaign(bid_nanos=1_000_000)
    bidder.list_for(user_id, f"ad-{name}", other)
    account = bidder.manage("PUT", f"/accounts/{name}", {"cpm_bid_nanos": 1})
    assert campaign_id in account["stopped_campaigns"]
    until(lambda: not bidder.bidding(user_id, f"ad-{name}"), "stopped in every worker")
    bidder.ask(id=f"why-{name}", user={"id": user_id})
    headers = {"authorization": f"Bearer {bidder.operator}"}
    url = f"{bidder.url}/v1/explain/why-{name}"
    until(lambda: bidder.http.get(url, headers=headers).status_code == 200, "logged")
    candidates = {
        candidate["ad_id"]: candidate for candidate in bidder.http.get(url, headers=headers).json()["candidates"]
    }
    rules = [rule.split(":")[0] for rule in candidates[f"ad-{name}"]["failed_rules"]]
    assert rules == ["account_limit"]
    bidder.manage("PUT", f"/accounts/{name}", {})
    until(lambda: bidder.bidding(user_id, f"ad-{name}"), "bids again")
