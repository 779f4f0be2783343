"""IAB Tech Lab's Global Privacy Platform string and its US sections, and the older US privacy string. Pure.

A GPP string is a header and sections, joined by "~". The header lists the numbers of the sections: 2 is a TC string, 6
a US privacy string, 7 the United States as a whole, 8 to 27 single states. A US section has a core of fields of 2 bits
and, behind a dot, a subsection for the Global Privacy Control or for consent to sensitive data.

Personal ads are permitted if no opt-out was declared, no notice is missing, no field of sensitive data or of a known
child is set, and GPC is off. A field with an undefined value, and a section, version or form that is not known, permit
contextual ads alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from leadre.serve.protocol.bits import Bits, MalformedConsent

MAX_CHARACTERS = 9216  # of a GPP string, which may hold a TC string
MAX_SECTIONS = 64  # of a string, and of a list of those in force; there are 27
MAX_US_CHARACTERS = 64  # of a section of the United States; they have about 20
CACHED = 512  # strings, and sections, of a process: requests of one user repeat theirs
NONE_APPLIES = (-1,)  # the consent manager's statement that no section applies
UNKNOWN_SECTION = 0  # the consent manager does not know yet; also for a list that is none
TCF_EU_V1, TCF_EU, HEADER, INTEGRITY, US_PRIVACY = 1, 2, 3, 4, 6  # numbers of sections

_TYPE, _VERSION = 3, 1  # the header's first fields
_GPC, _SENSITIVE, _NO_SUBSECTION = "gpc", "sensitive", ""
_GPC_TYPE = 1  # the first field of its subsection
# Kind of a field -> the values that permit personal ads.
_PERMITTED = {
    "n": (0, 1),  # a notice: does not apply, given
    "o": (0, 2),  # an opt-out: does not apply, not opted out
    "s": (0,),  # sensitive data, a known child: does not apply
    "a": (0, 2),  # data for other purposes than those disclosed: does not apply, consent
    "c": (1, 2),  # a transaction covered by the Multi-State Privacy Agreement: yes, no
    "m": (0, 1, 2),  # its opt-out option mode: does not apply, yes, no
    "p": (0, 2),  # its service provider mode, in which profiles are not used: does not apply, no
    "q": (0, 1),  # both modes in one field: does not apply, opt-out option mode; 2 is service provider mode
}


def _fields(*, notices: int, opt_outs: int, sensitive: int, additional: int = 0) -> str:
    """The kinds of the fields of a section in the form of sections 7 to 23."""
    return "n" * notices + "o" * opt_outs + "s" * sensitive + "a" * additional + "cmp"


# (section, version) -> (the kinds of its fields, its subsection). ``sensitive`` counts the fields of sensitive data and
# of known children.
_SECTIONS: Mapping[tuple[int, int], tuple[str, str]] = {
    (7, 1): (_fields(notices=6, opt_outs=3, sensitive=12 + 2, additional=1), _GPC),  # United States
    (7, 2): (_fields(notices=6, opt_outs=3, sensitive=16 + 3, additional=1), _GPC),
    (8, 1): (_fields(notices=3, opt_outs=2, sensitive=9 + 2, additional=1), _GPC),  # California
    (9, 1): (_fields(notices=3, opt_outs=2, sensitive=8 + 1), _NO_SUBSECTION),  # Virginia
    (10, 1): (_fields(notices=3, opt_outs=2, sensitive=7 + 1), _GPC),  # Colorado
    (11, 1): (_fields(notices=4, opt_outs=2, sensitive=8 + 1), _NO_SUBSECTION),  # Utah
    (12, 1): (_fields(notices=3, opt_outs=2, sensitive=8 + 3), _GPC),  # Connecticut
    (13, 1): (_fields(notices=3, opt_outs=2, sensitive=8 + 3, additional=1), _NO_SUBSECTION),  # Florida
    (14, 1): (_fields(notices=3, opt_outs=2, sensitive=8 + 3, additional=1), _GPC),  # Montana
    (15, 1): (_fields(notices=3, opt_outs=2, sensitive=11 + 3, additional=1), _GPC),  # Oregon
    (16, 1): (_fields(notices=3, opt_outs=2, sensitive=8 + 1, additional=1), _GPC),  # Texas
    (17, 1): (_fields(notices=3, opt_outs=2, sensitive=9 + 5, additional=1), _GPC),  # Delaware
    (18, 1): (_fields(notices=4, opt_outs=2, sensitive=8 + 1), _GPC),  # Iowa
    (19, 1): (_fields(notices=3, opt_outs=2, sensitive=8 + 1, additional=1), _GPC),  # Nebraska
    (20, 1): (_fields(notices=3, opt_outs=2, sensitive=8 + 3, additional=1), _GPC),  # New Hampshire
    (21, 1): (_fields(notices=3, opt_outs=2, sensitive=10 + 5, additional=1), _GPC),  # New Jersey
    (22, 1): (_fields(notices=3, opt_outs=2, sensitive=8 + 1, additional=1), _GPC),  # Tennessee
    (23, 1): (_fields(notices=3, opt_outs=2, sensitive=8 + 1, additional=1), _GPC),  # Minnesota
    (24, 1): ("cq" + "nnn" + "oo" + "a", _GPC),  # Maryland
    (25, 1): ("cq" + "nnn" + "oo" + "s" + "a", _SENSITIVE),  # Indiana
    (26, 1): ("cq" + "nnn" + "oo" + "s" + "a", _SENSITIVE),  # Kentucky
    (27, 1): ("cq" + "nnn" + "oo" + "s" + "a", _SENSITIVE),  # Rhode Island
}


def permits(text: str, sections: tuple[int, ...]) -> bool:
    """Whether every section in force permits personal ads, apart from sections 1 and 2, which the GDPR governs.

    ``sections``: the ``gpp_sid`` of the request. A string without it permits nothing: which part applies is unknown.
    """
    if sections == NONE_APPLIES or not (text or sections):
        return True
    in_force = [section for section in sections if section not in (HEADER, INTEGRITY)]
    if not in_force or (text and read(text) is None):
        return False
    return all(section in (TCF_EU_V1, TCF_EU) or _permits(section, section_of(text, section)) for section in in_force)


def section_of(text: str, section: int) -> str:
    """The text of one section of a GPP string; "" if the string lacks it or is malformed."""
    return (read(text) or {}).get(section, "")


def us_privacy_permits(text: str) -> bool:
    """Whether a US privacy string permits personal ads: it does not apply ("1---"), or notice without an opt-out."""
    return re.fullmatch(r"1(---|[Yy][Nn][YyNn-])", text, re.ASCII) is not None


def read(text: str) -> Mapping[int, str] | None:
    """`decode`, with None for a malformed string; the last results are kept."""
    return _read(text) if len(text) <= MAX_CHARACTERS else None


@lru_cache(maxsize=CACHED)
def _read(text: str) -> Mapping[int, str] | None:
    try:
        return decode(text)
    except MalformedConsent:
        return None


def decode(text: str) -> dict[int, str]:
    """Number of a section -> its text. Raises MalformedConsent."""
    if len(text) > MAX_CHARACTERS:
        raise MalformedConsent(f"{len(text)} characters, more than {MAX_CHARACTERS}")
    header, *sections = text.split("~")
    if len(sections) > MAX_SECTIONS:
        raise MalformedConsent(f"has {len(sections)} sections, more than {MAX_SECTIONS}")
    bits = Bits(header)
    kind = bits.number(6)
    version = bits.number(6)
    if (kind, version) != (_TYPE, _VERSION):
        raise MalformedConsent(f"type {kind} and version {version}, not {_TYPE} and {_VERSION}")
    numbers: list[int] = []
    number = 0
    for _ in range(bits.number(12)):
        is_range = bits.number(1) == 1
        number += bits.fibonacci()
        first = number
        number += bits.fibonacci() if is_range else 0
        if len(numbers) + number - first >= len(sections):
            raise MalformedConsent(f"names more sections than the {len(sections)} that it has")
        numbers.extend(range(first, number + 1))
    bits.end()
    if len(numbers) != len(sections):
        raise MalformedConsent(f"names {len(numbers)} sections and has {len(sections)}")
    return dict(zip(numbers, sections, strict=True))


def _permits(section: int, text: str) -> bool:
    """Whether one section permits personal ads."""
    if section == US_PRIVACY:
        return us_privacy_permits(text)
    return len(text) <= MAX_US_CHARACTERS and _us_permits(section, text)


@lru_cache(maxsize=CACHED)
def _us_permits(section: int, text: str) -> bool:
    """The same for a section of the United States or of a state; False for another one and for a malformed one."""
    core, *subsections = text.split(".")
    try:
        bits = Bits(core)
        kinds, subsection = _SECTIONS.get((section, bits.number(6)), ("", _NO_SUBSECTION))
        values = bits.numbers(len(kinds))
        bits.end()
        is_form_known = kinds and len(subsections) <= (subsection != _NO_SUBSECTION)
        is_permitted = all(value in _PERMITTED[kind] for kind, value in zip(kinds, values, strict=True))
        return (
            bool(is_form_known) and is_permitted and all(_subsection_permits(subsection, part) for part in subsections)
        )
    except MalformedConsent:
        return False


def _subsection_permits(subsection: str, text: str) -> bool:
    bits = Bits(text)
    is_sensitive = subsection == _SENSITIVE
    is_permitted = not any(bits.numbers(8)) if is_sensitive else (bits.number(2), bits.number(1)) == (_GPC_TYPE, 0)
    bits.end()
    return is_permitted
