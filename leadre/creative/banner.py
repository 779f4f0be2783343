"""Banners: an ad, a size and two URLs -> HTML. Templates escape every text of the advertiser.

A banner is a block of the advertiser's colour with a title, and the picture and the price that the ad has. The font
size of the title is the largest that fits, estimated here so that no script runs in the page. Lengths are CSS pixels.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal
from zlib import crc32

import jinja2
from markupsafe import escape

from leadre.types import Ad, Size

# White text has a contrast of 7:1 or more on each (WCAG 2.2, success criterion 1.4.6).
COLOURS = ("#1e40af", "#115e59", "#9a3412", "#9f1239", "#5b21b6", "#166534", "#075985", "#86198f")
SIGNS = {"EUR": "€", "GBP": "£", "INR": "₹", "USD": "$"}
NO_MINOR_UNIT = frozenset({"CLP", "ISK", "JPY", "KRW", "PYG", "VND"})  # currencies

LINE_HEIGHT = 1.3  # with less, some fonts lose their descenders where a text is cut off
LETTER_WIDTH = 0.6  # of a bold letter in the widest common font; Chinese, Japanese and Korean ones are twice as wide
MIN_TITLE = 12  # font of a title
LINE_SLACK = 3  # letters of a line that stay empty because the next word does not fit

Shape = Literal["row", "box", "tall"]  # parts side by side; below each other; below each other with more room


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The lengths of one size. ``image`` is the height of a picture, in a row its width as well."""

    shape: Shape
    pad: int
    gap: int
    button: int
    small: int  # font of the brand and the description
    price: int  # font
    title: int  # largest font of the title
    image: int
    has_brand: bool
    is_narrow: bool  # no room for a price beside the other parts: it is below the title, or above the button


@lru_cache
def templates(package: str = "leadre.creative") -> jinja2.Environment:
    """The HTML templates of a package, autoescaped; a missing variable is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        auto_reload=False,  # else it looks at the file's date at every banner
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def banner(ad: Ad, size: Size, *, click_url: str, impression_url: str) -> str:
    """HTML of ``size`` pixels that links to ``click_url`` and loads ``impression_url`` once when it is shown."""
    price = shown_price(ad.price_nanos, ad.price_currency)
    word = max(map(_letters, ad.title.split()), default=0)
    fields = (len(price), bool(ad.image_url), bool(ad.description))
    title_px, title_lines = _fit(size, _letters(ad.title), word, *fields)
    return _frame(size, title_px, title_lines, bool(ad.image_url), bool(price), bool(ad.description)).format(
        colour=COLOURS[crc32(ad.advertiser_id.encode()) % len(COLOURS)],
        title=escape(ad.title),
        brand=escape(ad.brand or ad.adomain),
        description=escape(ad.description),
        price=escape(price),
        image_url=escape(ad.image_url),
        click_url=escape(click_url),
        impression_url=escape(impression_url),
    )


def shown_price(nanos: int, currency: str) -> str:
    """A price as text: $2.44, CHF 1,200.00, JPY 300; "" for a price that is or rounds to 0."""
    places = 0 if currency in NO_MINOR_UNIT else 2
    unit = 10 ** (9 - places)
    whole, cents = divmod((nanos + unit // 2) // unit, 10**places)
    if not (whole or cents):
        return ""
    return SIGNS.get(currency, f"{currency}\u00a0") + f"{whole:,}" + (f".{cents:02}" if places else "")


@lru_cache(maxsize=256)
def plan(size: Size) -> Plan:
    """The layout of a banner of this size."""
    width, height = size
    short = min(size)
    if width > 2 * height:
        pad = _clamp(height // 8, 4, 24)
        return Plan(
            shape="row",
            pad=pad,
            gap=pad,
            button=_clamp(min(height * 2 // 5, width // 8), 20, 56),
            small=_clamp(height // 7, 11, 18),
            price=_clamp(min(height // 4, width // 16), 14, 40),
            title=_clamp(height // 4, 14, 40),
            image=max(1, height - 2 * pad),
            has_brand=height >= 60 and width >= 4 * height,
            is_narrow=width < 4 * height,
        )
    is_tall = height > 1.5 * width
    pad = _clamp(short // 15, 16, 24)  # room for the label in the corner
    return Plan(
        shape="tall" if is_tall else "box",
        pad=pad,
        gap=pad * 2 // 3,
        button=_clamp(short // 6, 24, 48),
        small=_clamp(short // 18, 12, 16),
        price=_clamp(short // 9, 18, 32),
        title=_clamp(short // 7, 20, 40),
        image=max(1, min(width - 2 * pad, height // 3) if is_tall else height // 3),
        has_brand=True,
        is_narrow=width < 160,
    )


@lru_cache(maxsize=8192)
def _fit(
    size: Size, letters: int, word: int, price_letters: int, has_image: bool, has_description: bool
) -> tuple[int, int]:
    """(font size, lines) of the largest title that fits; of the smallest one, which is cut off, if none fits.

    ``word``: length of the longest word. A word is broken only if no line in the smallest font holds it.
    """
    width, height = size
    layout = plan(size)
    room_height = height - 2 * layout.pad
    room_width = width - 2 * layout.pad
    room_height -= int(layout.small * LINE_HEIGHT) + 4 if layout.has_brand else 0
    room_height -= int(layout.price * LINE_HEIGHT) + 4 if layout.is_narrow and price_letters else 0
    if layout.shape == "row":
        has_price_column = price_letters and not layout.is_narrow
        room_width -= layout.button + 2 * layout.pad + (layout.image + layout.gap if has_image else 0)
        room_width -= int(price_letters * LETTER_WIDTH * layout.price) + layout.gap if has_price_column else 0
    else:
        description_lines = _description_lines(layout.shape, has_image) if has_description else 0
        room_height -= layout.button + layout.gap + (layout.image + layout.gap if has_image else 0)
        room_height -= int(layout.small * LINE_HEIGHT * description_lines) + 6 if description_lines else 0
    min_px = max(MIN_TITLE, layout.title // 2)
    word = word if word <= room_width / (min_px * LETTER_WIDTH) else 0
    for px in range(layout.title, min_px, -1):
        lines = max(1, int(room_height / (px * LINE_HEIGHT)))
        in_line = room_width / (px * LETTER_WIDTH)
        if word <= in_line and letters <= lines * (in_line - (LINE_SLACK if lines > 1 else 0)):
            return px, lines
    return min_px, max(1, int(room_height / (min_px * LINE_HEIGHT)))


def _description_lines(shape: Shape, has_image: bool) -> int:
    return {"row": 0, "box": 0 if has_image else 2, "tall": 5}[shape]


@lru_cache(maxsize=1024)
def _frame(size: Size, title_px: int, title_lines: int, has_image: bool, has_price: bool, has_description: bool) -> str:
    """The banner of a size, with a `str.format` field for each text and URL of an ad; cached, as sizes are few."""
    width, height = size
    layout = plan(size)
    return (
        templates()
        .get_template("banner.html")
        .render(
            plan=layout,
            line=LINE_HEIGHT,
            width=width,
            height=height,
            title_px=title_px,
            title_lines=title_lines,
            description_lines=_description_lines(layout.shape, has_image) if has_description else 0,
            has_image=has_image,
            has_price=has_price,
        )
    )


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _letters(text: str) -> int:
    """The width of a text in Latin letters."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
