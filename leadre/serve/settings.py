"""What a bidder is told once, at its start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a bidder is told once. ``exploration``: the share of places whose ad is drawn blindly among the best."""

    public_url: str
    seat: str = "leadre"
    vendor_id: int = 0
    gdpr_when_absent: bool = False
    exploration: float = 0.02
    token_s: int = 600  # how long events of a bid are believed
