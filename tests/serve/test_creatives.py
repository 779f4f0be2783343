"""Banners: what an advertiser wrote stays text, whatever it looks like."""

from __future__ import annotations

import pytest

from leadre.serve import creatives

URLS = {"click_url": "https://ads.test/e/click?t=a&b=1", "impression_url": "https://ads.test/e/imp?t=a&b=1"}


def test_what_an_advertiser_wrote_is_text(ad):
    html = creatives.banner(ad(title="<b>{brand} & {0}</b>", brand='{title} "x"'), (300, 250), **URLS)
    assert "&lt;b&gt;{brand} &amp; {0}&lt;/b&gt;" in html and "{title} &#34;x&#34;" in html
    assert 'href="https://ads.test/e/click?t=a&amp;b=1"' in html and 'src="https://ads.test/e/imp?t=a&amp;b=1"' in html


@pytest.mark.parametrize("size", [(300, 250), (728, 90), (1, 1)])
@pytest.mark.parametrize("brand", ["", "Acme"])
@pytest.mark.parametrize("image_url", ["", "https://acme.test/a.png"])
def test_a_banner_has_the_size_and_what_there_is(ad, size, brand, image_url):
    html = creatives.banner(ad(brand=brand, image_url=image_url), size, **URLS)
    assert f"width:{size[0]}px;height:{size[1]}px" in html and "Shoes" in html and "{" not in html
    assert html.count("<img") == 1 + bool(image_url) and html.count("<br>") == bool(brand)
