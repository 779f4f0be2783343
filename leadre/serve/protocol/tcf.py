"""TC strings of IAB Europe's Transparency and Consent Framework: decoding, and whether the framework is met. Pure.

A TC string has a core segment and, behind dots, optional ones. The core segment: fixed fields, then two lists of
vendors (with consent; with a legitimate interest that the user did not object to), then the publisher's restrictions.
The other segments: the vendors disclosed to the user, the vendors that a publisher allows, the publisher's purposes.
Bits are read from the left. Every segment is decoded, as a string that is damaged anywhere grants nothing.

Specification: IAB Tech Lab, Consent string and vendor list formats v2, of TCF 2.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from leadre.serve.protocol.bits import Bits, MalformedConsent
from leadre.units import S_PER_DAY, US_PER_S

MAX_CHARACTERS = 8192  # of a TC string; real ones have a few hundred
CACHED = 512  # decoded strings of a process: requests of one user repeat theirs
KNOWN_POLICY = 5  # the highest version of the policies that this decoder was written for
MIN_POLICY = 4  # of TCF 2.2, in force from `POLICY_FROM_S` on
POLICY_FROM_S = 1_700_524_800  # 2023-11-21T00:00:00Z
DISCLOSED_FROM_S = 1_772_323_200  # 2026-03-01T00:00:00Z: from then on a string lists the disclosed vendors
MAX_AHEAD_S = S_PER_DAY  # of a string's dates, for clocks and time zones that are wrong

# The first bits of fields of the core segment.
_CREATED, _UPDATED, _POLICY, _SPECIFIC = 6, 42, 132, 138
_PURPOSE_CONSENTS, _PURPOSE_INTERESTS, _VENDORS = 152, 176, 213
_DISCLOSED, _ALLOWED, _PUBLISHER = 1, 2, 3  # types of segments
_PURPOSES = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Consent:
    """A TC string as far as it concerns one vendor. Purposes are 1 to 24.

    ``written_s``: when the string was made, or last changed if that is later, in seconds since 1970. ``is_disclosed``:
    whether the vendor was disclosed to the user; None without that segment.
    """

    written_s: int
    policy: int
    is_service_specific: bool
    purpose_consents: frozenset[int]
    purpose_interests: frozenset[int]  # legitimate interests that were disclosed and not objected to
    has_vendor_consent: bool
    has_vendor_interest: bool
    forbidden: frozenset[int]  # purposes that the publisher takes from the vendor: restriction 0, or an unknown one
    consent_only: frozenset[int]  # restriction 1: a legitimate interest does not count
    interest_only: frozenset[int]  # restriction 2: consent does not count
    is_disclosed: bool | None

    def is_valid(self, now_us: int) -> bool:
        """Whether the framework lets the string be used at a time."""
        now_s = now_us // US_PER_S
        is_policy_current = self.policy >= MIN_POLICY or self.written_s < POLICY_FROM_S
        is_disclosed = self.written_s < DISCLOSED_FROM_S if self.is_disclosed is None else self.is_disclosed
        is_past = self.written_s <= now_s + MAX_AHEAD_S
        return self.is_service_specific and is_policy_current and is_disclosed and is_past

    def granted(self, legitimate_interests: frozenset[int]) -> frozenset[int]:
        """The purposes granted to a vendor that registered ``legitimate_interests``; the others need consent."""
        consented = self.purpose_consents if self.has_vendor_consent else frozenset()
        interests = self.purpose_interests & legitimate_interests if self.has_vendor_interest else frozenset()
        return ((consented - self.interest_only) | (interests - self.consent_only)) - self.forbidden


def read(text: str, vendor_id: int) -> Consent | None:
    """`decode`, with None for a malformed string; the last results are kept."""
    return _read(text, vendor_id) if len(text) <= MAX_CHARACTERS else None


@lru_cache(maxsize=CACHED)
def _read(text: str, vendor_id: int) -> Consent | None:
    try:
        return decode(text, vendor_id)
    except MalformedConsent:
        return None


def decode(text: str, vendor_id: int) -> Consent:
    """The content of a TC string for one vendor of the Global Vendor List. Raises MalformedConsent."""
    if len(text) > MAX_CHARACTERS:
        raise MalformedConsent(f"{len(text)} characters, more than {MAX_CHARACTERS}")
    core, *segments = text.split(".")
    bits = Bits(core)
    version = bits.number(6)
    if version != 2:
        raise MalformedConsent(f"version {version}, not 2")
    bits.at = _CREATED
    created_ds = bits.number(36)
    updated_ds = bits.number(36)
    bits.at = _POLICY
    policy = bits.number(6)
    is_service_specific = bits.number(1) == 1
    bits.at = _PURPOSE_CONSENTS
    consents = bits.flags(_PURPOSES)
    interests = bits.flags(_PURPOSES)
    bits.at = _VENDORS
    has_consent = _has_vendor(bits, vendor_id)
    has_interest = _has_vendor(bits, vendor_id)
    forbidden, consent_only, interest_only = _restrictions(bits, vendor_id)
    bits.end()
    return Consent(
        written_s=max(created_ds, updated_ds) // 10,
        policy=policy,
        is_service_specific=is_service_specific,
        purpose_consents=consents,
        purpose_interests=interests,
        has_vendor_consent=has_consent,
        has_vendor_interest=has_interest,
        forbidden=forbidden,
        consent_only=consent_only,
        interest_only=interest_only,
        is_disclosed=_is_disclosed(segments, vendor_id),
    )


def _restrictions(bits: Bits, vendor_id: int) -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
    """The purposes of the restrictions that name the vendor, by type: 0 and unknown, 1, 2."""
    purposes: list[list[int]] = [[], [], [], []]
    for _ in range(bits.number(12)):
        purpose = bits.number(6)
        kind = bits.number(2)
        if _has_in_ranges(bits, vendor_id):
            purposes[kind].append(purpose)
    return frozenset(purposes[0] + purposes[3]), frozenset(purposes[1]), frozenset(purposes[2])


def _is_disclosed(segments: list[str], vendor_id: int) -> bool | None:
    """Whether the segment of disclosed vendors has the vendor; None without it. Decodes the other segments too."""
    seen: dict[int, bool] = {}
    for segment in segments:
        bits = Bits(segment)
        kind = bits.number(3)
        if kind in seen:
            raise MalformedConsent(f"has two segments of type {kind}")
        if kind in (_DISCLOSED, _ALLOWED):
            seen[kind] = _has_vendor(bits, vendor_id)
        elif kind == _PUBLISHER:
            bits.take(2 * _PURPOSES)
            bits.take(2 * bits.number(6))  # its own purposes: a bit of consent and one of interest each
            seen[kind] = True
        else:
            raise MalformedConsent(f"has a segment of type {kind}")
        bits.end()
    return seen.get(_DISCLOSED)


def _has_in_ranges(bits: Bits, vendor_id: int) -> bool:
    """Whether a list of single vendors and ranges has the vendor; moves the cursor behind the list."""
    is_listed = False
    for _ in range(bits.number(12)):
        is_range, first = divmod(bits.number(17), 1 << 16)
        last = bits.number(16) if is_range else first
        if first > last:
            raise MalformedConsent(f"a range of vendors starts at {first} and ends at {last}")
        is_listed |= first <= vendor_id <= last
    return is_listed


def _has_vendor(bits: Bits, vendor_id: int) -> bool:
    """The same for a vendor section: a highest ID, then ranges or a bit for each vendor up to it."""
    max_id = bits.number(16)
    is_ranges = bits.take(1) == "1"
    if is_ranges:
        return _has_in_ranges(bits, vendor_id) and 0 < vendor_id <= max_id
    flags = bits.take(max_id)
    return 0 < vendor_id <= max_id and flags[vendor_id - 1] == "1"
