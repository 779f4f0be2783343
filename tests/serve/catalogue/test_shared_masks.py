"""Masks that requests share: a request gets the ads that the rules allow it, after any other requests."""

from __future__ import annotations

import dataclasses

import numpy as np

from leadre.serve.catalogue import eligibility, rules, shared_masks
from leadre.types import Targeting
from leadre.units import US_PER_HOUR

from ..conftest import make_ad, make_campaign
from .test_eligibility import BANNER, NOON_US, REQUEST, snapshot

TARGETINGS = [
    {"countries": {"DEU"}},
    {"regions": {"BE"}},
    {"device_types": {4}},
    {"sites": {"a.test"}},
    {"categories": {"IAB1"}},
    {"segments": {"runner"}},
    {"hours": {12}},
]
ADS = [
    {"iab_categories": ("IAB9",), "cattax": 1},
    {"iab_categories": ("7",), "cattax": 2},
    {"adomain": "b.test"},
    {"app_bundle": "app.b"},
    {"language": "de"},
    {"attributes": frozenset({3})},
    {"sizes": ((300, 250),)},
    {"sizes": ((728, 90),)},
    {"image_url": "http://x.test/a.png"},
]
# Each differs from `REQUEST` in one thing that changes which of the ads may be shown.
IMP_VARIANTS = [
    *({"sizes": ((728, 90),)}, {"sizes": ()}, {"sizes": ((1, 1),)}, {"is_secure": False}, {"blocked_attributes": {3}}),
]
VARIANTS = [
    *({"country": "DEU"}, {"region": "BE"}, {"device_type": 4}, {"site": "a.test"}, {"other_site_names": ("a.test",)}),
    *({"categories": ("IAB1-2",)}, {"currencies": ("EUR",)}, {"allowed_seats": {"x"}}, {"blocked_seats": {"leadre"}}),
    *({"blocked_categories": {"IAB9"}}, {"blocked_categories": {"7", "IAB9"}}),
    {"blocked_categories": {"7", "IAB9"}, "cattax": 3},
    *({"allowed_categories": {"IAB9"}}, {"blocked_domains": {"b.test"}}, {"blocked_apps": {"app.b"}}),
    *({"allowed_languages": {"fr"}}, *({"imps": (dataclasses.replace(BANNER, **fields),)} for fields in IMP_VARIANTS)),
]


def test_requests_that_share_masks_get_the_ads_that_the_rules_allow_each():
    campaigns = [make_campaign("c0"), make_campaign("c1", currency="EUR"), make_campaign("c2", ends_at_us=NOON_US + 9)]
    campaigns += [
        make_campaign(f"t{number}", targeting=Targeting(**{name: frozenset(values) for name, values in fields.items()}))
        for number, fields in enumerate(TARGETINGS)
    ]
    ads = [make_ad(campaign.campaign_id, campaign_id=campaign.campaign_id) for campaign in campaigns]
    ads += [make_ad(f"a{number}", campaign_id="c0", **fields) for number, fields in enumerate(ADS)]
    catalogue = snapshot(campaigns, ads)
    cases = [(dataclasses.replace(REQUEST, **frozen(fields)), NOON_US, ()) for fields in VARIANTS]
    cases += [(REQUEST, NOON_US, {"runner"}), (REQUEST, NOON_US + US_PER_HOUR, ()), (REQUEST, NOON_US + 9, ())]
    rows_K = np.arange(len(ads))[::-1]
    usual = catalogue.eligibility(REQUEST, NOON_US).in_any_imp().tolist()
    for request_, at_us, segments in [*cases, *cases]:
        imps = (*request_.imps, dataclasses.replace(BANNER, sizes=((728, 90),)), BANNER)
        several = catalogue.eligibility(dataclasses.replace(request_, imps=imps), at_us, segments)
        alone = catalogue.eligibility(request_, at_us, segments)
        expected = [catalogue.eligible(request_, imp, at_us, segments)[0] for imp in imps]
        assert [ok_K.tolist() for ok_K in several.at(rows_K)] == [ok_A[rows_K].tolist() for ok_A in expected]
        assert several.in_any_imp().tolist() == np.logical_or.reduce(expected).tolist()
        assert alone.in_any_imp().tolist() == expected[0].tolist() != usual, request_


def frozen(fields):
    return {name: frozenset(values) if isinstance(values, set) else values for name, values in fields.items()}


def test_masks_follow_dates_and_statuses(campaign_store, reader):
    campaign_store.put_campaign(make_campaign(starts_at_us=NOON_US, ends_at_us=NOON_US + 2))
    campaign_store.put_ad(make_ad())
    catalogue = eligibility.load(reader)

    def shown(at_us):
        return catalogue.eligibility(REQUEST, at_us).in_any_imp().tolist()

    assert [shown(NOON_US + us) for us in (-1, 0, 1, 2)] == [[False], [True], [True], [False]]
    campaign_store.set_ad_status("a1", "paused")
    catalogue = eligibility.refresh(catalogue, reader)
    assert shown(NOON_US) == [False]


def test_masks_that_are_kept_are_bounded():
    masks = shared_masks.SharedMasks()
    for number in range(1000):
        mask = masks.get(number, lambda number=number: [("rule", np.arange(4) == number)], 4)
        assert mask.tolist() == [row == number for row in range(4)]
        assert len(masks._masks) <= shared_masks.MAX_MASKS
    rows = shared_masks.MAX_MASK_BYTES
    for number in range(4):
        masks.get(-number, lambda: (), rows)
        assert number == 0 or sum(mask.nbytes for mask in masks._masks.values()) <= rows + 4
    catalogue = snapshot([make_campaign()], [make_ad()])
    for number in range(10):
        domains = frozenset(f"{number}-{entry}.test" for entry in range(rules.MAX_LISTED))
        catalogue.eligibility(dataclasses.replace(REQUEST, blocked_domains=domains | {"one-more.test"}), NOON_US)
    assert not catalogue._ad_masks._masks


def test_values_that_no_ad_has_share_one_mask():
    catalogue = snapshot([make_campaign()], [make_ad(iab_categories=("IAB1-2",), language="de")])
    for number in range(10):
        names = frozenset(f"IAB{number + 30}-{entry}" for entry in range(2 * rules.MAX_LISTED))
        others = {"blocked_apps": names, "allowed_languages": frozenset({"de", f"q{number}"})}
        request = dataclasses.replace(REQUEST, blocked_categories=names | {"IAB1"}, **others)
        assert not catalogue.eligibility(request, NOON_US).in_any_imp().any()
    assert len(catalogue._ad_masks._masks) == 1
