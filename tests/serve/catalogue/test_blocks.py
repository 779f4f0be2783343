"""Lists of blocked and allowed things, against one ad: the rules of docs/serving.md, row by row."""

from __future__ import annotations

import json

import pytest

from leadre.serve.catalogue import eligibility
from leadre.serve.catalogue.categories import sent
from leadre.serve.protocol import openrtb
from leadre.types import Targeting

from ..conftest import make_ad, make_campaign

NOON_US = 1_772_366_400_000_000
IMP = {"id": "1", "banner": {"w": 300, "h": 250}}


def failed_rules(ad, fields, ignored_rules=eligibility.UNKNOWN_RULES, **campaign):
    """The rules that an ad fails in a request of these JSON fields."""
    catalogue = eligibility._snapshot(1, (make_campaign(**campaign),), (make_ad(**ad),), "leadre", ignored_rules)
    request = openrtb.read(json.dumps({"id": "r", "imp": [IMP]} | fields).encode())
    why = catalogue.why_not(request, request.imps[0], "a1", NOON_US)
    return [text.partition(":")[0] for text in why]


@pytest.mark.parametrize(
    ("listed", "is_blocked"),
    [
        ("shop.example", True),
        ("www.shop.example", True),
        ("https://shop.example/", True),
        ("SHOP.example:443", True),
        ("other.shop.example", True),  # the same registrable domain
        ("example", True),  # a suffix blocks what is below it
        ("shop.example.", True),
        ("op.example", False),
        ("shop.example.org", False),
        ("", False),
        ("landing.co.uk", True),  # the host of the landing page
        ("a.landing.co.uk", True),
        ("co.uk", True),
        ("other.co.uk", False),
        ("me.github.io", False),
    ],
)
def test_badv(listed, is_blocked):
    ad = {"adomain": "shop.example", "landing_url": "https://www.landing.co.uk/a"}
    assert failed_rules(ad, {"badv": ["unrelated.example", listed]}) == ["blocked_domain"] * is_blocked


@pytest.mark.parametrize(
    ("adomain", "listed", "is_blocked"),
    [
        ("me.github.io", "github.io", True),  # below a listed host
        ("me.github.io", "you.github.io", False),  # customers of a private suffix are strangers
        ("github.io", "me.github.io", False),
        ("münchen.de", "xn--mnchen-3ya.de", True),
        ("xn--mnchen-3ya.de", "MÜNCHEN.de", True),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "0.0.1", False),
        ("10.0.0.1", "1", False),
        ("a.b.compute.amazonaws.com", "c.compute.amazonaws.com", False),
        ("aws.amazonaws.com", "amazonaws.com", True),
    ],
)
def test_badv_knows_suffixes_scripts_and_addresses(adomain, listed, is_blocked):
    ad = {"adomain": adomain, "landing_url": f"https://{adomain}/"}
    assert failed_rules(ad, {"badv": [listed]}) == ["blocked_domain"] * is_blocked


@pytest.mark.parametrize(
    ("codes", "cattax", "fields", "is_blocked"),
    [
        (("IAB10-4",), 1, {"bcat": ["IAB10"]}, True),
        (("IAB10",), 1, {"bcat": ["IAB10-4"]}, False),
        (("IAB10-4",), 1, {"bcat": ["IAB10"], "cattax": 7}, True),  # such a code is of the first taxonomy anywhere
        (("483",), 7, {"bcat": ["483"], "cattax": 7}, True),
        (("483",), 7, {"bcat": ["483"], "cattax": 6}, False),  # another taxonomy, another meaning
        (("483",), 7, {"bcat": ["483"]}, True),  # a list of unknown taxonomy
        (("483",), 1, {"bcat": ["483"], "cattax": 6}, True),  # an ad of unknown taxonomy
        (("IAB10-4",), 1, {"bcat": ["483"], "cattax": 7}, False),
        ((), 1, {"bcat": ["IAB10"]}, False),
    ],
)
def test_bcat(codes, cattax, fields, is_blocked):
    ad = {"iab_categories": codes, "cattax": cattax}
    assert failed_rules(ad, fields) == ["blocked_category"] * is_blocked


@pytest.mark.parametrize(
    ("codes", "cattax", "fields", "is_allowed"),
    [
        (("IAB10-4",), 1, {"acat": ["IAB1"]}, False),
        (("IAB10-4",), 1, {"acat": ["IAB10"]}, True),
        (("IAB10-4",), 1, {"acat": ["IAB10-4"]}, True),
        (("IAB10",), 1, {"acat": ["IAB10-4"]}, False),
        (("IAB10-4", "IAB25-3"), 1, {"acat": ["IAB10"]}, False),  # each category must be allowed
        (("IAB10-4", "IAB25-3"), 1, {"acat": ["IAB10", "IAB25"]}, True),
        ((), 1, {"acat": ["IAB10"]}, False),
        (("483",), 7, {"acat": ["483"], "cattax": 7}, True),
        (("483",), 1, {"acat": ["483"], "cattax": 7}, False),  # an ad of unknown taxonomy
        (("483",), 7, {"acat": ["483"], "cattax": 6}, False),
        (("483",), 7, {"acat": ["483"]}, False),
        (("IAB10-4", "483"), 7, {"acat": ["483"], "cattax": 7}, True),
    ],
)
def test_acat(codes, cattax, fields, is_allowed):
    ad = {"iab_categories": codes, "cattax": cattax}
    assert failed_rules(ad, fields) == ["allowed_category"] * (not is_allowed)


def test_allowed_and_blocked_categories_both_apply():
    ad = {"iab_categories": ("IAB10-4",)}
    assert failed_rules(ad, {"acat": ["IAB10"], "bcat": ["IAB10-4"]}) == ["blocked_category"]


@pytest.mark.parametrize(
    ("app", "listed", "is_blocked"),
    [
        ("com.example.game", "com.example.game", True),
        ("com.example.game", "com.example", False),
        ("com.example.game", "com.example.Game", False),  # IDs of apps are exact
        ("", "com.example.game", False),
    ],
)
def test_bapp(app, listed, is_blocked):
    assert failed_rules({"app_bundle": app}, {"bapp": [listed]}) == ["blocked_app"] * is_blocked


@pytest.mark.parametrize(
    ("language", "fields", "is_allowed"),
    [
        ("fr", {"wlang": ["fr"]}, True),
        ("fr", {"wlang": ["en", "FR"]}, True),
        ("fr", {"wlang": ["en"]}, False),
        ("fr-ca", {"wlang": ["fr"]}, True),
        ("fr", {"wlangb": ["fr-CA"]}, False),
        ("zh-hant-tw", {"wlangb": ["zh-Hant"]}, True),
        ("zh-hans", {"wlangb": ["zh-Hant"]}, False),
        ("", {"wlang": ["fr"]}, True),
    ],
)
def test_allowed_languages(language, fields, is_allowed):
    assert failed_rules({"language": language}, fields) == ["allowed_language"] * (not is_allowed)


@pytest.mark.parametrize(
    ("ad", "fields", "rule"),
    [
        ({"iab_categories": ("IAB10-4",)}, {"bcat": ["483"], "cattax": 7}, "unknown_category"),
        ({}, {"bcat": ["IAB10"]}, "unknown_category"),
        ({}, {"wlang": ["fr"]}, "unknown_language"),
    ],
)
def test_unknown_ads_pass_by_a_setting_that_explain_shows(ad, fields, rule):
    assert failed_rules(ad, fields) == []
    assert failed_rules(ad, fields, frozenset()) == [rule]
    catalogue = eligibility._snapshot(1, (make_campaign(),), (make_ad(**ad),), "leadre")
    request = openrtb.read(json.dumps({"id": "r", "imp": [IMP]} | fields).encode())
    assert [text.partition(":")[0] for text in catalogue.undecided_rules(request, "a1")] == [rule]
    assert catalogue.undecided_rules(openrtb.read(b'{"id":"r","imp":[{"id":"1","banner":{}}]}'), "a1") == []


@pytest.mark.parametrize(
    ("codes", "cattax", "request_cattax", "expected"),
    [
        (("IAB10-4", "483"), 1, 7, (("IAB10-4",), 1)),
        (("IAB10-4", "483"), 7, 7, (("483",), 7)),
        (("IAB10-4", "483"), 7, 1, (("IAB10-4",), 1)),
        (("483",), 7, 1, (("483",), 7)),
        (("483",), 1, 7, ((), 1)),
        ((), 7, 7, ((), 1)),
    ],
)
def test_categories_of_one_taxonomy_are_sent(codes, cattax, request_cattax, expected):
    assert sent(codes, cattax, request_cattax) == expected


@pytest.mark.parametrize("target", ["news.example", "www.news.example", "https://news.example/", "NEWS.example"])
@pytest.mark.parametrize(
    ("fields", "is_targeted"),
    [
        ({"site": {"domain": "news.example"}}, True),
        ({"site": {"domain": "www.News.example"}}, True),
        ({"site": {"domain": "https://news.example"}}, True),
        ({"site": {"page": "news.example/a"}}, True),
        ({"site": {"page": "https://news.example/?q=Jacu%ED"}}, True),
        ({"site": {"page": "https://www.news.example:8080/a", "domain": "publisher.example"}}, True),
        ({"site": {}, "app": {"domain": "news.example"}}, True),
        ({"site": {"domain": "other.example", "page": "https://other.example/news.example"}}, False),
        ({}, False),
    ],
)
def test_sites_are_matched_by_every_name(fields, is_targeted, target):
    targeting = Targeting(sites=frozenset({target}))
    assert failed_rules({}, fields, targeting=targeting) == ["site"] * (not is_targeted)


@pytest.mark.parametrize(
    "fields",
    [
        {"app": {"bundle": "com.example.game", "domain": "studio.example"}},
        {"app": {"bundle": "com.Example.game"}},
        {"site": {}, "app": {"bundle": "com.example.game"}},
    ],
)
def test_apps_are_matched_by_their_bundle(fields):
    assert failed_rules({}, fields, targeting=Targeting(sites=frozenset({"com.example.game"}))) == []
