"""Banners: an ad, a size and two URLs -> HTML. Templates escape whatever an advertiser wrote."""

from __future__ import annotations

from functools import lru_cache

import jinja2
from markupsafe import escape

from leadre.types import Ad, Size


@lru_cache(maxsize=1)
def templates() -> jinja2.Environment:
    """The templates of serving, autoescaped; a missing variable is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("leadre.serve"),
        autoescape=True,
        auto_reload=False,  # else it looks at the file's date at every banner
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def banner(ad: Ad, size: Size, *, click_url: str, impression_url: str) -> str:
    """HTML of ``size`` pixels that links to ``click_url`` and asks for ``impression_url`` once when it is shown."""
    return _frame(size, bool(ad.brand), bool(ad.image_url)).format(
        title=escape(ad.title),
        brand=escape(ad.brand),
        image_url=escape(ad.image_url),
        click_url=escape(click_url),
        impression_url=escape(impression_url),
    )


@lru_cache(maxsize=256)
def _frame(size: Size, has_brand: bool, has_image: bool) -> str:
    """The banner of a size with fields, as `str.format` has them, for what differs between ads; sizes are few."""
    width, height = size
    return (
        templates()
        .get_template("banner.html")
        .render(
            title="{title}",
            brand="{brand}" if has_brand else "",
            image_url="{image_url}" if has_image else "",
            width=width,
            height=height,
            click_url="{click_url}",
            impression_url="{impression_url}",
        )
    )
