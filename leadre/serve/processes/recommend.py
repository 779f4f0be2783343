"""Request and response of POST /v1/recommend: ads as plain JSON that a site renders itself, without an auction."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from leadre.serve.bidding.context import BidDecision
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.protocol.openrtb import Rendered
from leadre.types import Impression, Request, Signals


class RecommendRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A site's request for ``count`` ads. ``tmax_ms`` 0: the bidder's default. ``gdpr``, ``consent``: as in OpenRTB."""

    user_id: str = ""
    count: Annotated[int, msgspec.Meta(ge=1, le=20)] = 5
    site: str = ""
    categories: list[str] = []
    tmax_ms: Annotated[int, msgspec.Meta(ge=0)] = 0
    gdpr: bool | None = None
    consent: str = ""

    def bid_request(self, request_id: str) -> Request:
        """Convert to a bid request with ``count`` imps of any size."""
        return Request(
            request_id=request_id,
            imps=tuple(Impression(imp_id=str(number), sizes=()) for number in range(1, self.count + 1)),
            user_id=self.user_id,
            signals=Signals(gdpr=self.gdpr, consent=self.consent),
            tmax_ms=self.tmax_ms,
            site=self.site.lower(),
            categories=tuple(self.categories),
        )


def recommend_response(decision: BidDecision, catalogue: CatalogueSnapshot) -> dict[str, Any]:
    """The response body: the ads, or the reason for none."""
    return {
        "request_id": decision.request_id,
        "ads": [_plain_ad(rendered, catalogue) for rendered in decision.rendered],
        "reason": decision.reason.name.lower() if decision.reason else None,
    }


def _plain_ad(rendered: Rendered, catalogue: CatalogueSnapshot) -> dict[str, Any]:
    bid = rendered.bid
    ad = catalogue.ads[catalogue.row_of_ad[bid.ad_id]]
    return {
        "ad_id": ad.ad_id,
        "title": ad.title,
        "brand": ad.brand,
        "image_url": ad.image_url,
        "click_url": rendered.click_url,
        "impression_url": rendered.impression_url,
        "source": bid.source,
        "propensity": bid.propensity,
    }
