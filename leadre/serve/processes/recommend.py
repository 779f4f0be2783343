"""Request and response of POST /v1/recommend: ads as plain JSON that a site renders itself, without an auction."""

from __future__ import annotations

from typing import Annotated

import msgspec

from leadre.serve.bidding.context import BidDecision
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.protocol.countries import GDPR, alpha_3
from leadre.serve.protocol.openrtb import Rendered
from leadre.serve.protocol.openrtb_schema import Int
from leadre.serve.protocol.signals import is_yes
from leadre.serve.protocol.user_ids import is_placeholder
from leadre.types import Impression, Request, Signals, Source

Flag = bool | int | float | str | None  # null and "" are absent; 0, "0", false and "false" are no; all else is yes


class RecommendRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A site's request for ``count`` ads. ``tmax_ms`` 0: the bidder's default.

    ``gdpr`` to ``country`` are the signals of an OpenRTB request, with the same meaning. A country has 2 or 3 letters.
    """

    user_id: str = ""
    count: Annotated[int, msgspec.Meta(ge=1, le=20)] = 5
    site: str = ""
    categories: list[str] = []
    tmax_ms: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
    gdpr: Flag = None
    consent: str = ""
    us_privacy: str = ""
    gpp: str = ""
    gpp_sid: list[Int] = []
    gpc: Flag = None
    coppa: Flag = None
    lmt: Flag = None
    dnt: Flag = None
    country: str = ""

    def bid_request(self, request_id: str) -> Request:
        """Convert to a bid request with ``count`` imps of any size."""
        country = alpha_3(self.country)
        return Request(
            request_id=request_id,
            imps=tuple(Impression(imp_id=str(number), sizes=()) for number in range(1, self.count + 1)),
            user_id="" if is_placeholder(self.user_id) else self.user_id,
            signals=Signals(
                gdpr=None if self.gdpr in (None, "") else is_yes(self.gdpr),
                consent=self.consent,
                us_privacy=self.us_privacy,
                gpp=self.gpp,
                gpp_sid=tuple(self.gpp_sid),
                gpc=is_yes(self.gpc),
                coppa=is_yes(self.coppa),
                lmt=is_yes(self.lmt),
                dnt=is_yes(self.dnt),
                in_gdpr_country=country in GDPR,
            ),
            tmax_ms=self.tmax_ms,
            site=self.site.strip().lower(),
            categories=tuple(self.categories),
            country=country,
            is_own_auction=True,
        )


class RecommendedAd(msgspec.Struct, frozen=True, kw_only=True):
    """An ad and the URLs that report its events. ``billing_url``: to request once, as the ad is shown."""

    ad_id: str
    title: str
    brand: str
    image_url: str
    click_url: str
    impression_url: str
    billing_url: str
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
        billing_url=rendered.burl.partition("&price=")[0],
        source=bid.source,
        propensity=bid.propensity,
    )
