"""Settings of a bidder that its processes get once, at the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EXP_S = 120
MechanismName = Literal["first_price", "gsp", "vcg"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a bidder. ``exploration``: the share of imps whose ad is drawn uniformly.

    ``mechanism``: charges the ads of `/v1/recommend`. ``slot_effects``: probability that the ad of each slot is seen,
    relative to the first, descending; further slots are seen as often as the last one named. ``squashing``: power of
    the rate in the order of these ads, in [0, 1]; 1 is an order by bid x rate.
    """

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

    mechanism: MechanismName = "first_price"
    slot_effects: tuple[float, ...] = (1.0,)
    squashing: float = 1.0
    workers: int = 1  # bid workers, which share the bounds of a caller
    require_callers: bool = False  # whether an exchange's requests are refused while no caller is configured

    def effects_from(self, slot: int, slots: int) -> tuple[float, ...]:
        """The slot effects of the slots from number ``slot`` on, of ``slots``."""
        named = self.slot_effects
        return tuple(named[min(number, len(named) - 1)] for number in range(slot, max(slots, slot + 1)))

    @property
    def ignored_rules(self) -> frozenset[str]:
        """The rules of eligibility that do not apply."""
        rules = {"unknown_category": self.pass_unknown_category, "unknown_language": self.pass_unknown_language}
        return frozenset(rule for rule, passes in rules.items() if passes)
