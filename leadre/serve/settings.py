"""Settings of a bidder that its processes get once, at the start."""

from __future__ import annotations

from dataclasses import dataclass

EXP_S = 120


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a bidder. ``exploration``: the share of imps whose ad is drawn uniformly."""

    public_url: str
    seat: str = "leadre"
    vendor_id: int = 0  # on IAB Europe's Global Vendor List; 0 = not listed
    gdpr_when_absent: bool = False  # whether GDPR applies to a request that does not declare it
    gdpr_by_country: bool = True  # whether it then applies in the countries that have it
    exploration: float = 0.02
    pass_unknown_category: bool = True  # whether an ad of unknown category passes blocked categories
    pass_unknown_language: bool = True  # whether an ad of unknown language passes allowed languages
    exp_s: int = EXP_S  # seconds after the bid in which it may be shown: budget and frequency cap are reserved for it
    post_view: bool = False  # whether a conversion without a click counts, by the token of an impression

    workers: int = 1  # bid workers, which share the bounds of a caller
    require_callers: bool = False  # whether an exchange's requests are refused while no caller is configured

    @property
    def ignored_rules(self) -> frozenset[str]:
        """The rules of eligibility that do not apply."""
        rules = {"unknown_category": self.pass_unknown_category, "unknown_language": self.pass_unknown_language}
        return frozenset(rule for rule, passes in rules.items() if passes)
