"""Banners: an ad, a size and two URLs -> HTML. Every text of the advertiser is escaped.

A banner is a block in a colour that the advertiser's ID determines, with a title and, if the ad has them, a picture and
a price. The title has the largest font that fits; this file estimates it, so that the page runs no script. Lengths are
CSS pixels.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal
from zlib import crc32

import jinja2
from markupsafe import escape

from leadre.types import Ad, Size

# On each, white text has a contrast of 7:1 or more (WCAG 2.2, success criterion 1.4.6).
COLOURS = ("#1e40af", "#115e59", "#9a3412", "#9f1239", "#5b21b6", "#166534", "#075985", "#86198f")
SIGNS = {"EUR": "€", "GBP": "£", "INR": "₹", "USD": "$"}
NO_MINOR_UNIT = frozenset({"CLP", "ISK", "JPY", "KRW", "PYG", "VND"})  # currencies

LINE_HEIGHT = 1.3  # x font size; with less, the cut of an overlong text would clip the descenders of some fonts
LETTER_WIDTH = 0.6  # x font size: a bold letter of the widest common font; Chinese, Japanese and Korean: twice as wide
MIN_TITLE = 12  # smallest font of a title
LINE_SLACK = 3  # letters left empty at the end of a line, because the next word does not fit

_URLS = re.compile(r"{click_url}|{impression_url}")  # in this order
Shape = Literal["row", "box", "tall"]  # parts side by side; below each other; below each other with more room


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The layout of one banner size. ``image`` is the height of a picture, in a row its width as well."""

    shape: Shape
    pad: int
    gap: int
    button: int
    small: int  # font of the brand and the description
    price: int  # font
    title: int  # largest font of the title
    image: int
    has_brand: bool
    is_narrow: bool  # a price has no room beside the other parts: it is below the title or above the button


@lru_cache
def templates(package: str = "leadre.creative") -> jinja2.Environment:
    """The HTML templates of a package, autoescaped; a missing variable is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        auto_reload=False,  # otherwise jinja2 checks the file's date for every banner
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def banner(ad: Ad, size: Size, *, click_url: str, impression_url: str) -> str:
    """HTML of ``size`` pixels that links to ``click_url`` and loads ``impression_url`` once when it is displayed."""
    start, middle, end = _around_urls(
        size,
        ad.advertiser_id,
        ad.title,
        ad.brand or ad.adomain,
        ad.description,
        ad.price_nanos,
        ad.price_currency,
        ad.image_url,
    )
    return f"{start}{escape(click_url)}{middle}{escape(impression_url)}{end}"


@lru_cache(maxsize=4096)  # a few ads win most impressions
def _around_urls(
    size: Size,
    advertiser_id: str,
    title: str,
    brand: str,
    description: str,
    price_nanos: int,
    price_currency: str,
    image_url: str,
) -> list[str]:
    """The HTML of a banner before, between and after its two URLs."""
    price = shown_price(price_nanos, price_currency)
    longest_word = max(map(_letters, title.split()), default=0)
    has_image = bool(image_url)
    has_description = bool(description)
    title_px, title_lines = _fit(size, _letters(title), longest_word, len(price), has_image, has_description)
    frame = _frame(size, title_px, title_lines, has_image, bool(price), has_description)
    texts = {
        "colour": COLOURS[crc32(advertiser_id.encode()) % len(COLOURS)],
        "title": _escaped(title),
        "brand": _escaped(brand),
        "description": _escaped(description),
        "price": _escaped(price),
        "image_url": escape(image_url.replace("${", "%24{")),
    }
    return [part.format(**texts) for part in _URLS.split(frame)]


def _escaped(text: str) -> str:
    """A text of the advertiser as HTML. It holds no macro: an exchange would fill in prices of others."""
    return str(escape(text)).replace("${", "&#36;{")


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
    size: Size, letters: int, longest_word: int, price_letters: int, has_image: bool, has_description: bool
) -> tuple[int, int]:
    """(font size, lines) of the largest title font that fits; of the smallest font, cut off, if none fits.

    ``letters``: of the title; ``longest_word``: its letters. A word is broken only if it is longer than a line of the
    smallest font.
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
    unbroken = longest_word if longest_word <= room_width / (min_px * LETTER_WIDTH) else 0
    for px in range(layout.title, min_px, -1):
        lines = max(1, int(room_height / (px * LINE_HEIGHT)))
        line_letters = room_width / (px * LETTER_WIDTH)
        if unbroken <= line_letters and letters <= lines * (line_letters - (LINE_SLACK if lines > 1 else 0)):
            return px, lines
    return min_px, max(1, int(room_height / (min_px * LINE_HEIGHT)))


def _description_lines(shape: Shape, has_image: bool) -> int:
    return {"row": 0, "box": 0 if has_image else 2, "tall": 5}[shape]


@lru_cache(maxsize=1024)
def _frame(size: Size, title_px: int, title_lines: int, has_image: bool, has_price: bool, has_description: bool) -> str:
    """HTML of a banner with a `str.format` field for each text and URL of an ad. Cached, as few layouts exist."""
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
    """The width of a text, in Latin letters."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
