"""TC strings: decoding, against IAB Tech Lab's library and an encoder of the tests, and the rules of TCF 2.3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre.serve.protocol import tcf
from leadre.serve.protocol.tcf import Consent, MalformedConsent, decode
from leadre.units import US_PER_S

from .consent_strings import JANUARY_2026_S, MAY_2026_S, OURS, Encoder, encode

GOLDEN = [json.loads(line) for line in (Path(__file__).parent / "golden/tcstrings.jsonl").read_text().splitlines()]
NOW_US = 1_780_000_000 * US_PER_S  # 2026-05-28T20:26:40Z
DAY_S = 86_400


def assert_reads(golden):
    """The decoder reads a string as the library does (`golden`, a line of iab.mjs)."""
    for vendor in golden["vendors"]:
        read = decode(golden["text"], vendor["id"])
        assert read.written_s == max(golden["created"], golden["updated"])
        assert (read.policy, read.is_service_specific) == (golden["policy"], golden["specific"])
        assert sorted(read.purpose_consents) == golden["consents"]
        assert sorted(read.purpose_interests) == golden["interests"]
        assert read.has_vendor_consent == vendor["consent"], vendor
        assert read.has_vendor_interest == vendor["interest"], vendor
        assert (read.is_disclosed or False) == vendor["disclosed"], vendor
        kinds = [read.forbidden, read.consent_only, read.interest_only]
        restrictions = [{purpose for purpose, kind in vendor["restrictions"] if kind == number} for number in range(3)]
        assert kinds == restrictions, vendor


def test_golden_strings_have_each_encoding_segment_and_restriction():
    vendors = [vendor for golden in GOLDEN for vendor in golden["vendors"]]
    assert {kind for vendor in vendors for _, kind in vendor["restrictions"]} == {0, 1, 2}
    assert {len(golden["text"].split(".")) for golden in GOLDEN} == {1, 2, 3, 4}
    assert {golden["policy"] for golden in GOLDEN} >= {2, 5, 6}


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["text"][-12:])
def test_decode_equals_iabtcf(golden):
    assert_reads(golden)


PURPOSES = st.sets(st.integers(1, 24))
VENDORS = st.sets(st.integers(1, 9000), max_size=6) | st.sets(st.integers(1, 60), max_size=50)
RESTRICTIONS = st.lists(st.tuples(st.integers(1, 24), st.integers(0, 3), VENDORS), max_size=4)
SECONDS = st.integers(0, (1 << 36) // 10)


@given(PURPOSES, PURPOSES, VENDORS, VENDORS, RESTRICTIONS, st.booleans(), SECONDS, SECONDS, st.data())
def test_decode_inverts_encode(purposes, interests, vendors, objected, restrictions, as_ranges, created, updated, data):
    disclosed = data.draw(st.none() | VENDORS)
    policy = data.draw(st.integers(0, 63))
    is_specific = data.draw(st.booleans())
    text = encode(
        purposes,
        interests,
        vendors,
        objected,
        restrictions,
        as_ranges,
        created_s=created,
        updated_s=updated,
        policy=policy,
        is_service_specific=is_specific,
        disclosed=disclosed,
        allowed=data.draw(st.none() | VENDORS),
        custom=data.draw(st.none() | st.integers(0, 63)),
    )
    ours = data.draw(st.sampled_from(sorted(vendors | objected | {1, 9000})) | st.integers(1, 65_535))
    of_kind = [{purpose for purpose, kind, ids in restrictions if ours in ids and kind == n} for n in range(4)]
    assert decode(text, ours) == Consent(
        written_s=max(created, updated),
        policy=policy,
        is_service_specific=is_specific,
        purpose_consents=frozenset(purposes),
        purpose_interests=frozenset(interests),
        has_vendor_consent=ours in vendors,
        has_vendor_interest=ours in objected,
        forbidden=frozenset(of_kind[0] | of_kind[3]),
        consent_only=frozenset(of_kind[1]),
        interest_only=frozenset(of_kind[2]),
        is_disclosed=None if disclosed is None else ours in disclosed,
    )


WHOLE = encode({1, 2, 3, 4, 7}, (), {OURS}, disclosed={OURS}, allowed={OURS}, custom=3)
CORE, DISCLOSED, ALLOWED, PUBLISHER = WHOLE.split(".")


@given(
    st.text(max_size=200)
    | st.text("CQdWTo-_9A.", max_size=400)
    | st.builds(lambda n: WHOLE[:n], st.integers(0, len(WHOLE)))
    | st.builds(lambda n, c: WHOLE[:n] + c + WHOLE[n + 1 :], st.integers(0, len(WHOLE)), st.sampled_from("A_.~= \x00é"))
)
def test_any_text_is_decoded_or_malformed(text):
    read = tcf.read(text, OURS)
    try:
        assert decode(text, OURS) == read
    except MalformedConsent:
        assert read is None


MALFORMED = [
    "",
    "?",
    CORE[: len(CORE) // 2],  # cut short
    CORE + "=",
    CORE.replace("A", "+", 1),
    CORE[:20] + "é" + CORE[21:],
    "." + CORE,
    encode({1, 2, 3, 4, 7}, (), {OURS}, version=1),
    encode({1, 2, 3, 4, 7}, (), {OURS}, version=3),
    CORE + "A" * 8192,  # too long
    CORE + "AAAB",  # a bit that no field has
    CORE + ".",  # an empty segment
    f"{CORE}.{DISCLOSED}.",
    f"{CORE}.{CORE}",
    f"{CORE}.{DISCLOSED[:2]}",
    f"{CORE}.{DISCLOSED}!",
    f"{CORE}.{DISCLOSED}AAAB",
    f"{CORE}.{DISCLOSED}.{DISCLOSED}",
    f"{CORE}.{DISCLOSED}.{ALLOWED[:2]}",
    f"{CORE}.{DISCLOSED}.{PUBLISHER[:-4]}",
    f"{CORE}.{DISCLOSED}.gAAA",  # a segment of type 4
    f"{CORE}.{DISCLOSED} ",
]


@pytest.mark.parametrize("text", MALFORMED)
def test_string_with_garbage_in_any_segment_is_malformed(text):
    assert decode(WHOLE, OURS).has_vendor_consent
    with pytest.raises(MalformedConsent):
        decode(text, OURS)
    assert tcf.read(text, OURS) is None


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


def test_work_is_bounded_by_the_length_of_the_string():
    """Lists that declare 4,095 ranges, or 4,095 restrictions, are read to the end of the string and no further."""
    encoder = Encoder()
    encoder.bits = "000010" + "0" * 207 + f"{9000:016b}" + "1" + "1" * 12 + ("0" + f"{7:016b}") * 2800
    with pytest.raises(MalformedConsent, match="ends at bit"):
        decode(encoder.text()[: tcf.MAX_CHARACTERS], OURS)
    nested = Encoder()
    nested.bits = "000010" + "0" * 207 + "0" * 34 + "1" * 12 + ("000010" + "00" + "0" * 12) * 2400
    with pytest.raises(MalformedConsent, match="ends at bit"):
        decode(nested.text()[: tcf.MAX_CHARACTERS], OURS)


def test_no_long_text_is_kept_in_memory():
    tcf._read.cache_clear()
    assert tcf.read("C" * 100_000, OURS) is None
    assert tcf._read.cache_info().currsize == 0
    for number in range(2 * tcf.CACHED):
        tcf.read(f"C{number}", OURS)
    assert tcf._read.cache_info().currsize == tcf.CACHED


def is_valid(**fields):
    return decode(encode({1}, (), {OURS}, **fields), OURS).is_valid(NOW_US)


def test_string_made_from_march_2026_on_has_to_disclose_the_vendor():
    march_s = 1_772_323_200  # 2026-03-01T00:00:00Z
    assert is_valid(created_s=march_s - 1) and not is_valid(created_s=march_s)
    assert is_valid(created_s=MAY_2026_S, disclosed={OURS})
    assert not is_valid(created_s=MAY_2026_S, disclosed={OURS + 1})
    assert not is_valid(created_s=MAY_2026_S, disclosed=())
    assert not is_valid(created_s=MAY_2026_S, allowed={OURS}, custom=1)
    assert not is_valid(created_s=JANUARY_2026_S, updated_s=MAY_2026_S)
    assert not is_valid(created_s=JANUARY_2026_S, disclosed={OURS + 1})


def test_string_that_is_not_service_specific_is_invalid():
    assert is_valid() and not is_valid(is_service_specific=False)


def test_string_from_the_future_is_invalid_after_a_day():
    now_s = NOW_US // US_PER_S
    assert is_valid(created_s=now_s + DAY_S, disclosed={OURS})
    assert not is_valid(created_s=now_s + DAY_S + 1, disclosed={OURS})
    assert not is_valid(updated_s=now_s + DAY_S + 1, disclosed={OURS})


def test_policy_of_tcf_22_is_needed_after_its_deadline():
    deadline_s = 1_700_524_800  # 2023-11-21T00:00:00Z
    assert is_valid(created_s=deadline_s - 1, policy=2)
    assert not is_valid(created_s=deadline_s, policy=3)
    assert all(is_valid(created_s=deadline_s, policy=policy) for policy in (4, 5, 6, 63))


@pytest.mark.parametrize(
    ("kind", "granted", "granted_with_interest"),
    [(0, {4}, {4}), (1, {2, 4}, {2, 4}), (2, {4}, {2, 4}), (3, {4}, {4})],
)
def test_restriction_takes_away_the_basis_of_its_type(kind, granted, granted_with_interest):
    """Consent and legitimate interest are there for purpose 2; the publisher restricts it."""
    text = encode({2, 4}, {2, 4, 7}, {OURS}, {OURS}, restrictions=[(2, kind, {OURS}), (4, 0, {OURS + 1})])
    assert decode(text, OURS).granted(frozenset()) == granted
    assert decode(text, OURS).granted(frozenset({2})) == granted_with_interest


def test_restriction_to_consent_voids_a_legitimate_interest_alone():
    text = encode((), {2, 7}, (), {OURS}, restrictions=[(2, 1, {OURS})])
    assert decode(text, OURS).granted(frozenset({2, 7})) == {7}
    both = encode({2}, {2}, {OURS}, {OURS}, restrictions=[(2, 1, {OURS}), (2, 2, {OURS})])
    assert decode(both, OURS).granted(frozenset({2})) == set()
