"""Banners: escaping, sizes, fonts, prices and contrast."""

from __future__ import annotations

import pytest

from leadre.creative import banner as creatives
from leadre.serve.protocol.openrtb import substitute

URLS = {"click_url": "https://ads.test/e/click?t=a&b=1", "impression_url": "https://ads.test/e/imp?t=a&b=1"}


def test_text_of_an_advertiser_is_escaped(ad):
    html = creatives.banner(ad(title="<b>{brand} & {0}</b>", brand='{title} "x"'), (300, 250), **URLS)
    assert "&lt;b&gt;{brand} &amp; {0}&lt;/b&gt;" in html and "{title} &#34;x&#34;" in html
    assert 'href="https://ads.test/e/click?t=a&amp;b=1"' in html and 'src="https://ads.test/e/imp?t=a&amp;b=1"' in html


def test_macros_in_texts_and_urls_of_an_advertiser_are_not_filled(ad):
    macro = "${AUCTION_PRICE}"
    fields = {"title": f"a {macro}", "description": macro, "brand": macro, "image_url": f"https://a.test/i?p={macro}"}
    html = creatives.banner(ad(**fields), (160, 600), **URLS)
    assert substitute(html, {"AUCTION_PRICE": "1.23"}) == html and "${" not in html
    assert "a &#36;{AUCTION_PRICE}" in html and "https://a.test/i?p=%24{AUCTION_PRICE}" in html


@pytest.mark.parametrize("size", [(300, 250), (728, 90), (160, 600), (1, 1), (10_000, 10_000), (1, 10_000)])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"brand": "Acme", "description": "Light and dry", "price_nanos": 5_000_000_000},
        {"image_url": "https://acme.test/a.png", "title": "鞋" * 512},
    ],
)
def test_banner_has_its_size_and_the_fields_of_the_ad(ad, size, fields):
    advertised = ad(adomain="acme.test", **fields)
    html = creatives.banner(advertised, size, **URLS)
    assert f"width:{size[0]}px;height:{size[1]}px" in html and advertised.title in html and "{" not in html
    assert html.count("<img") == 1 + ("image_url" in fields) and ("$5.00" in html) == ("price_nanos" in fields)


def test_font_of_a_long_title_is_smaller_but_readable(ad):
    def title_px(title):
        html = creatives.banner(ad(title=title), (300, 250), **URLS)
        return int(html.split(title)[0].rsplit("font-size:", 1)[1].split("px")[0])

    sizes = [title_px("word " * count) for count in (1, 8, 20, 100)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 30 and 15 <= sizes[-1] < 20


@pytest.mark.parametrize(
    ("nanos", "currency", "shown"),
    [
        (2_440_000_000, "USD", "$2.44"),
        (1_234_567_895_000_000, "EUR", "€1,234,567.90"),
        (50_000_000, "CHF", "CHF\u00a00.05"),
        (300_499_999_999, "JPY", "JPY\u00a0300"),
        (4_999_999, "USD", ""),
        (0, "USD", ""),
    ],
)
def test_price_is_formatted_for_its_currency(nanos, currency, shown):
    assert creatives.shown_price(nanos, currency) == shown


@pytest.mark.parametrize("colour", creatives.COLOURS)
def test_white_text_has_enough_contrast_on_every_colour(colour):
    """Relative luminance and contrast as WCAG 2.2 defines them."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    luminance = sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    assert 1.05 / (luminance + 0.05) >= 7
