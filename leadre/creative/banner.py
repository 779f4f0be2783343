"""Banners: an ad, a size and two URLs -> HTML. Templates escape whatever an advertiser wrote.

A banner is a block of colour, the same for all ads of an advertiser, with a picture and a price where there are some.
Its text is as large as fits: estimated here, so that no script has to run in the page. Lengths are CSS pixels.
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

# White text stands out from each by 7:1 or more (WCAG 2.2, success criterion 1.4.6).
COLOURS = ("#1e40af", "#115e59", "#9a3412", "#9f1239", "#5b21b6", "#166534", "#075985", "#86198f")
SIGNS = {"EUR": "€", "GBP": "£", "INR": "₹", "USD": "$"}
WHOLE = frozenset({"CLP", "ISK", "JPY", "KRW", "PYG", "VND"})  # currencies without a smaller unit

LINE = 1.3  # height of a line; with less, some fonts lose the feet of their letters where a text is cut off
LETTER = 0.6  # width of a bold letter in the widest of the common fonts; one of Chinese, Japanese, Korean takes two
LEAST = 12  # a title's smallest font
BREAK = 3  # letters of a line that stay empty, as a word does not fit any more

Shape = Literal["row", "box", "tall"]  # side by side; below each other; the same with much room


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The lengths of one size. ``image`` is the height of a picture, in a row its width as well."""

    shape: Shape
    pad: int
    gap: int
    button: int
    small: int  # font of the brand and the description
    price: int  # font
    title: int  # font of the title at its largest
    image: int
    has_brand: bool
    is_narrow: bool  # a price has no room beside the other parts: it stands below the title, or above the button


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
    """HTML of ``size`` pixels that links to ``click_url`` and asks for ``impression_url`` once when it is shown."""
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
    """A price as people read it: $2.44, CHF 1,200.00, JPY 300; "" for none, and for what would be read as none."""
    places = 0 if currency in WHOLE else 2
    unit = 10 ** (9 - places)
    whole, cents = divmod((nanos + unit // 2) // unit, 10**places)
    if not (whole or cents):
        return ""
    return SIGNS.get(currency, f"{currency}\u00a0") + f"{whole:,}" + (f".{cents:02}" if places else "")


@lru_cache(maxsize=256)
def plan(size: Size) -> Plan:
    """How the parts of a banner share its room."""
    width, height = size
    short = min(size)
    if width > 2 * height:
        pad = _within(height // 8, 4, 24)
        return Plan(
            shape="row",
            pad=pad,
            gap=pad,
            button=_within(min(height * 2 // 5, width // 8), 20, 56),
            small=_within(height // 7, 11, 18),
            price=_within(min(height // 4, width // 16), 14, 40),
            title=_within(height // 4, 14, 40),
            image=max(1, height - 2 * pad),
            has_brand=height >= 60 and width >= 4 * height,
            is_narrow=width < 4 * height,
        )
    is_tall = height > 1.5 * width
    pad = _within(short // 15, 16, 24)  # the label has its corner to itself
    return Plan(
        shape="tall" if is_tall else "box",
        pad=pad,
        gap=pad * 2 // 3,
        button=_within(short // 6, 24, 48),
        small=_within(short // 18, 12, 16),
        price=_within(short // 9, 18, 32),
        title=_within(short // 7, 20, 40),
        image=max(1, min(width - 2 * pad, height // 3) if is_tall else height // 3),
        has_brand=True,
        is_narrow=width < 160,
    )


@lru_cache(maxsize=8192)
def _fit(
    size: Size, letters: int, word: int, price_letters: int, has_image: bool, has_description: bool
) -> tuple[int, int]:
    """(font size, lines) of the largest title that has room; the smallest, cut off, where none has.

    ``word`` is the length of the longest, which is broken only where it has no line in the smallest font either.
    """
    width, height = size
    own = plan(size)
    high, wide = height - 2 * own.pad, width - 2 * own.pad
    high -= int(own.small * LINE) + 4 if own.has_brand else 0
    high -= int(own.price * LINE) + 4 if own.is_narrow and price_letters else 0
    if own.shape == "row":
        wide -= own.button + 2 * own.pad + (own.image + own.gap if has_image else 0)
        wide -= int(price_letters * LETTER * own.price) + own.gap if price_letters and not own.is_narrow else 0
    else:
        high -= own.button + own.gap + (own.image + own.gap if has_image else 0)
        described = _description_lines(own.shape, has_image) if has_description else 0
        high -= int(own.small * LINE * described) + 6 if described else 0
    least = max(LEAST, own.title // 2)
    word = word if word <= wide / (least * LETTER) else 0
    for px in range(own.title, least, -1):
        lines, in_line = max(1, int(high / (px * LINE))), wide / (px * LETTER)
        if word <= in_line and letters <= lines * (in_line - (BREAK if lines > 1 else 0)):
            return px, lines
    return least, max(1, int(high / (least * LINE)))


def _description_lines(shape: Shape, has_image: bool) -> int:
    return {"row": 0, "box": 0 if has_image else 2, "tall": 5}[shape]


@lru_cache(maxsize=1024)
def _frame(size: Size, title_px: int, title_lines: int, has_image: bool, has_price: bool, has_description: bool) -> str:
    """The banner of a size with fields, as `str.format` has them, for what differs between ads; sizes are few."""
    width, height = size
    own = plan(size)
    return (
        templates()
        .get_template("banner.html")
        .render(
            plan=own,
            line=LINE,
            width=width,
            height=height,
            title_px=title_px,
            title_lines=title_lines,
            description_lines=_description_lines(own.shape, has_image) if has_description else 0,
            has_image=has_image,
            has_price=has_price,
        )
    )


def _within(value: int, least: int, most: int) -> int:
    return max(least, min(value, most))


def _letters(text: str) -> int:
    """Its width in letters of the Latin alphabet."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
