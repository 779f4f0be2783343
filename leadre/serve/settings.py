"""Settings of a bidder that its processes get once, at the start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a bidder. ``exploration``: the share of imps whose ad is drawn uniformly."""

    public_url: str
    seat: str = "leadre"
    vendor_id: int = 0  # on IAB Europe's Global Vendor List; 0 = not listed
    gdpr_when_absent: bool = False  # whether GDPR applies to a request that does not declare it
    exploration: float = 0.02
    token_s: int = 600  # seconds after the bid in which its events are accepted
