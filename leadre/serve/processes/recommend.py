"""Request and response of POST /v1/recommend: ads as plain JSON that a site renders itself, without an auction."""

from __future__ import annotations

from typing import Annotated

import msgspec

from leadre.serve.bidding.context import BidDecision
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.protocol.openrtb import Rendered
from leadre.types import Impression, Request, Signals, Source


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


class RecommendedAd(msgspec.Struct, frozen=True, kw_only=True):
    """An ad and the URLs that report its impression and its click."""

    ad_id: str
    title: str
    brand: str
    image_url: str
    click_url: str
    impression_url: str
    source: Source
    propensity: float


class RecommendResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The ads, best first, or the reason for none."""

    request_id: str
    ads: list[RecommendedAd]
    reason: str | None


def recommend_response(decision: BidDecision, catalogue: CatalogueSnapshot) -> RecommendResponse:
    """The response to a decision."""
    return RecommendResponse(
        request_id=decision.request_id,
        ads=[_plain_ad(rendered, catalogue) for rendered in decision.rendered],
        reason=decision.reason.name.lower() if decision.reason else None,
    )


def _plain_ad(rendered: Rendered, catalogue: CatalogueSnapshot) -> RecommendedAd:
    bid = rendered.bid
    ad = catalogue.ads[catalogue.row_of_ad[bid.ad_id]]
    return RecommendedAd(
        ad_id=ad.ad_id,
        title=ad.title,
        brand=ad.brand,
        image_url=ad.image_url,
        click_url=rendered.click_url,
        impression_url=rendered.impression_url,
        source=bid.source,
        propensity=bid.propensity,
    )
