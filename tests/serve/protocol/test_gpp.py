"""GPP and US privacy strings, against IAB Tech Lab's library and an encoder of the tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre.serve.protocol import gpp
from leadre.serve.protocol.bits import MalformedConsent
from leadre.serve.protocol.gpp import decode, permits, us_privacy_permits

from .consent_strings import (
    US_FIELDS,
    WITH_SENSITIVE_SUBSECTION,
    WITHOUT_GPC,
    Encoder,
    encode,
    gpp_string,
    permits_us,
    us_section,
)

GOLDEN = [json.loads(line) for line in (Path(__file__).parent / "golden/gppstrings.jsonl").read_text().splitlines()]
SECTIONS = sorted(US_FIELDS)


def assert_permits(golden):
    """The decoder judges each section of a string by the fields that the library reads (`golden`, of iab.mjs)."""
    assert sorted(decode(golden["text"])) == sorted(map(int, golden["sections"]))
    for number, fields in golden["sections"].items():
        section = int(number)
        if isinstance(fields, str):
            assert gpp.section_of(golden["text"], section) == fields
        else:
            assert permits(golden["text"], (section,)) == permits_us(fields), (number, fields)


def test_golden_strings_have_each_section_with_both_results():
    results = {(int(n), permits_us(f)) for g in GOLDEN for n, f in g["sections"].items() if isinstance(f, dict)}
    assert len(results) >= 40 and {section for section, _ in results} == set(range(7, 28))
    assert {"2", "6"} <= {number for golden in GOLDEN for number in golden["sections"]}


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["text"][-12:])
def test_sections_are_judged_as_their_fields_in_iabgpp(golden):
    assert_permits(golden)


@pytest.mark.parametrize(("section", "version"), SECTIONS)
def test_each_field_of_each_section_can_forbid_personal_ads(section, version):
    """Each value of each field, alone: the second implementation and the decoder agree."""
    forbidden = 0
    for name, count in US_FIELDS[section, version]:
        for position in range(count):
            for value in range(4):
                values = [0 if name.startswith(("Sensitive", "Known")) and "Notice" not in name else 1] * count
                values[position] = value
                text = gpp_string({section: us_section(section, version, **{name: values})})
                expected = permits_us({name: values})
                assert permits(text, (section,)) == expected, (name, values)
                forbidden += not expected
    assert forbidden >= 2 * len(US_FIELDS[section, version])
    assert permits(gpp_string({section: us_section(section, version)}), (section,))


@pytest.mark.parametrize(("section", "version"), SECTIONS)
def test_subsections_count(section, version):
    def permitted(**parts):
        return permits(gpp_string({section: us_section(section, version, **parts)}), (section,))

    has_gpc = section not in WITHOUT_GPC
    assert permitted(gpc=False) == has_gpc and not permitted(gpc=True)
    has_data = section in WITH_SENSITIVE_SUBSECTION
    assert permitted(data=[0] * 8) == has_data
    assert not any(permitted(data=[0] * 7 + [value]) for value in (1, 2, 3))
    assert not permitted(gpc=False, data=[0] * 8)


@pytest.mark.parametrize(("section", "version"), SECTIONS)
def test_broken_and_unknown_sections_permit_nothing(section, version):
    whole = us_section(section, version)
    other = Encoder()
    other.put(6, 3)
    other.bits += "01" * 60
    broken = [
        "",
        whole[:3],
        whole + "_",
        whole + ".",
        whole + ".!",
        whole + ".gAAA",  # a subsection of type 2
        whole[:-1] + "é",
        whole + "A" * gpp.MAX_US_CHARACTERS,
        other.text(),  # a version that no section has
    ]
    for text in broken:
        assert not permits(gpp_string({section: text}), (section,)), text
    assert not permits(gpp_string({section: whole}), (section, 5))
    assert not permits(gpp_string({section: whole}), (section, 40))
    assert not permits(gpp_string({5: whole}), (5,))
    assert not permits(gpp_string({40: whole}), (40,))


GRANTS = us_section(7, 2)
REFUSES = us_section(8, SaleOptOut=1)
BOTH = gpp_string({7: GRANTS, 8: REFUSES})


def test_sections_in_force_decide():
    assert permits(BOTH, (7,)) and not permits(BOTH, (8,)) and not permits(BOTH, (7, 8))
    assert permits(BOTH, (3, 4, 7)), "header and integrity section may be named"
    assert not permits(BOTH, (7, 9)), "section 9 is missing"
    assert not permits(BOTH, ()) and not permits(BOTH, (3,)), "which section applies is unknown"
    assert not permits("", (7,)) and not permits("", (0,)) and not permits(BOTH, (0,))
    assert permits("", (-1,)) and permits(BOTH, (-1,)), "the consent manager says that none applies"
    assert not permits(BOTH, (-1, 7))
    assert permits("", ()), "no GPP at all"
    assert permits("", (2,)) and permits(BOTH, (2, 7)) and not permits(BOTH, (2, 8)), "section 2 is left to the GDPR"
    assert not permits("?", (2,)) and not permits("?", (7,)) and not permits("?", ())


@pytest.mark.parametrize(
    ("text", "is_permitted"),
    [
        *(("1---", True), ("1YNN", True), ("1YNY", True), ("1YN-", True), ("1ynn", True), ("1Yn-", True)),
        *(("1YYN", False), ("1NNN", False), ("1NYN", False), ("1-N-", False), ("1Y--", False), ("1--Y", False)),
        *(("", False), ("1", False), ("2---", False), ("1YNNN", False), ("1YN", False), (" 1YNN", False)),
        *(("1YN\n", False), ("YNN", False), ("1YNX", False), ("null", False), ("1---\n", False)),
    ],
)
def test_us_privacy_string(text, is_permitted):
    assert us_privacy_permits(text) == is_permitted
    if text:
        assert permits(gpp_string({6: text}), (6,)) == is_permitted


def test_header_lists_single_sections_and_ranges():
    sections = {number: f"s{number}" for number in (2, 6, 7, 8, 9, 10, 27)}
    text = gpp_string(sections)
    assert decode(text) == sections
    assert gpp.section_of(text, 9) == "s9" and gpp.section_of(text, 5) == "" == gpp.section_of("?", 2)
    assert decode("DBABMA~" + encode()) == {2: encode()} and decode("DBAA") == {}


@given(st.sets(st.integers(1, 4000), max_size=12))
def test_header_is_inverted(numbers):
    sections = {number: f"s{number}" for number in numbers}
    assert decode(gpp_string(sections)) == sections


def test_number_of_sections_is_bounded():
    sections = dict.fromkeys(range(1, gpp.MAX_SECTIONS + 1), "s")
    assert decode(gpp_string(sections)) == sections
    with pytest.raises(MalformedConsent, match="has 65 sections"):
        decode(gpp_string(sections | {99: "s"}))


def header(*bits):
    encoder = Encoder()
    encoder.bits = "".join(bits)
    return encoder.text()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "?",
        "D",
        "DBABMA",  # names a section that it lacks
        "DBABMA~a~b",  # has a section that it does not name
        "DBAA~a",
        "CBABMA~a",  # another type
        "DCABMA~a",  # another version
        "DBABMA=~a",
        "DBABMB~a",
        "DBABMA~a" + "A" * gpp.MAX_CHARACTERS,
        header("000011", "000001", "1" * 12, "0" * 400) + "~a",  # 4,095 groups without one
        header("000011", "000001", "000000000001", "1", "011", "0" * 30 + "11") + "~a",  # a range of millions
        header("000011", "000001", "000000000001", "0", "0" * 200 + "11") + "~a",
    ],
)
def test_damaged_gpp_string_is_malformed(text):
    with pytest.raises(MalformedConsent):
        decode(text)
    assert gpp.read(text) is None and not permits(text, (7,))


@given(
    st.text(max_size=100)
    | st.text("DBACM~.Y_", max_size=100)
    | st.builds(lambda n: BOTH[:n], st.integers(0, len(BOTH)))
    | st.builds(lambda n, c: BOTH[:n] + c + BOTH[n + 1 :], st.integers(0, len(BOTH)), st.sampled_from("A_.~= \x00é"))
)
def test_any_text_is_decoded_or_malformed(text):
    assert permits(text, (8,)) in (False, True)
    if gpp.read(text) is None:
        assert not permits(text, (7,))


def test_no_long_text_is_kept_in_memory():
    gpp._read.cache_clear()
    gpp._us_permits.cache_clear()
    assert gpp.read("D" * 100_000) is None
    assert not permits(gpp_string({7: GRANTS + "A" * 1000}), (7,))
    assert gpp._us_permits.cache_info().currsize == 0
    for number in range(2 * gpp.CACHED):
        permits(gpp_string({7: f"B{number}"}), (7,))
    assert gpp._read.cache_info().currsize == gpp._us_permits.cache_info().currsize == gpp.CACHED
