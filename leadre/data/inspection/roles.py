"""Columns of an unknown table -> their roles, by name and by content. Every answer carries its reason."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import polars as pl

from leadre.data import times
from leadre.data.sources.options import TIME_UNITS
from leadre.data.times import TimeFormat

# Role -> names of columns, best first, in lower case and without other characters than letters and digits.
NAMES: dict[str, tuple[str, ...]] = {
    "user": (
        *("userid", "user", "uid", "useridx", "customerid", "visitorid", "memberid", "reviewerid", "accountid"),
        *("personid", "profileid", "clientid", "buyerid", "viewerid", "cookieid", "cookie", "visitor", "customer"),
        *("anonymousid", "userpseudoid", "deviceid", "device", "browserid", "fullvisitorid", "sessionid", "session"),
    ),
    "item": (
        *("adid", "itemid", "creativeid", "adgroupid", "ad", "item", "iid", "itemidx", "creative", "productid"),
        *("articleid", "movieid", "videoid", "newsid", "songid", "trackid", "bookid", "gameid", "appid", "asin"),
        *("parentasin", "isbn", "sku", "bannerid", "banner", "product", "article", "movie", "listingid", "offerid"),
        *("goodsid", "contentid", "businessid", "recipeid", "artistid", "campaignid", "campaign", "pid", "id"),
    ),
    "time": (
        *("at", "timestamp", "eventtime", "time", "ts", "tsms", "timems", "datetime", "eventtimestamp", "timestamps"),
        *("createdat", "occurredat", "unixtimestamp", "unixreviewtime", "clicktime", "eventdate", "tdat", "date"),
        *("hour", "day"),
    ),
    "action": (
        *("action", "event", "eventtype", "eventname", "kind", "behavior", "behaviour", "behaviortype", "actiontype"),
        *("interaction", "interactiontype", "activity", "type"),
    ),
    "click": ("click", "clicked", "isclick", "isclicked", "clk", "clicks", "label"),
    "conversion": (
        *("conversion", "converted", "isconversion", "purchase", "purchased", "ispurchase", "bought", "buy", "order"),
        *("ordered", "install", "installed", "isattributed", "attribution", "islike"),
    ),
    "rating": ("rating", "stars", "score", "overall", "ratings"),
    "title": (
        *("title", "name", "itemname", "productname", "prodname", "movietitle", "headline", "adtitle", "itemtitle"),
        *("producttitle", "text", "artistname", "bookname"),
    ),
    "description": ("description", "desc", "detaildesc", "abstract", "summary", "body", "details"),
    "category_path": (
        *("categorypath", "category", "categories", "genres", "genre", "cat", "class", "categoryname", "department"),
        *("producttypename", "categoryid", "tags"),
    ),
    "brand": ("brand", "brandname", "manufacturer", "vendor", "store", "publisher"),
    "price": ("price", "usd", "unitprice", "saleprice", "priceusd", "cost"),
    "value": ("value", "revenue", "amount", "ordervalue", "total", "price", "usd", "sales"),
    "request_id": ("requestid", "impressionid", "bidid", "auctionid", "searchid", "queryid"),
    "placement_id": ("placementid", "placement", "slotid", "slot", "zoneid", "adslot", "position"),
    "advertiser_id": ("advertiserid", "advertiser", "merchantid", "sellerid", "brandid"),
    "object_id": ("objectid", "sku", "productid"),
}
# Words of an action -> (domain, action). Further words are named and not read.
ACTIONS = {
    **dict.fromkeys(("impression", "imp", "impressions", "show", "shown", "exposure", "served"), ("ad", "impression")),
    **dict.fromkeys(
        ("click", "clk", "clicks", "tap", "open", "addtocart", "cart", "fav", "favorite", "like"), ("ad", "click")
    ),
    **dict.fromkeys(
        ("conversion", "conv", "order", "purchase", "buy", "bought", "transaction", "sale", "checkout", "install"),
        ("ad", "conversion"),
    ),
    **dict.fromkeys(("view", "pageview", "pv", "detail", "visit", "watch", "read", "play"), ("content", "view")),
}
FORMATS = (  # of times that are not ISO 8601
    *("%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M"),
    *("%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%Y/%m/%d %H:%M:%S", "%d/%b/%Y:%H:%M:%S", "%d-%b-%Y"),
    *("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%Y/%m/%d"),
)
MIN_SHARE = 0.99  # of the cells that have the form
_MAX_CELLS = 5_000  # that are looked at to find the form of a column


@dataclass(frozen=True, kw_only=True)
class Time:
    """A column of times. ``unit``: of `FileOptions`; ``format``: of STRPTIME; "": ISO 8601. ``why``: in words."""

    column: str
    unit: str = ""
    format: str = ""
    origin: str = ""
    why: str


def plain(name: str) -> str:
    """The name of a column as `NAMES` has it; RecBole's types (``user_id:token``) are left out."""
    return re.sub(r"[^a-z0-9]", "", name.lower().split(":")[0])


def by_name(role: str, columns: Collection[str], taken: Collection[str] = ()) -> str | None:
    """The column with the best name of a role."""
    free = {plain(column): column for column in reversed(list(columns)) if column not in taken}
    return next((free[name] for name in NAMES[role] if name in free), None)


def cells(frame: pl.DataFrame, column: str) -> pl.Series:
    """Some cells of a column with a value, as text."""
    values = frame[column].drop_nulls().head(_MAX_CELLS)
    if values.dtype.is_nested():
        return pl.Series(column, [], dtype=pl.String)
    text = values.cast(pl.String, strict=False).str.strip_chars()
    return text.filter(text != "").fill_null("")


def share_of_numbers(texts: pl.Series) -> float:
    """The share of cells that are numbers with a point or without; 0 without cells."""
    return _share(texts.str.contains(r"^[+-]?\d+(\.\d+)?([eE][+-]?\d+)?$"))


def is_flag(frame: pl.DataFrame, column: str) -> bool:
    """Whether all cells are 0 or 1, or truth values."""
    values = set(cells(frame, column).str.to_lowercase().unique().to_list())
    return bool(values) and values <= {"0", "1", "true", "false"}


def rating_limit(frame: pl.DataFrame, column: str) -> float | None:
    """The rating from which on a row is a success: four fifths of the best; None for a column without ratings."""
    numbers = cells(frame, column).cast(pl.Float64, strict=False).drop_nulls()
    if not len(numbers) or share_of_numbers(cells(frame, column)) < MIN_SHARE or not 2 < numbers.n_unique() <= 20:
        return None
    top = float(numbers.max())  # type: ignore[arg-type]  # a column of floats
    return 0.8 * top if 0 < top <= 100 else None


def action_column(frame: pl.DataFrame, taken: Collection[str]) -> tuple[str, dict[str, tuple[str, str]]] | None:
    """(the column, its words with domain and action): by name, or because words of actions are in it."""
    named = by_name("action", frame.columns, taken)
    others = [column for column in frame.columns if column not in taken and column != named]
    for column in [*([named] if named else []), *others]:
        words = cells(frame, column).unique().sort().head(100).to_list()
        if len(words) > 50:
            continue
        known = {word: ACTIONS[plain(word)] for word in words if plain(word) in ACTIONS}
        if known and (column == named or len(known) == len(words)):
            return column, known
    return None


def time_column(frame: pl.DataFrame, taken: Collection[str] = ()) -> Time | None:
    """The column of times: by name and content, then by content alone, then by name as counts from an unnamed start."""
    free = [column for column in frame.columns if column not in taken]
    named = [c for name in NAMES["time"] for c in free if plain(c) == name]
    for column in named:
        if (time := _time(frame, column, is_named=True)) is not None:
            return time
    for column in free:
        is_id = plain(column).endswith("id") or any(plain(column) in NAMES[role] for role in ("user", "item"))
        if column not in named and not is_id and (time := _time(frame, column, is_named=False)) is not None:
            return time
    for column in named:
        if share_of_numbers(cells(frame, column)) >= MIN_SHARE:
            why = "numbers that are no date in any unit: seconds from an unnamed start"
            return Time(column=column, unit="s", origin="2020-01-01", why=why)
    return None


def _time(frame: pl.DataFrame, column: str, *, is_named: bool) -> Time | None:
    raw = frame[column]
    by = "name and content" if is_named else "content"
    if raw.dtype.is_temporal():
        return Time(column=column, why=f"by {by}: {raw.dtype} of Parquet") if raw.dtype != pl.Duration else None
    texts = cells(frame, column)
    if not len(texts):
        return None
    is_number = share_of_numbers(texts) >= MIN_SHARE
    # A number of eight digits may be an ID, so that content alone proves no calendar date.
    units = [unit for unit in TIME_UNITS if is_named or unit != "calendar"] if is_number else [""]
    for unit in units:
        micros, _ = times.micros(texts, TimeFormat(unit=unit or "us"))  # type: ignore[arg-type]  # one of TIME_UNITS
        if _share(micros.is_not_null()) >= MIN_SHARE:
            return Time(
                column=column, unit=unit, why=f"by {by}: " + (f"in {unit} by its range" if unit else "ISO 8601")
            )
    fitting = [f for f in FORMATS if not is_number and _share(_parsed(texts, f).is_not_null()) >= MIN_SHARE]
    if not fitting:
        return None
    doubt = f"; {fitting[1]} fits, too" if len(fitting) > 1 else ""
    return Time(column=column, format=fitting[0], why=f"by {by}: form {fitting[0]}{doubt}")


def _parsed(texts: pl.Series, form: str) -> pl.Series:
    if any(mark in form for mark in ("%H", "%I")):
        return texts.str.to_datetime(form, strict=False, time_unit="us")
    return texts.str.to_date(form, strict=False)


def _share(mask: pl.Series) -> float:
    return float(mask.fill_null(False).sum()) / len(mask) if len(mask) else 0.0


def list_separator(texts: pl.Series) -> str:
    """The separator of lists in text cells; "" if no cell has one."""
    marks = ("|", " > ", "/", ";", ",")
    shares = {mark: _share(texts.str.contains(mark, literal=True)) for mark in marks}
    best = max(marks, key=lambda mark: shares[mark])
    return best if shares[best] > 0.1 else ""


def overlap(part: pl.Series, whole: pl.Series) -> float:
    """The share of distinct values of ``part`` that are in ``whole``."""
    if part.dtype.is_nested() or whole.dtype.is_nested():
        return 0.0
    values = part.drop_nulls().cast(pl.String, strict=False).unique()
    return _share(values.is_in(whole.cast(pl.String, strict=False).unique().to_list()))


def is_key(frame: pl.DataFrame, column: str) -> bool:
    """Whether nearly every row has a value of its own."""
    values = frame[column].drop_nulls()
    return not values.dtype.is_nested() and len(values) > 0 and values.n_unique() >= MIN_SHARE * frame.height
