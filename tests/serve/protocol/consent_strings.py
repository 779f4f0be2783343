"""An encoder of TC and GPP strings for tests, written from the specifications and apart from the decoder."""

from __future__ import annotations

import base64

JANUARY_2026_S = 1_768_435_200  # the 15th
MAY_2026_S = 1_778_803_200
OURS = 755  # the bidder's number on the Global Vendor List
EVERY_PURPOSE = (1, 2, 3, 4, 7)

SALE = ("SaleOptOut", 1)
TARGETED = ("TargetedAdvertisingOptOut", 1)
SHARING = ("SharingOptOut", 1)
SALE_NOTICE = ("SaleOptOutNotice", 1)
TARGETED_NOTICE = ("TargetedAdvertisingOptOutNotice", 1)
SHARED = [("SharingNotice", 1), SALE_NOTICE, TARGETED_NOTICE]
PROCESSED = [("ProcessingNotice", 1), SALE_NOTICE, TARGETED_NOTICE]
OPT_OUTS = [SALE, TARGETED]
COVERED = ("MspaCoveredTransaction", 1)
MSPA = [COVERED, ("MspaOptOutOptionMode", 1), ("MspaServiceProviderMode", 1)]
ADDITIONAL = ("AdditionalDataProcessingConsent", 1)


def sensitive(data, children=1):
    return [("SensitiveDataProcessing", data), ("KnownChildSensitiveDataConsents", children)]


def nation(data, children):
    notices = ["SharingNotice", "SaleOptOutNotice", "SharingOptOutNotice", "TargetedAdvertisingOptOutNotice"]
    notices += ["SensitiveDataProcessingOptOutNotice", "SensitiveDataLimitUseNotice"]
    first = [*((name, 1) for name in notices), SALE, SHARING, TARGETED]
    return [*first, *sensitive(data, children), ("PersonalDataConsents", 1), *MSPA]


CALIFORNIA = [SALE_NOTICE, ("SharingOptOutNotice", 1), ("SensitiveDataLimitUseNotice", 1), SALE, SHARING]
LATEST = [COVERED, ("MspaMode", 1), *PROCESSED, *OPT_OUTS]
CHILD = ("KnownChildSensitiveDataConsents", 1)

# (section, version) -> the (field, number of its values) of the core segment, as the specifications list them.
US_FIELDS = {
    (7, 1): nation(12, 2),
    (7, 2): nation(16, 3),
    (8, 1): [*CALIFORNIA, *sensitive(9, 2), ("PersonalDataConsents", 1), *MSPA],
    (9, 1): [*SHARED, *OPT_OUTS, *sensitive(8), *MSPA],
    (10, 1): [*SHARED, *OPT_OUTS, *sensitive(7), *MSPA],
    (11, 1): [*SHARED, ("SensitiveDataProcessingOptOutNotice", 1), *OPT_OUTS, *sensitive(8), *MSPA],
    (12, 1): [*SHARED, *OPT_OUTS, *sensitive(8, 3), *MSPA],
    (13, 1): [*PROCESSED, *OPT_OUTS, *sensitive(8, 3), ADDITIONAL, *MSPA],
    (14, 1): [*SHARED, *OPT_OUTS, *sensitive(8, 3), ADDITIONAL, *MSPA],
    (15, 1): [*PROCESSED, *OPT_OUTS, *sensitive(11, 3), ADDITIONAL, *MSPA],
    (16, 1): [*PROCESSED, *OPT_OUTS, *sensitive(8), ADDITIONAL, *MSPA],
    (17, 1): [*PROCESSED, *OPT_OUTS, *sensitive(9, 5), ADDITIONAL, *MSPA],
    (18, 1): [*PROCESSED, ("SensitiveDataOptOutNotice", 1), *OPT_OUTS, *sensitive(8), *MSPA],
    (19, 1): [*PROCESSED, *OPT_OUTS, *sensitive(8), ADDITIONAL, *MSPA],
    (20, 1): [*PROCESSED, *OPT_OUTS, *sensitive(8, 3), ADDITIONAL, *MSPA],
    (21, 1): [*PROCESSED, *OPT_OUTS, *sensitive(10, 5), ADDITIONAL, *MSPA],
    (22, 1): [*PROCESSED, *OPT_OUTS, *sensitive(8), ADDITIONAL, *MSPA],
    (23, 1): [*PROCESSED, *OPT_OUTS, *sensitive(8), ADDITIONAL, *MSPA],
    (24, 1): [*LATEST, ADDITIONAL],
    (25, 1): [*LATEST, CHILD, ADDITIONAL],
    (26, 1): [*LATEST, CHILD, ADDITIONAL],
    (27, 1): [*LATEST, CHILD, ADDITIONAL],
}
WITHOUT_GPC = (9, 11, 13, 25, 26, 27)
WITH_SENSITIVE_SUBSECTION = (25, 26, 27)


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

    def fibonacci(self, value):
        terms = [1, 2]
        while terms[-1] <= value:
            terms.append(terms[-1] + terms[-2])
        bits = ""
        for term in reversed([term for term in terms if term <= value]):
            bits = ("1" if term <= value else "0") + bits
            value -= term if term <= value else 0
        self.bits += bits + "1"

    def text(self):
        """Padded to bytes and to whole characters."""
        bits = self.bits + "0" * (-len(self.bits) % 24)
        return base64.urlsafe_b64encode(int(bits, 2).to_bytes(len(bits) // 8, "big")).decode()

    def short_text(self):
        """Padded to bytes, and cut after the characters that they need: GPP's form."""
        characters = -(-8 * -(-len(self.bits) // 8) // 6)
        return self.text()[:characters]


def runs(ids):
    """Runs of consecutive IDs, as [first, last]."""
    ranges = []
    for number in sorted(ids):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges


def encode(
    purposes=(),
    interests=(),
    vendors=(),
    vendor_interests=(),
    restrictions=(),
    as_ranges=False,
    version=2,
    created_s=JANUARY_2026_S,
    updated_s=None,
    policy=5,
    is_service_specific=True,
    disclosed=None,
    allowed=None,
    custom=None,
):
    """A TC string. ``disclosed`` and ``allowed`` vendors, and a ``custom`` number of own purposes, add segments."""
    encoder = Encoder()
    encoder.put(6, version)
    encoder.put(36, created_s * 10)
    encoder.put(36, (created_s if updated_s is None else updated_s) * 10)
    for width, value in ((12, 2), (12, 1), (6, 1), (6, 3), (6, 13), (12, 120), (6, policy)):
        encoder.put(width, value)  # CMP, its version, screen, language EN, list, policy
    encoder.put(1, int(is_service_specific))
    encoder.put(13, 0b1_0100_0000_0000)  # non-standard texts, special features
    encoder.flags(24, purposes)
    encoder.flags(24, interests)
    encoder.put(13, 0b0_000011_000100)  # purpose 1 treatment, publisher's country DE
    encoder.vendors(vendors, as_ranges)
    encoder.vendors(vendor_interests, not as_ranges)
    encoder.put(12, len(restrictions))
    for purpose, kind, ids in restrictions:
        encoder.put(6, purpose)
        encoder.put(2, kind)
        encoder.ranges(runs(ids))
    segments = [encoder.text()]
    for kind, ids in ((1, disclosed), (2, allowed)):
        if ids is not None:
            encoder = Encoder()
            encoder.put(3, kind)
            encoder.vendors(ids, as_ranges)
            segments.append(encoder.text())
    if custom is not None:
        encoder = Encoder()
        encoder.put(3, 3)
        encoder.put(48, 5)
        encoder.put(6, custom)
        encoder.put(2 * custom, 2**custom - 1)
        segments.append(encoder.text())
    return ".".join(segments)


def gpp_string(sections):
    """A GPP string of number -> text of its sections, with consecutive numbers as ranges."""
    header = Encoder()
    header.put(6, 3)
    header.put(6, 1)
    groups = runs(sections)
    header.put(12, len(groups))
    last = 0
    for start, end in groups:
        header.put(1, int(end > start))
        header.fibonacci(start - last)
        if end > start:
            header.fibonacci(end - start)
        last = end
    return "~".join([header.short_text(), *(sections[number] for number in sorted(sections))])


def us_section(section, version=1, gpc=None, data=None, **fields):
    """A section of the United States or of a state, in which every field permits personal ads unless it is given.

    ``gpc``: the subsection of the Global Privacy Control, ``data``: that of sensitive data; None without one.
    """
    encoder = Encoder()
    encoder.put(6, version)
    for name, count in US_FIELDS[section, version]:
        is_first = name.endswith("Notice") or name == "MspaMode"
        default = 1 if is_first else 0 if name.startswith(("Sensitive", "Known")) else 2
        values = fields.pop(name, default)
        for value in values if isinstance(values, list | tuple) else [values] * count:
            encoder.put(2, value)
    assert not fields, fields
    parts = [encoder.short_text()]
    if gpc is not None:
        encoder = Encoder()
        encoder.put(2, 1)
        encoder.put(1, int(gpc))
        parts.append(encoder.short_text())
    if data is not None:
        encoder = Encoder()
        for value in data:
            encoder.put(2, value)
        parts.append(encoder.short_text())
    return ".".join(parts)


def permits_us(fields):
    """Whether the fields of a US section, by name, permit personal ads: a second implementation of the rules."""
    for name, value in fields.items():
        values = value if isinstance(value, list | tuple) else [value]
        if name == "Gpc" and value:
            return False
        if name.endswith("OptOut") and not set(values) <= {0, 2}:
            return False
        if name.endswith("Notice") and not set(values) <= {0, 1}:
            return False
        if name in ("SensitiveDataProcessing", "KnownChildSensitiveDataConsents") and any(values):
            return False
        if name in ("PersonalDataConsents", "AdditionalDataProcessingConsent") and not set(values) <= {0, 2}:
            return False
        if name == "MspaCoveredTransaction" and not set(values) <= {1, 2}:
            return False
        if name == "MspaServiceProviderMode" and not set(values) <= {0, 2}:
            return False
        if name == "MspaMode" and not set(values) <= {0, 1}:
            return False
        if name == "MspaOptOutOptionMode" and 3 in values:
            return False
    return True
