from __future__ import annotations

import dataclasses
import sys
import tracemalloc
from collections import Counter
from datetime import UTC, datetime
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre.serve.catalogue import columns, eligibility
from leadre.types import Ad, Campaign, Impression, Request, Targeting

from ..conftest import make_ad, make_campaign

NOON_US = 1_772_366_400_000_000  # 2026-03-01T12:00:00Z
BANNER = Impression(imp_id="1", sizes=((300, 250),), is_secure=True)
REQUEST = Request(request_id="r", imps=(BANNER,))


def snapshot(campaigns, ads):
    return eligibility._snapshot(1, tuple(campaigns), tuple(ads), eligibility.SEAT)


def failed(campaign=None, ad=None, request=None, imp=None, segments=()):
    """The rules that one ad fails, by `why_not`; `eligible` must agree."""
    catalogue = snapshot([make_campaign(**campaign or {})], [make_ad(**ad or {})])
    bid_request = dataclasses.replace(REQUEST, **request or {})
    banner = dataclasses.replace(BANNER, **imp or {})
    why = [text.split(":")[0] for text in catalogue.why_not(bid_request, banner, "a1", NOON_US, segments)]
    ok_A, excluded = catalogue.eligible(bid_request, banner, NOON_US, segments)
    assert ok_A.tolist() == [not why]
    assert excluded == ({why[0]: 1} if why else {})
    return why


def test_ad_without_targeting_is_eligible():
    assert failed() == []


@pytest.mark.parametrize(
    ("rule", "targeting", "request_fields"),
    [
        ("country", {"countries": {"DEU"}}, {"country": "DEU"}),
        ("region", {"regions": {"BE"}}, {"region": "BE"}),
        ("device_type", {"device_types": {2, 4}}, {"device_type": 4}),
        ("site", {"sites": {"news.test"}}, {"site": "News.test"}),
        ("category", {"categories": {"IAB1-2"}}, {"categories": ("IAB3", "IAB1-2")}),
        ("category", {"categories": {"IAB1"}}, {"categories": ("IAB1-2",)}),
    ],
)
def test_targeting_excludes_and_admits(rule, targeting, request_fields):
    fields = {"targeting": Targeting(**{name: frozenset(values) for name, values in targeting.items()})}
    assert failed(fields) == [rule]
    assert failed(fields, request=request_fields) == []


def test_only_segments_that_consent_allows_are_matched():
    fields = {"targeting": Targeting(segments=frozenset({"runner"}))}
    assert failed(fields, request={"segments": ("runner",)}) == ["segment"]
    assert failed(fields, segments={"runner", "cook"}) == []


def test_hours_are_in_the_zone_of_the_campaign():
    one_oclock = {"targeting": Targeting(hours=frozenset({13}))}
    assert failed(one_oclock) == ["hour"]
    assert failed(one_oclock | {"zone": "Europe/Berlin"}) == []
    assert failed({"targeting": Targeting(hours=frozenset({17})), "zone": "Asia/Kolkata"}) == []  # UTC + 5:30


@pytest.mark.parametrize(
    ("fields", "rules"),
    [
        ({"status": "paused"}, ["campaign_status"]),
        ({"status": "ended"}, ["campaign_status"]),
        ({"starts_at_us": NOON_US}, []),
        ({"starts_at_us": NOON_US + 1}, ["dates"]),
        ({"ends_at_us": NOON_US + 1}, []),
        ({"ends_at_us": NOON_US}, ["dates"]),
        ({"currency": "EUR"}, ["currency"]),
        ({"currency": "EUR", "status": "paused"}, ["campaign_status", "currency"]),
    ],
)
def test_campaign_rules(fields, rules):
    assert failed(fields) == rules


@pytest.mark.parametrize(
    ("ad", "request_fields", "imp", "rules"),
    [
        ({"status": "paused"}, {}, {}, ["ad_status"]),
        ({}, {"blocked_seats": frozenset({"leadre"})}, {}, ["seat"]),
        ({}, {"allowed_seats": frozenset({"other"})}, {}, ["seat"]),
        ({}, {"allowed_seats": frozenset({"other", "leadre"})}, {}, []),
        ({}, {"currencies": ("EUR", "USD")}, {}, []),
        ({"iab_categories": ("IAB7-39",)}, {"blocked_categories": frozenset({"IAB7-39"})}, {}, ["blocked_category"]),
        ({"iab_categories": ("IAB7-39",)}, {"blocked_categories": frozenset({"IAB7"})}, {}, ["blocked_category"]),
        ({"iab_categories": ("IAB7",)}, {"blocked_categories": frozenset({"IAB7-39"})}, {}, []),
        ({"iab_categories": ("IAB7-3", "483")}, {"blocked_categories": frozenset({"483"})}, {}, ["blocked_category"]),
        ({"adomain": "shop.acme.test"}, {"blocked_domains": frozenset({"ACME.test"})}, {}, ["blocked_domain"]),
        ({"adomain": "acme.test"}, {"blocked_domains": frozenset({"shop.acme.test"})}, {}, ["blocked_domain"]),
        (
            {"adomain": "bigacme.test", "landing_url": "https://b.test"},
            {"blocked_domains": frozenset({"acme.test"})},
            {},
            [],
        ),
        ({"attributes": frozenset({1, 6})}, {}, {"blocked_attributes": frozenset({6})}, ["blocked_attribute"]),
        ({"attributes": frozenset({1})}, {}, {"blocked_attributes": frozenset({6})}, []),
        ({"sizes": ((728, 90),)}, {}, {}, ["size"]),
        ({"sizes": ((250, 300),)}, {}, {}, ["size"]),
        ({"sizes": ((728, 90), (300, 250))}, {}, {}, []),
        ({"sizes": ((728, 90),)}, {}, {"sizes": ()}, []),
        ({"landing_url": "http://acme.test"}, {}, {}, ["secure"]),
        ({"image_url": "http://acme.test/a.png"}, {}, {}, ["secure"]),
        ({"landing_url": "http://acme.test"}, {}, {"is_secure": False}, []),
    ],
)
def test_ad_rules(ad, request_fields, imp, rules):
    assert failed(ad=ad, request=request_fields, imp=imp) == rules


def test_unknown_ad_has_a_reason():
    assert snapshot([make_campaign()], [make_ad()]).why_not(REQUEST, BANNER, "a9", NOON_US)[0].startswith("unknown")


def some(values):
    return st.frozensets(st.sampled_from(values), max_size=2)


targetings = st.builds(
    Targeting,
    countries=some(["USA", "DEU"]),
    sites=some(["a.test", "b.test"]),
    segments=some(["s", "t"]),
    hours=some([11, 12, 13]),
)
campaign_fields = st.fixed_dictionaries(
    {
        "status": st.sampled_from(["active", "active", "paused"]),
        "currency": st.sampled_from(["USD", "EUR"]),
        "zone": st.sampled_from(["UTC", "Europe/Berlin"]),
        "ends_at_us": st.sampled_from([0, NOON_US]),
        "targeting": targetings,
    }
)
ad_fields = st.fixed_dictionaries(
    {
        "status": st.sampled_from(["active", "active", "ended"]),
        "iab_categories": some(["IAB1", "IAB1-2", "IAB2"]).map(tuple),
        "adomain": st.sampled_from(["x.test", "y.x.test", "z.test"]),
        "sizes": some([(300, 250), (728, 90)]).map(tuple),
        "attributes": some([1, 2]),
        "image_url": st.sampled_from(["", "http://x.test/a.png", "https://x.test/a.png"]),
        "landing_url": st.sampled_from(["https://www.x.test/a", "https://w.test", "http://w.test"]),
    }
)
requests = st.builds(
    Request,
    request_id=st.just("r"),
    imps=st.just(()),
    country=st.sampled_from(["", "USA", "DEU"]),
    site=st.sampled_from(["a.test", "c.test"]),
    currencies=st.sampled_from([("USD",), ("EUR", "USD")]),
    blocked_categories=some(["IAB1", "IAB1-2"]),
    allowed_categories=some(["IAB1", "IAB2", "IAB3"]),
    blocked_domains=some(["x.test", "z.test"]),
)
imps = st.builds(
    Impression,
    imp_id=st.just("1"),
    sizes=some([(300, 250), (1, 1)]).map(tuple),
    is_secure=st.booleans(),
    blocked_attributes=some([1]),
)


def is_eligible(campaign: Campaign, ad: Ad, request: Request, imp: Impression, segments) -> bool:
    """The rules in scalar form, for a single ad."""
    targeting = campaign.targeting
    hour = datetime.fromtimestamp(NOON_US / 1e6, UTC).astimezone(ZoneInfo(campaign.zone)).hour
    categories = {*ad.iab_categories, *(code.split("-")[0] for code in ad.iab_categories)}
    hosts = (ad.adomain, urlsplit(ad.landing_url).hostname.removeprefix("www."))
    return (
        campaign.status == ad.status == "active"
        and not campaign.ends_at_us
        and campaign.currency in request.currencies
        and (not targeting.countries or request.country in targeting.countries)
        and (not targeting.sites or request.site in targeting.sites)
        and (not targeting.segments or bool(targeting.segments & set(segments)))
        and (not targeting.hours or hour in targeting.hours)
        and not categories & request.blocked_categories
        and (not request.allowed_categories or bool(categories))
        and (
            not request.allowed_categories
            or all({code, code.split("-")[0]} & request.allowed_categories for code in ad.iab_categories)
        )
        and not any(f".{host}".endswith(f".{domain}") for host in hosts for domain in request.blocked_domains)
        and not ad.attributes & imp.blocked_attributes
        and (not imp.sizes or not ad.sizes or bool(set(imp.sizes) & set(ad.sizes)))
        and (not imp.is_secure or not {ad.image_url[:5], ad.landing_url[:5]} & {"http:"})
    )


@given(
    st.lists(campaign_fields, min_size=1, max_size=4), st.lists(ad_fields, max_size=8), requests, imps, some(["s", "u"])
)
def test_array_rules_equal_scalar_rules(campaigns, ads, request_, imp, segments):
    campaigns = [make_campaign(f"c{row}", **fields) for row, fields in enumerate(campaigns)]
    ads = [make_ad(f"a{row}", campaign_id=f"c{row % len(campaigns)}", **fields) for row, fields in enumerate(ads)]
    catalogue = snapshot(campaigns, ads)
    ok_A, excluded = catalogue.eligible(request_, imp, NOON_US, segments)
    assert ok_A.tolist() == [
        is_eligible(campaigns[catalogue.campaign_A[row]], ad, request_, imp, segments) for row, ad in enumerate(ads)
    ]
    assert ok_A.tolist() == [not catalogue.why_not(request_, imp, ad.ad_id, NOON_US, segments) for ad in ads]
    assert sum(excluded.values()) + ok_A.sum() == len(ads)


@given(st.lists(some(["a", "b", "c"]), max_size=60), some(["a", "b", "z"]))
def test_value_index_finds_rows_of_rare_and_of_frequent_values(values_of_rows, values):
    has_N = columns.ValueIndex([*values_of_rows, {"rare"}]).any_of({*values, "rare"})
    assert has_N.tolist() == [bool(row & values) for row in values_of_rows] + [True]


def test_refresh_reads_committed_changes(campaign_store, reader):
    empty = eligibility.load(reader)
    assert empty.eligible(REQUEST, BANNER, NOON_US)[0].shape == (0,)
    campaign_store.put_campaign(make_campaign())
    campaign_store.put_ad(make_ad())
    campaign_store.put_ad(make_ad("a2"))
    first = eligibility.refresh(empty, reader)
    assert first.live_A.tolist() == [True, True]
    assert eligibility.refresh(first, reader) is first

    campaign_store.set_ad_status("a1", "paused")
    second = eligibility.refresh(first, reader)
    assert second.live_A.tolist() == second.eligible(REQUEST, BANNER, NOON_US)[0].tolist() == [False, True]
    assert second.ads[0].status == "paused"
    assert second.columns is first.columns and first.live_A.all()  # a snapshot in use does not change

    campaign_store.set_campaign_status("c1", "paused")
    assert not eligibility.refresh(second, reader).live_A.any()
    campaign_store.set_campaign_status("c1", "active")
    campaign_store.put_ad(make_ad("a0", sizes=((728, 90),)))
    campaign_store.put_ad(make_ad("a2", sizes=((728, 90),)))
    third = eligibility.refresh(second, reader)
    assert third.row_of_ad == {"a1": 0, "a2": 1, "a0": 2}
    assert third.eligible(REQUEST, BANNER, NOON_US)[0].tolist() == [False, False, False]
    fresh = eligibility.load(reader)
    assert (fresh.ads, fresh.campaigns, fresh.version) == (third.ads, third.campaigns, third.version)


def large_catalogue(campaign_store, count):
    targeted = [frozenset(), frozenset({"USA"}), frozenset({"DEU", "FRA"})]
    campaigns = [
        make_campaign(f"c{n}", targeting=Targeting(countries=targeted[n % 3], hours=frozenset(range(20))))
        for n in range(30)
    ]
    ads = [
        make_ad(
            f"a{n}",
            campaign_id=f"c{n % 30}",
            iab_categories=(f"IAB{n % 26}-1",),
            sizes=((300, 250), (n % 9 + 1, 90)),
        )
        for n in range(count)
    ]
    campaign_store.add(campaigns, ads)


def cost_of(function):
    """(function calls, peak of allocated bytes) of a call."""
    calls = Counter()
    sys.setprofile(lambda frame, event, argument: calls.update([event]))
    try:
        function()
    finally:
        sys.setprofile(None)
    tracemalloc.start()
    try:
        function()
        return calls.total(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_eligibility_calls_no_function_for_each_ad(campaign_store, reader):
    """The number of calls is that of a catalogue a tenth as large; memory is a few bytes an ad."""
    request = dataclasses.replace(
        REQUEST,
        country="USA",
        blocked_categories=frozenset({"IAB7", "IAB25", "IAB26"}),
        blocked_domains=frozenset(f"bad{n}.test" for n in range(100)),
    )
    large_catalogue(campaign_store, 400)
    small = eligibility.load(reader)
    large_catalogue(campaign_store, 4_000)
    large = eligibility.refresh(small, reader)
    assert len(large.ads) == 10 * len(small.ads) and 0 < large.eligible(request, BANNER, NOON_US)[0].sum() < 4_000
    small_calls, _ = cost_of(lambda: small.eligible(request, BANNER, NOON_US))
    calls, peak_bytes = cost_of(lambda: large.eligible(request, BANNER, NOON_US))
    assert calls == small_calls
    assert peak_bytes < 8 * 4_000


def test_catalogue_is_loaded_with_a_fixed_number_of_statements(campaign_store, reader):
    counts = []
    for count in (10, 300):
        large_catalogue(campaign_store, count)
        statements = []
        reader.set_trace_callback(statements.append)
        eligibility.load(reader)
        reader.set_trace_callback(None)
        counts.append(len(statements))
    assert counts == [7, 7], statements
