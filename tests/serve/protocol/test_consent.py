"""Permissions of a request. The decoder is compared with @iabtcf/core (golden/tcstrings.json, which make_tcstrings.mjs
writes) and with an encoder in this file."""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre.serve.protocol.consent import MalformedConsent, decode, permissions
from leadre.types import Permissions, Signals

OURS = 755
ALL = Permissions(store_id=True, contextual=True, add_to_profile=True, personalise=True, measure=True)
NONE = Permissions()
CONTEXT = Permissions(contextual=True)
GOLDEN = json.loads((Path(__file__).parent / "golden/tcstrings.json").read_text())


class Encoder:
    """Bits from the left, as base64url without padding."""

    def __init__(self):
        self.bits = ""

    def put(self, width, value):
        assert 0 <= value < 1 << width
        self.bits += format(value, f"0{width}b") if width else ""

    def flags(self, width, those_set):
        self.bits += "".join("01"[number in those_set] for number in range(1, width + 1))

    def ranges(self, ranges):
        self.put(12, len(ranges))
        for first, last in ranges:
            self.put(1, int(last > first))
            self.put(16, first)
            if last > first:
                self.put(16, last)

    def vendors(self, ids, as_ranges):
        most = max(ids, default=0)
        self.put(16, most)
        self.put(1, int(as_ranges))
        if as_ranges:
            self.ranges(runs(ids))
        else:
            self.flags(most, ids)

    def text(self):
        bits = self.bits + "0" * (-len(self.bits) % 24)
        return base64.urlsafe_b64encode(int(bits, 2).to_bytes(len(bits) // 8, "big")).decode().rstrip("=")


def runs(ids):
    """Runs of consecutive IDs, as [first, last]."""
    ranges = []
    for number in sorted(ids):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges


def encode(purposes=(), interests=(), vendors=(), vendor_interests=(), restrictions=(), as_ranges=False, version=2):
    encoder = Encoder()
    encoder.put(6, version)
    encoder.bits += "1" * 146  # dates, CMP, language, list, policy, special features: not ours to read
    encoder.flags(24, purposes)
    encoder.flags(24, interests)
    encoder.put(13, 0)
    encoder.vendors(vendors, as_ranges)
    encoder.vendors(vendor_interests, not as_ranges)
    encoder.put(12, len(restrictions))
    for purpose, kind, ids in restrictions:
        encoder.put(6, purpose)
        encoder.put(2, kind)
        encoder.ranges(runs(ids))
    return encoder.text()


def test_golden_strings_have_both_encodings_and_restrictions():
    assert len(GOLDEN) >= 50
    assert any(vendor["restricted"] for golden in GOLDEN for vendor in golden["vendors"])
    # bit 229: ranges or flags
    kinds = {format(int.from_bytes(base64.urlsafe_b64decode(g["text"][:40]), "big"), "0240b")[229] for g in GOLDEN}
    assert kinds == {"0", "1"}


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["text"][-12:])
def test_decode_equals_iabtcf(golden):
    for vendor in golden["vendors"]:
        read = decode(golden["text"], vendor["id"])
        assert sorted(read.purpose_consents) == golden["consents"]
        assert sorted(read.purpose_interests) == golden["interests"]
        assert read.has_vendor_consent == vendor["consent"], vendor
        assert read.has_vendor_interest == vendor["interest"], vendor
        assert sorted(read.restricted) == vendor["restricted"], vendor


PURPOSES = st.sets(st.integers(1, 24))
VENDORS = st.sets(st.integers(1, 9000), max_size=6) | st.sets(st.integers(1, 60), max_size=50)
RESTRICTIONS = st.lists(st.tuples(st.integers(1, 24), st.integers(0, 3), VENDORS), max_size=4)


@given(PURPOSES, PURPOSES, VENDORS, VENDORS, RESTRICTIONS, st.booleans(), st.data())
def test_decode_inverts_encode(purposes, interests, vendors, vendor_interests, restrictions, as_ranges, data):
    text = encode(purposes, interests, vendors, vendor_interests, restrictions, as_ranges)
    named = sorted(vendors | vendor_interests | {1, 9000})
    ours = data.draw(st.sampled_from(named) | st.integers(1, 65_535))
    read = decode(text + data.draw(st.sampled_from(["", ".YAAA", ".!"])), ours)
    assert read.purpose_consents == purposes
    assert read.purpose_interests == interests
    assert read.has_vendor_consent == (ours in vendors)
    assert read.has_vendor_interest == (ours in vendor_interests)
    assert read.restricted == {purpose for purpose, _, ids in restrictions if ours in ids}


WHOLE = encode({1, 2, 3, 4, 7}, (), {OURS})


@given(
    st.text(max_size=200) | st.text("CQdWTo-_9A", max_size=400) | st.builds(lambda n: WHOLE[:n], st.integers(0, 300))
)
def test_any_text_is_decoded_or_malformed(text):
    try:
        decode(text, OURS)
    except MalformedConsent:
        assert permissions(Signals(gdpr=True, consent=text), vendor_id=OURS, when_absent=False) == NONE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "?",
        WHOLE[: len(WHOLE) // 2],  # cut short
        WHOLE + "=",
        WHOLE.replace("A", "+", 1),
        WHOLE[:20] + "é" + WHOLE[21:],
        "." + WHOLE,
        encode({1, 2, 3, 4, 7}, (), {OURS}, version=1),
        encode({1, 2, 3, 4, 7}, (), {OURS}, version=3),
        WHOLE + "A" * 8192,  # too long
    ],
)
def test_malformed_string_is_a_refusal(text):
    with pytest.raises(MalformedConsent):
        decode(text, OURS)
    assert permissions(Signals(gdpr=True, consent=text), vendor_id=OURS, when_absent=False) == NONE


def one_range(first, last, most):
    """A string in which vendors ``first`` to ``last`` have consent, and the declared highest ID is ``most``."""
    encoder = Encoder()
    encoder.bits = "000010" + "0" * 207
    encoder.put(16, most)
    encoder.put(1, 1)
    encoder.put(12, 1)
    encoder.put(1, 1)
    encoder.put(16, first)
    encoder.put(16, last)
    encoder.put(17 + 12, 0)
    return encoder.text()


def test_range_includes_its_ends_up_to_the_highest_id():
    text = one_range(0, 900, most=800)
    vendors = [vendor for vendor in (0, 1, 800, 801, 901) if decode(text, vendor).has_vendor_consent]
    assert vendors == [1, 800]
    with pytest.raises(MalformedConsent, match="starts at 800 and ends at 700"):
        decode(one_range(800, 700, most=900), OURS)


@pytest.mark.parametrize("purposes", [set(c) for n in range(6) for c in itertools.combinations((1, 2, 3, 4, 7), n)])
def test_each_purpose_grants_its_permission(purposes):
    expected = Permissions(
        store_id=1 in purposes,
        contextual=2 in purposes,
        add_to_profile=3 in purposes,
        personalise=4 in purposes,
        measure=7 in purposes,
    )
    signals = Signals(gdpr=True, consent=encode(purposes, (), {OURS}))
    assert permissions(signals, vendor_id=OURS, when_absent=False) == expected


def permitted(*, gdpr=True, consent=WHOLE, vendor_id=OURS, when_absent=False, interests=(), has_dsa=False, **signals):
    return permissions(
        Signals(gdpr=gdpr, consent=consent, **signals),
        vendor_id=vendor_id,
        when_absent=when_absent,
        legitimate_interests=interests,
        has_dsa=has_dsa,
    )


def test_purposes_need_the_vendor_consent_of_the_bidder():
    assert permitted() == ALL
    assert permitted(vendor_id=OURS + 1) == NONE
    assert permitted(vendor_id=0) == NONE
    assert permitted(consent=encode({1, 2, 3, 4, 7}, (), {OURS}, as_ranges=True), vendor_id=0) == NONE


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_restricted_purpose_is_not_granted(kind):
    consent = encode({1, 2, 3, 4, 7}, (), {OURS}, restrictions=[(4, kind, {OURS}), (2, kind, {OURS + 1})])
    assert permitted(consent=consent) == Permissions(store_id=True, contextual=True, add_to_profile=True, measure=True)


def test_legitimate_interest_counts_if_registered():
    consent = encode((), {2, 3, 4, 7}, (), {OURS})
    assert permitted(consent=consent) == NONE
    assert permitted(consent=consent, interests=(2,)) == CONTEXT
    assert permitted(consent=consent, interests=(1, 2, 3, 4, 7)) == Permissions(contextual=True, measure=True)
    assert (
        permitted(consent=encode((), {2}, {OURS}, ()), interests=(2,)) == NONE
    )  # the vendor bit of consents does not count
    assert permitted(consent=encode((), {2}, (), {OURS}, [(2, 1, {OURS})]), interests=(2,)) == NONE


def test_absent_gdpr_signal_follows_the_setting():
    assert permitted(gdpr=None, consent="") == ALL
    assert permitted(gdpr=None, consent="", when_absent=True) == NONE
    assert permitted(gdpr=None, when_absent=True) == ALL
    assert permitted(gdpr=None, consent="?") == NONE  # a TC string implies that GDPR applies
    assert permitted(gdpr=None, consent="", gpp_sid=(2,)) == NONE
    assert permitted(gdpr=False, consent="?", when_absent=True) == ALL


LIMITS = [
    {"gpp": "DBABMA~1"},
    {"gpp_sid": (7,)},
    {"us_privacy": "1YNN"},
    {"gpc": True},
    {"coppa": True},
    {"lmt": True},
    {"dnt": True},
]


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: next(iter(limit)))
def test_other_signals_permit_contextual_ads_only(limit):
    assert permitted(gdpr=False, **limit) == CONTEXT
    assert permitted(**limit) == CONTEXT
    assert permitted(consent=encode({1, 3, 4, 7}, (), {OURS}), **limit) == NONE


def test_missing_dsa_object_permits_nothing():
    assert permitted(dsa_required=1) == ALL
    assert permitted(dsa_required=2) == permitted(dsa_required=3) == NONE
    assert permitted(dsa_required=3, has_dsa=True) == ALL
