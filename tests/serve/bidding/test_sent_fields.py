"""Fields of an ad that a bid sends."""

from __future__ import annotations

import json

from leadre.serve.protocol import openrtb

from ..alone import Alone, banner_request
from ..conftest import make_ad, make_campaign


def test_bid_names_one_taxonomy_language_and_app(tmp_path):
    """The request wants no category "999" of its taxonomy; the ad has categories of two."""
    fields = {"iab_categories": ("IAB10-4", "483"), "cattax": 7, "language": "pt-BR", "app_bundle": "com.acme"}
    sent = {}
    with Alone(tmp_path / "state") as alone:
        alone.campaign_store.put_campaign(make_campaign())
        alone.campaign_store.put_ad(make_ad(**fields))
        alone.put_list("*", "a1")
        alone.renew()
        for cattax in (1, 7):
            request = banner_request(cattax=cattax, bcat=["999"])
            decision = alone.bid(cattax=cattax, bcat=["999"])
            sent[cattax] = json.loads(openrtb.write(request, decision.rendered, seat="leadre"))["seatbid"][0]["bid"][0]
    assert (sent[1]["cat"], sent[1].get("cattax", 1)) == (["IAB10-4"], 1)
    assert (sent[7]["cat"], sent[7]["cattax"]) == (["483"], 7)
    assert (sent[1]["langb"], sent[1]["bundle"]) == ("pt-br", "com.acme")
    assert "language" not in sent[1]
