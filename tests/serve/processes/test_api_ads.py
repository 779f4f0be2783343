"""An ad made at the management API of a running bidder is bid, before any list has it."""

from __future__ import annotations

import os
import signal

import pytest

from leadre.store.contract import Profile, ProfileEvent

from ..bidder import Bidder, until


def test_ad_is_bid_without_new_lists(bidder):
    """Requests in a currency that no ad of the lists is sold in, so that no exploration is needed."""
    account = os.urandom(6).hex()
    terms = {"name": "Autumn", "advertiser_id": account, "bid_type": "cpc", "bid_nanos": 10**12, "currency": "JPY"}
    campaign = bidder.manage("POST", "/campaigns", terms | {"total_nanos": 10**15})
    assert not bidder.fresh(cur=["JPY"])
    ad = {"campaign_id": campaign["campaign_id"], "title": "Shoes", "landing_url": "https://acme.example/shoes"}
    key = bidder.manage("POST", "/keys", {"name": "Ann", "advertiser_id": account})["key"]
    with pytest.raises(AssertionError, match="of the run"):
        bidder.manage("POST", "/ads", ad | {"object_id": "OBJECT-0001"}, key=key)
    ad_id = bidder.manage("POST", "/ads", ad)["ad_id"]  # an account's ad would wait for its review
    until(lambda: [bid["crid"] for bid in bidder.fresh(cur=["JPY"])] == [ad_id], "bid of the new ad")
    answer = bidder.manage("PUT", f"/ads/{ad_id}", ad | {"title": "Boots"})
    assert answer["title"] == "Boots"
    until(lambda: any("Boots" in bid["adm"] for bid in bidder.fresh(cur=["JPY"])), "bid of the changed ad")
    bidder.manage("POST", f"/ads/{ad_id}/pause")
    until(lambda: not bidder.fresh(cur=["JPY"]), "no bid of the paused ad")


@pytest.mark.slow
def test_model_generates_the_object_of_a_new_ad(work, tmp_path):
    """The ad is the only one of its currency, and the user has no list: a bid is generated, or else contextual."""
    with Bidder(work, tmp_path / "state") as bidder:
        store = bidder.store()
        recent = tuple(ProfileEvent(f"object-{n:04d}", n + 1, "ad", 1) for n in range(3))
        store.write_profiles(Profile("reader", recent))
        store.close()
        until(lambda: bidder.away() == [], "a model")
        terms = {"name": "Autumn", "advertiser_id": "acme", "bid_type": "cpm", "bid_nanos": 10**12, "currency": "JPY"}
        campaign_id = bidder.manage("POST", "/campaigns", terms)["campaign_id"]
        ad_ids = []
        for title in ("Red tea", "Red tea", "Trail running shoes"):
            ad = {"campaign_id": campaign_id, "title": title, "landing_url": "https://acme.example/shoes"}
            ad_ids.append(bidder.manage("POST", "/ads", ad)["ad_id"])
            until(lambda: generated(bidder) == set(ad_ids), "the new ad among the generated candidates")
        bidder.signal("model", signal.SIGKILL)
        until(lambda: generated(bidder) == set(ad_ids), "the new ads after a start of the model")


def generated(bidder):
    """The generated candidates of a new request of a user without a list."""
    name = os.urandom(6).hex()
    bidder.fresh(user={"id": "reader"}, cur=["JPY"], tmax=10_000, id=name)
    url = f"{bidder.url}/v1/explain/{name}"
    headers = {"authorization": f"Bearer {bidder.operator}"}
    until(lambda: bidder.http.get(url, headers=headers).status_code == 200, "written down")
    candidates = bidder.http.get(url, headers=headers).json()["candidates"]
    return {candidate["ad_id"] for candidate in candidates if candidate["source"] == "generated"}
