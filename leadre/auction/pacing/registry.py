"""All pacers by name."""

from __future__ import annotations

from collections.abc import Mapping

from leadre.auction.pacing.contract import Pacer
from leadre.auction.pacing.mirror import Mirror
from leadre.auction.pacing.pi import PI
from leadre.auction.pacing.resolve import Resolve
from leadre.auction.pacing.throttle import Throttle

PACERS: Mapping[str, Pacer] = {"mirror": Mirror(), "throttle": Throttle(), "pi": PI(), "resolve": Resolve()}
