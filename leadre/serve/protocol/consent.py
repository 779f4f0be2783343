"""Permissions of a request from its privacy signals: denied by default. Pure.

A TC string is IAB Europe's TCF v2 core segment: fixed fields, then two lists of vendors (with consent; with a
legitimate interest that the user did not object to), then the publisher's restrictions. Bits are read from the left.
Segments after the first dot concern publishers and are not read.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from collections.abc import Collection
from dataclasses import dataclass

from leadre.errors import LeadreError
from leadre.types import Permissions, Signals

DSA_REQUIRED = 2  # from this value on, the exchange rejects bids without a DSA object
MAX_CHARACTERS = 8192  # of a TC string; real ones have a few hundred
GPP_TCF_EU = 2  # the GPP section that is a TC string: GDPR applies

# The first bits of fields of the core segment.
_PURPOSE_CONSENTS, _PURPOSE_INTERESTS, _VENDORS = 152, 176, 213


class MalformedConsent(LeadreError, ValueError):
    """A TC string that cannot be decoded. `permissions` treats it as a refusal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Consent:
    """The core segment as far as it concerns one vendor. Purposes are 1 to 24."""

    purpose_consents: frozenset[int]
    purpose_interests: frozenset[int]  # legitimate interests that were disclosed and not objected to
    has_vendor_consent: bool
    has_vendor_interest: bool
    restricted: frozenset[int]  # purposes that the publisher restricts for the vendor, by any type of restriction


class _Bits:
    """A cursor over the bits of unpadded base64url. Raises MalformedConsent for other characters and past the end."""

    def __init__(self, text: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", text, re.ASCII):
            raise MalformedConsent("is empty or holds a character that is not base64url")
        whole = urlsafe_b64decode(text + "A" * (-len(text) % 4))
        self._bits = format(int.from_bytes(whole, "big"), f"0{8 * len(whole)}b")[: 6 * len(text)]
        self.at = 0

    def take(self, width: int) -> str:
        """The next ``width`` bits, as "0" and "1"."""
        bits = self._bits[self.at : self.at + width]
        if len(bits) < width:
            raise MalformedConsent(f"ends at bit {len(self._bits)}, before bit {self.at + width}")
        self.at += width
        return bits

    def number(self, width: int) -> int:
        return int(self.take(width), 2)

    def purposes(self) -> frozenset[int]:
        return frozenset(purpose for purpose, bit in enumerate(self.take(24), start=1) if bit == "1")

    def has_in_ranges(self, vendor_id: int) -> bool:
        """Whether a list of single vendors and ranges has the vendor; moves the cursor behind the list."""
        is_listed = False
        for _ in range(self.number(12)):
            is_range, first = divmod(self.number(17), 1 << 16)
            last = self.number(16) if is_range else first
            if first > last:
                raise MalformedConsent(f"a range of vendors starts at {first} and ends at {last}")
            is_listed |= first <= vendor_id <= last
        return is_listed

    def has_vendor(self, vendor_id: int) -> bool:
        """The same for a vendor section: a highest ID, then ranges or a bit for each vendor up to it."""
        max_id = self.number(16)
        is_ranges = self.take(1) == "1"
        if is_ranges:
            return self.has_in_ranges(vendor_id) and 0 < vendor_id <= max_id
        flags = self.take(max_id)
        return 0 < vendor_id <= max_id and flags[vendor_id - 1] == "1"


def decode(text: str, vendor_id: int) -> Consent:
    """The content of a TC string for one vendor of the Global Vendor List. Raises MalformedConsent."""
    if len(text) > MAX_CHARACTERS:
        raise MalformedConsent(f"{len(text)} characters, more than {MAX_CHARACTERS}")
    bits = _Bits(text.partition(".")[0])
    version = bits.number(6)
    if version != 2:
        raise MalformedConsent(f"version {version}, not 2")
    bits.at = _PURPOSE_CONSENTS
    consents = bits.purposes()
    bits.at = _PURPOSE_INTERESTS
    interests = bits.purposes()
    bits.at = _VENDORS
    has_consent = bits.has_vendor(vendor_id)
    has_interest = bits.has_vendor(vendor_id)
    restricted = set()
    for _ in range(bits.number(12)):
        purpose = bits.number(6)
        bits.number(2)  # the type of the restriction
        if bits.has_in_ranges(vendor_id):
            restricted.add(purpose)
    return Consent(
        purpose_consents=consents,
        purpose_interests=interests,
        has_vendor_consent=has_consent,
        has_vendor_interest=has_interest,
        restricted=frozenset(restricted),
    )


def permissions(
    signals: Signals,
    *,
    vendor_id: int,
    when_absent: bool,
    legitimate_interests: Collection[int] = (),
    has_dsa: bool = False,
) -> Permissions:
    """The permissions of a request. ``vendor_id``: the bidder's on the Global Vendor List; 0 (not listed) gets none.

    ``when_absent``: whether GDPR applies without a ``gdpr`` signal; a TC string or GPP's section for one implies it.
    ``legitimate_interests``: the purposes among 2 and 7 registered under that basis; the others need consent. Any US,
    GPP, child or opt-out signal leaves contextual ads alone: these strings are not decoded, so that none is read as
    more permissive than it is. ``has_dsa``: whether bids carry the DSA object that a request may require.
    """
    if signals.dsa_required >= DSA_REQUIRED and not has_dsa:
        return Permissions()
    applies = signals.gdpr
    if applies is None:
        applies = when_absent or bool(signals.consent) or GPP_TCF_EU in signals.gpp_sid
    granted = _granted(signals.consent, vendor_id, legitimate_interests) if applies else frozenset(range(1, 25))
    limits = (signals.gpp, signals.gpp_sid, signals.us_privacy, signals.gpc, signals.coppa, signals.lmt, signals.dnt)
    if any(limits):
        granted &= {2}
    return Permissions(
        store_id=1 in granted,
        contextual=2 in granted,
        add_to_profile=3 in granted,
        personalise=4 in granted,
        measure=7 in granted,
    )


def _granted(text: str, vendor_id: int, legitimate_interests: Collection[int]) -> frozenset[int]:
    """The purposes that a TC string grants the vendor; none if it is malformed."""
    try:
        consent = decode(text, vendor_id)
    except MalformedConsent:
        return frozenset()
    interests = consent.purpose_interests & {2, 7} & set(legitimate_interests)
    consented = consent.purpose_consents if consent.has_vendor_consent else frozenset()
    return consented.union(interests if consent.has_vendor_interest else ()) - consent.restricted
