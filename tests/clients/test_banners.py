"""Banners as their readers see them: measured in Chromium, in the sizes that publishers sell most."""

from __future__ import annotations

import itertools
import json

import pytest

from leadre.creative import banner as creatives
from leadre.types import Ad

pytestmark = pytest.mark.slow

SIZES = [(300, 250), (728, 90), (160, 600), (320, 50), (320, 100), (120, 600)]
PICTURE = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' width='90' height='60'/%3E"
LONG = "Everything that can be said of a watering can, and then some more of it, in one title. " * 6
# (texts of an ad, whether all of its title has room)
ADS = {
    "short": ({"title": "Shoes"}, True),
    "usual": ({"title": "Seedling trays, set of six", "brand": "Alder & Sons", "price_nanos": 12_950_000_000}, True),
    "picture": ({"title": "Seedling trays, set of six", "image_url": PICTURE, "price_nanos": 12_950_000_000}, True),
    "long": ({"title": LONG, "brand": LONG, "description": LONG, "price_nanos": 1_234_560_000_000}, False),
    "long word": ({"title": "W" * 300, "price_nanos": 89_900_000_000, "price_currency": "CHF"}, False),
    "arabic": ({"title": "أدوات الحديقة بأسعار مخفضة", "brand": "متجر", "price_nanos": 89_900_000_000}, True),
    "hebrew": ({"title": "מגש שתילים (Alder 6) במבצע", "image_url": PICTURE}, True),
}


@pytest.fixture(scope="module")
def seen(client, tmp_path_factory):
    """(size, ad) -> the measurements of gallery.mjs."""
    shown = [(size, name) for size in SIZES for name in ADS]
    banners = []
    for (width, height), name in shown:
        usual = {"ad_id": "a", "object_id": "o", "campaign_id": "c", "advertiser_id": name, "adomain": "alder.example"}
        ad = Ad(**usual | ADS[name][0])
        html = creatives.banner(ad, (width, height), click_url="http://a.example/e/click", impression_url="data:,")
        banners.append({"name": name, "width": width, "height": height, "html": html})
    path = tmp_path_factory.mktemp("gallery") / "banners.json"
    path.write_text(json.dumps(banners))
    return dict(zip(shown, json.loads(client("gallery.mjs", "--banners", str(path))), strict=True))


@pytest.mark.parametrize("name", ADS)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_all_texts_are_legible_and_do_not_overlap(seen, size, name):
    fields, is_whole = ADS[name]
    banner = seen[size, name]
    assert (banner["width"], banner["height"]) == size, "the content does not overflow"
    texts = {text["text"]: text for text in banner["texts"]}
    title = texts[fields["title"].strip()]
    assert title["px"] >= 12 and title["bottom"] - title["top"] >= title["px"]
    assert title["isCut"] != is_whole, "a title without room ends in an ellipsis"
    for a, b in itertools.combinations(texts.values(), 2):
        is_apart = (
            a["right"] <= b["left"] or b["right"] <= a["left"] or a["bottom"] <= b["top"] or b["bottom"] <= a["top"]
        )
        assert is_apart, (a, b)
    for text in texts.values():
        assert text["px"] >= 10 and text["left"] >= 0 and text["right"] <= size[0], text
        assert text["top"] >= 0 and text["bottom"] <= size[1] and text["right"] > text["left"], text
    if "price_nanos" in fields:
        (price,) = [box for text, box in texts.items() if text.endswith((".95", ".56", ".90"))]
        assert not price["isCut"]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("name", ["usual", "arabic", "hebrew"])
def test_layout_is_mirrored_for_right_to_left_text(seen, size, name):
    texts = {text["text"]: text for text in seen[size, name]["texts"]}
    title = texts[ADS[name][0]["title"]]
    arrow = texts["\u203a"]
    label = texts["Ad"]
    is_mirrored = name != "usual"
    assert (title["direction"] == "rtl") == is_mirrored
    assert (label["left"] < size[0] / 2) == is_mirrored == (arrow["left"] < size[0] / 2)
