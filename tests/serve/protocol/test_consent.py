"""Permissions of a request from its signals, against the rules of the specifications."""

from __future__ import annotations

import itertools

import pytest

from leadre.serve.protocol.consent import has_newer_policy, permissions
from leadre.types import Permissions, Signals
from leadre.units import US_PER_S

from .consent_strings import MAY_2026_S, OURS, encode, gpp_string, us_section

NOW_US = 1_780_000_000 * US_PER_S  # 2026-05-28T20:26:40Z
ALL = Permissions(store_id=True, contextual=True, add_to_profile=True, personalise=True, measure=True)
NONE = Permissions()
CONTEXT = Permissions(contextual=True)
WHOLE = encode({1, 2, 3, 4, 7}, (), {OURS})


def permitted(*, gdpr=True, consent=WHOLE, vendor_id=OURS, interests=(), has_dsa=False, **fields):
    settings = {name: fields.pop(name) for name in ("when_absent", "by_country") if name in fields}
    return permissions(
        Signals(gdpr=gdpr, consent=consent, **fields),
        NOW_US,
        vendor_id=vendor_id,
        legitimate_interests=interests,
        has_dsa=has_dsa,
        **{"when_absent": False} | settings,
    )


@pytest.mark.parametrize("purposes", [set(c) for n in range(6) for c in itertools.combinations((1, 2, 3, 4, 7), n)])
def test_each_purpose_grants_its_permission(purposes):
    expected = Permissions(
        store_id=1 in purposes,
        contextual=2 in purposes,
        add_to_profile=3 in purposes,
        personalise=4 in purposes,
        measure=7 in purposes,
    )
    assert permitted(consent=encode(purposes, (), {OURS})) == expected


def test_purposes_need_the_vendor_consent_of_the_bidder():
    assert permitted() == ALL
    assert permitted(vendor_id=OURS + 1) == NONE
    assert permitted(vendor_id=0) == NONE
    assert permitted(consent=encode({1, 2, 3, 4, 7}, (), {OURS}, as_ranges=True), vendor_id=0) == NONE


@pytest.mark.parametrize(
    "consent",
    [
        "?",
        WHOLE[:-4],
        WHOLE + ".!",
        encode({1, 2, 3, 4, 7}, (), {OURS}, is_service_specific=False),
        encode({1, 2, 3, 4, 7}, (), {OURS}, policy=3),
        encode({1, 2, 3, 4, 7}, (), {OURS}, created_s=MAY_2026_S),
        encode({1, 2, 3, 4, 7}, (), {OURS}, created_s=MAY_2026_S, disclosed={OURS + 1}),
        encode({1, 2, 3, 4, 7}, (), {OURS}, created_s=MAY_2026_S + 30 * 86_400, disclosed={OURS}),
    ],
)
def test_string_that_the_framework_calls_invalid_grants_nothing(consent):
    assert permitted(consent=consent) == NONE
    assert permitted(consent=encode({1, 2, 3, 4, 7}, (), {OURS}, created_s=MAY_2026_S, disclosed={OURS})) == ALL


@pytest.mark.parametrize(("kind", "is_personal"), [(0, False), (1, True), (2, False), (3, False)])
def test_restriction_of_purpose_4_decides_on_personal_ads(kind, is_personal):
    consent = encode({1, 2, 3, 4, 7}, (), {OURS}, restrictions=[(4, kind, {OURS}), (2, kind, {OURS + 1})])
    assert permitted(consent=consent).personalise == is_personal
    assert permitted(consent=consent).contextual


def test_legitimate_interest_counts_if_registered():
    consent = encode((), {2, 3, 4, 7}, (), {OURS})
    assert permitted(consent=consent) == NONE
    assert permitted(consent=consent, interests=(2,)) == CONTEXT
    assert permitted(consent=consent, interests=(1, 2, 3, 4, 7)) == Permissions(contextual=True, measure=True)
    no_vendor_bit = encode((), {2}, {OURS}, ())  # the vendor bit of consents does not count
    assert permitted(consent=no_vendor_bit, interests=(2,)) == NONE
    assert permitted(consent=encode((), {2}, (), {OURS}, [(2, 1, {OURS})]), interests=(2,)) == NONE
    assert permitted(consent=encode((), {2}, (), {OURS}, [(2, 2, {OURS})]), interests=(2,)) == CONTEXT


def test_absent_gdpr_signal_follows_the_settings():
    assert permitted(gdpr=None, consent="") == ALL
    assert permitted(gdpr=None, consent="", when_absent=True) == NONE
    assert permitted(gdpr=None, when_absent=True) == ALL
    assert permitted(gdpr=None, consent="?") == NONE  # a TC string implies that GDPR applies
    assert permitted(gdpr=False, consent="?", when_absent=True, in_gdpr_country=True) == ALL
    assert permitted(gdpr=None, consent="", in_gdpr_country=True) == NONE
    assert permitted(gdpr=None, in_gdpr_country=True) == ALL
    assert permitted(gdpr=None, consent="", in_gdpr_country=True, by_country=False) == ALL
    assert permitted(gdpr=None, consent="", in_gdpr_country=True, by_country=False, when_absent=True) == NONE


def test_section_2_of_gpp_is_a_tc_string_and_means_the_gdpr():
    same = {"gpp": gpp_string({2: WHOLE}), "gpp_sid": (2,)}
    for gdpr in (None, True, False):
        assert permitted(gdpr=gdpr, **same) == permitted(gdpr=gdpr, consent="", **same) == ALL
        assert permitted(gdpr=gdpr, consent="", gpp_sid=(2,)) == NONE
        assert permitted(gdpr=gdpr, gpp_sid=(2,)) == ALL, "the string stands in its own field"
    refused = gpp_string({2: encode({2}, (), {OURS})})
    assert permitted(gpp=refused, gpp_sid=(2,)) == permitted(consent="", gpp=refused, gpp_sid=(2,)) == CONTEXT
    for damaged in ("?", gpp_string({2: WHOLE[:-4]}), gpp_string({2: WHOLE + ".!"}), gpp_string({7: us_section(7)})):
        assert permitted(gpp=damaged, gpp_sid=(2,)) == permitted(consent="", gpp=damaged, gpp_sid=(2,)) == NONE
    assert permitted(gpp=gpp_string({2: WHOLE, 8: us_section(8)}), gpp_sid=(2, 8)) == ALL
    assert permitted(gpp=gpp_string({2: WHOLE, 8: us_section(8, SaleOptOut=1)}), gpp_sid=(2, 8)) == CONTEXT
    assert permitted(gpp_sid=(1,)) == ALL and permitted(consent="", gdpr=False, gpp_sid=(1,)) == NONE


LIMITS = [
    {"gpp": "DBABMA~1"},
    {"gpp": gpp_string({7: us_section(7)})},
    {"gpp": gpp_string({7: us_section(7, SaleOptOut=1)}), "gpp_sid": (7,)},
    {"gpp": gpp_string({7: us_section(7, gpc=True)}), "gpp_sid": (7,)},
    {"gpp": gpp_string({6: "1YYN"}), "gpp_sid": (6,)},
    {"gpp_sid": (7,)},
    {"us_privacy": "1YYN"},
    {"us_privacy": "1NNN"},
    {"us_privacy": "?"},
    {"gpc": True},
    {"coppa": True},
    {"lmt": True},
    {"dnt": True},
]
GRANTS = [
    {"gpp": gpp_string({7: us_section(7)}), "gpp_sid": (7,)},
    {"gpp": gpp_string({7: us_section(7, gpc=False), 6: "1YNN"}), "gpp_sid": (7, 6)},
    {"gpp_sid": (-1,)},
    {"us_privacy": "1---"},
    {"us_privacy": "1YNY"},
]


@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_other_signals_permit_contextual_ads_only(limit):
    assert permitted(gdpr=False, **limit) == CONTEXT
    assert permitted(**limit) == CONTEXT
    assert permitted(consent=encode({1, 3, 4, 7}, (), {OURS}), **limit) == NONE


@pytest.mark.parametrize("grant", GRANTS, ids=str)
def test_signals_that_permit_personal_ads_take_nothing_away(grant):
    assert permitted(gdpr=None, consent="", **grant) == permitted(**grant) == ALL
    assert permitted(consent=encode({2}, (), {OURS}), **grant) == CONTEXT


def test_missing_dsa_object_permits_nothing():
    assert permitted(dsa_required=1) == ALL
    assert permitted(dsa_required=2) == permitted(dsa_required=3) == NONE
    assert permitted(dsa_required=3, has_dsa=True) == ALL


def test_newer_policy_is_read_and_noticed():
    newer = encode({1, 2, 3, 4, 7}, (), {OURS}, policy=6)
    assert permitted(consent=newer) == ALL
    assert has_newer_policy(Signals(consent=newer), OURS) and not has_newer_policy(Signals(consent=WHOLE), OURS)
    in_gpp = Signals(gpp=gpp_string({2: newer}), gpp_sid=(2,))
    assert has_newer_policy(in_gpp, OURS) and not has_newer_policy(Signals(consent="?"), OURS)
    assert not has_newer_policy(Signals(), OURS)
