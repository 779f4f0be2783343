"""Permissions of a request from its privacy signals: denied by default. Pure."""

from __future__ import annotations

from collections.abc import Collection

from leadre.serve.protocol import gpp, tcf
from leadre.types import Permissions, Signals

DSA_REQUIRED = 2  # from this value on, the exchange rejects bids without a DSA object
LEGITIMATE = frozenset({2, 7})  # the purposes of this bidder for which a legitimate interest can be registered
_ALL = frozenset(range(1, 25))


def permissions(
    signals: Signals,
    now_us: int,
    *,
    vendor_id: int,
    when_absent: bool,
    by_country: bool = True,
    legitimate_interests: Collection[int] = (),
    has_dsa: bool = False,
) -> Permissions:
    """The permissions of a request. ``vendor_id``: the bidder's on the Global Vendor List; 0 (not listed) gets none.

    ``when_absent``: whether the GDPR applies without any signal of it, ``by_country``: whether it then applies in the
    countries that have it. ``legitimate_interests``: the purposes among 2 and 7 registered under that basis; the others
    need consent. ``has_dsa``: whether bids carry the DSA object that a request may require.
    """
    if signals.dsa_required >= DSA_REQUIRED and not has_dsa:
        return Permissions()
    granted = _ALL
    if _gdpr_applies(signals, when_absent=when_absent, by_country=by_country):
        granted = _granted(signals, now_us, vendor_id, LEGITIMATE.intersection(legitimate_interests))
    if not _is_personal_elsewhere(signals):
        granted &= {2}
    return Permissions(
        store_id=1 in granted,
        contextual=2 in granted,
        add_to_profile=3 in granted,
        personalise=4 in granted,
        measure=7 in granted,
    )


def has_newer_policy(signals: Signals, vendor_id: int) -> bool:
    """Whether a TC string follows policies that are newer than this decoder, which reads it all the same."""
    consents = (tcf.read(text, vendor_id) for text in _tc_strings(signals))
    return any(consent is not None and consent.policy > tcf.KNOWN_POLICY for consent in consents)


def _gdpr_applies(signals: Signals, *, when_absent: bool, by_country: bool) -> bool:
    """Whether the GDPR applies: as GPP's section or ``gdpr`` declares; else by TC string, country and setting."""
    if any(section in signals.gpp_sid for section in (gpp.TCF_EU_V1, gpp.TCF_EU)):
        return True
    if signals.gdpr is not None:
        return signals.gdpr
    return when_absent or bool(signals.consent) or (by_country and signals.in_gdpr_country)


def _tc_strings(signals: Signals) -> tuple[str, ...]:
    """The TC strings in force: that of the request, and that of GPP if its section is. A missing section is "?"."""
    section = (gpp.section_of(signals.gpp, gpp.TCF_EU) or "?",) if signals.gpp and gpp.TCF_EU in signals.gpp_sid else ()
    return (signals.consent, *section) if signals.consent else section


def _granted(signals: Signals, now_us: int, vendor_id: int, legitimate_interests: frozenset[int]) -> frozenset[int]:
    """The purposes that every TC string grants the vendor; none without a string that the framework lets be used."""
    consents = [tcf.read(text, vendor_id) for text in _tc_strings(signals)]
    granted = _ALL if consents else frozenset()
    for consent in consents:
        if consent is None or not consent.is_valid(now_us):
            return frozenset()
        granted &= consent.granted(legitimate_interests)
    return granted


def _is_personal_elsewhere(signals: Signals) -> bool:
    """Whether all signals but those of the GDPR permit personal ads; otherwise contextual ones are left."""
    if signals.gpc or signals.coppa or signals.lmt or signals.dnt:
        return False
    is_us_permitted = not signals.us_privacy or gpp.us_privacy_permits(signals.us_privacy)
    return is_us_permitted and gpp.permits(signals.gpp, signals.gpp_sid)
