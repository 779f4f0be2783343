"""Cleaning removes invisible characters, keeps visible ones, and is idempotent."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre.data.text import clean, join


@given(st.text(max_size=300), st.integers(1, 64))
def test_clean_text_has_no_invisible_characters(text: str, limit: int) -> None:
    got = clean(text, limit)
    assert len(got) <= limit
    assert clean(got, limit) == got
    assert not {unicodedata.category(char) for char in got} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert "  " not in got and got == got.strip()
    assert unicodedata.is_normalized("NFKC", got)


@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), max_size=100))
def test_plain_words_are_unchanged(text: str) -> None:
    assert clean(text, 100) == text


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("Free\u200b\u2060\ufeff shipping", "Free shipping"),
        ("\u202eevil\u202c \u2066x\u2069", "evil x"),
        ("line\r\nbreak\ttab\x00nul\x1b[31m", "line break tabnul[31m"),
        ("\uff33\uff21\uff2c\uff25 \ufb01ne \u00a0 x", "SALE fine x"),
        ("soft\u00adhyphen \U000e0041tag \u3164filler \u2800blank \ud800lone", "softhyphen tag filler blank lone"),
        ("e\u200b\u0301te", "\u00e9te"),  # composes only after the zero-width space is gone
        ("one\u2028two", "one two"),
    ],
)
def test_known_attacks(dirty: str, expected: str) -> None:
    assert clean(dirty) == expected


def test_cut_falls_between_words() -> None:
    assert clean("shredded cheese of the house", 17) == "shredded cheese"
    assert clean("x" * 40, 17) == "x" * 17


def test_join_leaves_missing_parts_out() -> None:
    assert join("Milk", None, ["Dairy", "", "Milk"], "") == "Milk | Dairy > Milk"
    assert join("Milk", "Alder", None, "fresh") == "Milk | Alder | fresh"
    assert join(None, None, None, None) == ""
