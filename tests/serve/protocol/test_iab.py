"""10,000 random consent strings each way: IAB Tech Lab's libraries write and we read, we write and they read."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from leadre.serve.protocol import gpp

from ...npm import installed, run
from .consent_strings import US_FIELDS, WITH_SENSITIVE_SUBSECTION, WITHOUT_GPC, encode, gpp_string, us_section
from .test_gpp import assert_permits
from .test_tcf import assert_reads

pytestmark = pytest.mark.slow

COUNT = 10_000
HERE = Path(__file__).parent
NOT_A_SIGNAL = ("Version", "MspaVersion", "GpcSegmentType")


def iab(*arguments, stdin=""):
    """The lines that iab.mjs prints, as JSON."""
    output = run("node", "iab.mjs", str(installed()), *map(str, arguments), at=HERE, stdin=stdin)
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.parametrize(("kind", "check"), [("tcf", assert_reads), ("gpp", assert_permits)])
def test_strings_of_the_libraries_are_read_alike(kind, check):
    strings = iab(kind, COUNT, 2)
    assert len({golden["text"] for golden in strings}) > 0.8 * COUNT
    for golden in strings:
        check(golden)


@pytest.mark.parametrize(("name", "kind"), [("tcstrings", "tcf"), ("gppstrings", "gpp")])
def test_stored_strings_are_those_of_the_script(name, kind):
    stored = [json.loads(line) for line in (HERE / f"golden/{name}.jsonl").read_text().splitlines()]
    assert iab(kind, len(stored), 1) == stored


def drawn_tc_string(chance):
    def some(most, share):
        return {number for number in range(1, most + 1) if chance.random() < share}

    most = chance.choice([1, 12, 60, 300])
    kinds = [(chance.randint(1, 11), chance.randint(0, 2)) for _ in range(chance.randint(0, 3))]
    return encode(
        some(24, 0.5),
        some(24, 0.5),
        some(most, chance.random()),
        some(most, chance.random()),
        [(*kind, some(most, 0.3)) for kind in dict.fromkeys(kinds)],
        as_ranges=chance.random() < 0.5,
        created_s=chance.randint(1_577_836_800, 1_893_456_000),
        policy=chance.randint(0, 9),
        is_service_specific=chance.random() < 0.9,
        disclosed=chance.choice([None, some(most, 0.8)]),
        allowed=chance.choice([None, None, some(most, 0.5)]),
        custom=chance.choice([None, 0, 3]),
    )


def test_tc_strings_of_the_tests_are_read_alike():
    chance = random.Random(5)
    texts = [drawn_tc_string(chance) for _ in range(COUNT)]
    read = iab("read", stdin="\n".join(texts))
    assert [golden["text"] for golden in read] == texts
    for golden in read:
        assert_reads(golden)


def drawn_section(chance, section, version):
    """(text of a section, its fields by name as the library gives them)."""
    wild = chance.choice([0.0, 0.0, 0.05, 0.4])
    fields = {}
    for name, count in US_FIELDS[section, version]:
        is_zero = name.startswith(("SensitiveDataProcessing", "Known")) and not name.endswith("Notice")
        tame = [0] if is_zero else [0, 1] if name.endswith("Notice") or name == "MspaMode" else [0, 2]
        covered = name == "MspaCoveredTransaction"
        values = [
            chance.randint(1, 2) if covered else chance.randint(0, 2) if chance.random() < wild else chance.choice(tame)
            for _ in range(count)
        ]
        fields[name] = values if is_zero and count > 1 else values[0]
    parts = {}
    if section not in WITHOUT_GPC and chance.random() < 0.5:
        parts["gpc"] = fields["Gpc"] = chance.random() < 0.3
    if section in WITH_SENSITIVE_SUBSECTION and chance.random() < 0.5:
        parts["data"] = fields["SensitiveDataProcessing"] = [chance.randint(0, 2) if wild else 0 for _ in range(8)]
    names = {name for name, _ in US_FIELDS[section, version]}
    text = us_section(section, version, **parts, **{name: fields[name] for name in names})
    return text, fields


def test_gpp_strings_of_the_tests_are_read_alike():
    chance = random.Random(6)
    drawn = []
    for _ in range(COUNT):
        versions = chance.sample(sorted(US_FIELDS), chance.randint(1, 4))
        sections = {section: drawn_section(chance, section, version) for section, version in versions}
        drawn.append((gpp_string({section: text for section, (text, _) in sections.items()}), sections))
    read = iab("read", stdin="\n".join(text for text, _ in drawn))
    for golden, (text, sections) in zip(read, drawn, strict=True):
        assert golden["text"] == text
        for section, (_, fields) in sections.items():
            theirs = golden["sections"][str(section)]
            defaults = {"Gpc": False, "SensitiveDataProcessing": [0] * 8}
            assert {name: theirs[name] for name in fields} == fields, text
            others = {name: value for name, value in theirs.items() if name not in (*fields, *NOT_A_SIGNAL)}
            assert all(value == defaults[name] for name, value in others.items()), others
        assert_permits(golden)
        assert set(gpp.decode(text)) == set(sections)
