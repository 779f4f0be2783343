"""Reviews: which ads wait for an operator, and what its decisions change."""

from __future__ import annotations

import dataclasses

import pytest

from leadre.errors import ConflictError, InputError, MissingError
from leadre.serve.catalogue import eligibility, reviews
from leadre.serve.catalogue.audit import Author
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.review_store import ReviewStore
from leadre.types import Ad

from ..conftest import make_ad, make_campaign
from .test_eligibility import BANNER, NOON_US, REQUEST

NOT_REVIEWED = {
    "ad_id",
    "object_id",
    "campaign_id",
    "advertiser_id",
    "status",
    "review",
    "review_reason",
    "approved_url",
    "created_at_us",
}
OTHER_VALUES = {
    "landing_url": "https://www.acme.test/other",
    "image_url": "https://www.acme.test/a.png",
    "price_nanos": 9,
    "price_currency": "EUR",
    "iab_categories": ("IAB1",),
    "cattax": 7,
    "language": "fr",
    "sizes": ((1, 1),),
    "attributes": frozenset({6}),
}


@pytest.fixture
def store(manage_database):
    """The store of an account whose ads are reviewed, with a campaign."""
    created = CampaignStore(manage_database, Author(key_id="k", account="acme", is_reviewed=True))
    created.put_campaign(make_campaign())
    return created


@pytest.fixture
def operator(manage_database):
    return ReviewStore(manage_database, Author(key_id="op"))


def test_new_ad_of_an_account_waits_and_is_shown_once_approved(store, operator, reader):
    store.put_ad(make_ad())
    assert store.ad("a1").review == "pending"
    before = eligibility.load(reader)
    assert not before.live_A.any() and not before.eligible(REQUEST, BANNER, NOON_US)[0].any()
    assert before.why_not(REQUEST, BANNER, "a1", NOON_US) == [f"review: {eligibility.RULES['review']}"]
    operator.review_ad("a1", "approved")
    after = eligibility.refresh(before, reader)
    assert after.live_A.all() and after.columns is before.columns
    operator.review_ad("a1", "rejected", "no shoes")
    assert not eligibility.refresh(after, reader).live_A.any()
    assert (store.ad("a1").review, store.ad("a1").review_reason) == ("rejected", "no shoes")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Ad) if field.name not in NOT_REVIEWED])
def test_change_of_what_is_seen_or_compared_wants_another_review(store, operator, field):
    store.put_ad(make_ad())
    operator.review_ad("a1", "approved")
    store.put_ad(make_ad(**{field: OTHER_VALUES.get(field, "other.test")}))
    assert store.ad("a1").review == "pending"


def test_other_changes_keep_the_state(store, operator):
    store.put_campaign(make_campaign("c2"))
    store.put_ad(make_ad())
    for review, reason in (("approved", ""), ("rejected", "no shoes")):
        operator.review_ad("a1", review, reason)
        for changed in (make_ad(status="paused"), make_ad(campaign_id="c2"), make_ad()):
            store.put_ad(changed)
            assert (store.ad("a1").review, store.ad("a1").review_reason) == (review, reason)
    store.put_ad(make_ad(title="Socks"))
    assert (store.ad("a1").review, store.ad("a1").review_reason) == ("pending", "")


def test_ads_of_operators_and_imports_are_approved(manage_database, campaign_store):
    campaign_store.add([make_campaign()], [make_ad("a1")])
    campaign_store.put_ad(make_ad("a2"))
    assert {ad.review for ad in campaign_store.ads()} == {"approved"}
    account = CampaignStore(manage_database, Author(account="acme", is_reviewed=True))
    account.put_ad(make_ad("a1", title="Socks"))
    assert account.ad("a1").review == "pending"
    campaign_store.put_ad(make_ad("a1", title="Hats"))
    assert account.ad("a1").review == "pending", "an operator's change decides no review"
    assert [ad.ad_id for ad in campaign_store.ads(review="pending")] == ["a1"]


def test_decisions_that_cannot_be_made(store, operator):
    store.put_ad(make_ad())
    with pytest.raises(InputError, match="reason: is empty"):
        operator.review_ad("a1", "rejected", " ")
    with pytest.raises(MissingError):
        operator.review_ad("a9", "approved")
    with pytest.raises(InputError, match="landing_url"):
        operator.review_page("/path", "malware")
    operator.review_page("https://www.acme.test/shoes", "malware")
    with pytest.raises(ConflictError, match="landing page is rejected"):
        operator.review_ad("a1", "approved")


def test_rejected_page_rejects_its_ads_now_and_later(manage_database, campaign_store, operator):
    campaign_store.put_campaign(make_campaign())
    campaign_store.put_ad(make_ad("a1", landing_url="http://WWW.acme.test/shoes?from=ad"))
    campaign_store.put_ad(make_ad("a2", landing_url="https://www.acme.test/hats"))
    assert operator.review_page("https://www.acme.test/shoes#top", "malware") == "www.acme.test/shoes"
    campaign_store.put_ad(make_ad("a3"))
    campaign_store.add([], [make_ad("a4"), make_ad("a5", landing_url="https://www.acme.test/")])
    states = {ad.ad_id: ad.review for ad in campaign_store.ads()}
    assert states == {"a1": "rejected", "a2": "approved", "a3": "rejected", "a4": "rejected", "a5": "approved"}
    assert campaign_store.ad("a1").review_reason == "the landing page is rejected: malware"
    operator.review_ad("a2", "rejected", "no hats")
    operator.review_page("www.acme.test/shoes", "")
    states = {ad.ad_id: ad.review for ad in campaign_store.ads()}
    assert states == {"a1": "pending", "a2": "rejected", "a3": "pending", "a4": "pending", "a5": "approved"}
    assert reviews.rejected_pages(manage_database.connection) == {}
    kinds = [kind for (kind,) in manage_database.connection.execute("SELECT kind FROM audit WHERE key_id = 'op'")]
    assert kinds == ["page", "ad", "ad", "page", "ad", "ad", "ad"]


def test_decision_on_other_content_than_was_read_is_refused(store, operator):
    store.put_ad(make_ad())
    seen = reviews.content_hash(store.ad("a1"))
    store.put_ad(make_ad(title="Not shoes"))
    with pytest.raises(ConflictError, match="changed since it was read"):
        operator.review_ad("a1", "approved", seen_hash=seen)
    assert operator.review_ad("a1", "approved", seen_hash=reviews.content_hash(store.ad("a1"))).review == "approved"


def test_clicks_on_earlier_bids_lead_to_the_page_that_was_approved_last(store, operator):
    first, second, third = (f"https://www.acme.test/{name}" for name in ("first", "second", "third"))

    def clicked():
        return reviews.clicked_url(store.ad("a1"))

    store.put_ad(make_ad(landing_url=first))
    assert clicked() == "", "never approved, so never bid"
    operator.review_ad("a1", "approved")
    assert clicked() == first
    store.put_ad(make_ad(landing_url=second))
    store.put_ad(make_ad(landing_url=third))
    assert clicked() == first, "no reader has to see a page that no operator has seen"
    operator.review_ad("a1", "rejected", "no")
    assert clicked() == first
    store.put_ad(make_ad(landing_url=second))
    operator.review_ad("a1", "approved")
    assert clicked() == second and store.ad("a1").approved_url == ""
    operator.review_ad("a1", "pending")
    assert clicked() == second
    operator.review_ad("a1", "approved")
    operator.review_ad("a1", "rejected", "malware")
    assert clicked() == "", "the page itself is rejected"


def test_rejected_page_gets_no_clicks_of_earlier_bids(store, operator):
    first = "https://www.acme.test/first"
    store.put_ad(make_ad("a1", landing_url=first))
    store.put_ad(make_ad("a2", landing_url=first))
    for ad_id in ("a1", "a2"):
        operator.review_ad(ad_id, "approved")
    store.put_ad(make_ad("a2", landing_url="https://www.acme.test/second"))
    assert reviews.clicked_url(store.ad("a2")) == first
    operator.review_page(first, "malware")
    assert [reviews.clicked_url(store.ad(ad_id)) for ad_id in ("a1", "a2")] == ["", ""]
    assert [store.ad(ad_id).review for ad_id in ("a1", "a2")] == ["rejected", "pending"]
