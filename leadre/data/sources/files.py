"""A user's own logs: a folder of Parquet, CSV or JSON files in the schema of the four tables.

Each table is one file (``events.parquet``, ``.csv``, ``.tsv``, ``.jsonl`` or ``.json``, also compressed), or a folder
of such files that are read in the order of their paths (``events/2026-03-01.csv.gz``):

    ads         ad_id, title; object_id, advertiser_id, description, brand, category_path, price_nanos, ... optional
    events      user_id, at, domain (content, ad), item_id, action (impression, click, conversion, view); value_nanos,
                placement_id, request_id optional
    contents    (optional) content_id, title; category_path, brand, description optional
    users       (optional) user_id and any profile columns; users in events alone get an empty profile
    inventory   (optional) ad_id; placement_id, starts_at, ends_at: live ads by placement and time; without it the ads'
                status, starts_at and ends_at decide
    requests    (optional) request_id, user_id, at, placement_id: visits that are not in the events

All columns with their types: ``leadre/data/tables.py``. Times are ISO 8601 (UTC unless they carry an offset) or whole
microseconds since 1970 (``time_unit``); money is a whole number of billionths of the currency, or a decimal amount in a
column without ``_nanos``; a CSV writes a category path as ``Home > Garden > Seeds``. Events must be in time order for
each user, as a log is (``--unordered true`` sorts them).

A file that cannot be read raises InputError with its name, row and column. A row that can be read but not used is
written to bad_rows.parquet; more than ``max_bad_share`` of a table stops the run. Nothing is passed over in silence:
files and columns that no table reads are named. Rows are counted as an editor counts lines: the header of a CSV is row
1 (a quoted line break does not count); Parquet rows begin at 1.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl

from leadre import progress
from leadre.data import profiles, requests, tables
from leadre.data.sources import raw
from leadre.data.sources.options import FileOptions
from leadre.data.sources.raw_log import REQUIRED, RawLog
from leadre.data.split import SplitTimes
from leadre.data.tables import FILE, ROW, SCHEMAS, Tables
from leadre.errors import InputError

MAX_NANOS = 2**63 - 1


def read(
    folder: Path, options: FileOptions, cut: SplitTimes, positive: str = "conversion", keep_empty: bool = False
) -> Tables:
    """Read, check and join the tables in ``folder``. Raises InputError; see the module docstring for the rules."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: not a folder; --path is a folder with {' and '.join(REQUIRED)} as Parquet, CSV or JSON lines"
        )
    with raw.reading(folder):
        log = RawLog.read(folder, options)
    options = dataclasses.replace(options, unordered=options.unordered or log.is_unordered)
    for name in ("ads", "inventory"):
        if name in log.frames:
            log.drop(name, "ends_at", *_ENDS_BEFORE_START)
    log.check_share(options.max_bad_share)
    ads = log.frames["ads"].with_columns(pl.col("object_id").fill_null(pl.col("ad_id")))
    contents = _keep_apart(log, ads, options.content_prefix)
    _check_events(log, ads, contents, options)
    windows = _windows(log, ads)
    log.check_share(options.max_bad_share)  # before the joins, which expect valid rows
    derived = requests.derive(
        ads=ads,
        events=log.frames["events"],
        windows=windows,
        listed=log.frames.get("requests"),
        cut=cut,
        positive=positive,
        keep_empty=keep_empty,
    )
    log.bad.append(derived.bad_rows)
    log.check_share(options.max_bad_share)
    _check_money(derived.events)
    late = ", ".join(f"{count:,} of {split}" for split, count in derived.late.items())
    if late:
        progress.say(
            f"data: requests that lost their label, as their {positive} came after the next split began: {late};"
            " they are kept apart like requests without one"
        )
    return Tables(
        ads=tables.complete("ads", ads.drop(ROW, FILE)),
        contents=tables.complete("contents", contents.drop(ROW, FILE)),
        users=_users(log.frames.get("users"), options, derived.events, derived.requests, derived.empty_requests),
        events=tables.complete("events", derived.events.drop(ROW, FILE)),
        requests=derived.requests,
        inventories=derived.inventories,
        empty_requests=derived.empty_requests,
        empty_inventories=derived.empty_inventories,
        bad_rows=pl.concat(log.bad),
    )


_ENDS_BEFORE_START = (pl.col("ends_at") <= pl.col("starts_at"), pl.format("is not after starts_at: {}", "ends_at"))


def _keep_apart(log: RawLog, ads: pl.DataFrame, prefix: str) -> pl.DataFrame:
    """The contents, with ``prefix`` before their IDs there and in the events.

    Without a prefix, IDs that an object and a content share mean one thing; other titles make that doubtful, so their
    number is shown.
    """
    contents = log.frames.get("contents")
    if contents is None:
        return pl.DataFrame(schema={**SCHEMAS["contents"].columns, ROW: pl.Int64, FILE: pl.String})
    if prefix:
        is_content = (pl.col("domain") == "content") & pl.col("item_id").is_in(contents["content_id"].implode())
        prefixed = pl.when(is_content).then(pl.lit(prefix) + pl.col("item_id")).otherwise("item_id")
        log.frames["events"] = log.frames["events"].with_columns(item_id=prefixed)
        return contents.with_columns(content_id=pl.lit(prefix) + pl.col("content_id"))
    objects = ads.select(content_id="object_id", title_of_ad="title").unique("content_id", keep="first")
    both = contents.join(objects, on="content_id", how="inner", maintain_order="left")
    both = both.filter(pl.col("title") != pl.col("title_of_ad"))
    if both.height:
        first = both.row(0, named=True)
        progress.say(
            f"data: {both.height:,} IDs are an ad's object and a content with another title (first: "
            f"{first['content_id']!r} is {tables.shorten(first['title_of_ad'])} and {tables.shorten(first['title'])});"
            " each is one thing to the model. If they are two, --content-prefix content- keeps them apart"
        )
    return contents


def _check_events(log: RawLog, ads: pl.DataFrame, contents: pl.DataFrame, options: FileOptions) -> None:
    """Drop events that are not in time order for their user, and events of unknown items."""
    if not options.unordered and not log.frames["events"]["at"].is_sorted():
        before = pl.col("at").cum_max().shift(1).over("user_id")
        log.frames["events"] = log.frames["events"].with_columns(__latest=before)
        why = "goes backwards: {} after {} of this user; sort the log or pass --unordered true"
        log.drop("events", "at", pl.col("at") < pl.col("__latest"), pl.format(why, "at", "__latest"))
        log.frames["events"] = log.frames["events"].drop("__latest")
    content_ids = pl.concat([ads["object_id"], contents["content_id"]]).unique()
    events = log.frames["events"]
    is_unknown = _unknown_items(events, {"ad": ads["ad_id"], "content": content_ids})
    if not is_unknown.any():
        return
    events = events.with_columns(is_unknown.alias("__unknown"))
    log.frames["events"] = events.join(log.reasons(), on=["domain", "item_id"], how="left", maintain_order="left")
    left_out = pl.format("is of an item that was left out: {} ({})", "item_id", "__left_out")
    item = pl.coalesce(left_out, pl.format("is unknown: no {} has the ID {}", "domain", "item_id"))
    log.drop("events", "item_id", pl.col("__unknown"), item)
    log.frames["events"] = log.frames["events"].drop("__left_out", "__unknown")


def _unknown_items(events: pl.DataFrame, ids_of: dict[str, pl.Series]) -> pl.Series:
    """Mask of the events of an item that is not among the IDs of its domain."""
    unknown = pl.repeat(False, events.height, dtype=pl.Boolean, eager=True)
    for domain, ids in ids_of.items():
        rows = (events["domain"] == domain).arg_true()
        is_known = events["item_id"].gather(rows).is_in(ids.implode())
        unknown = unknown.scatter(rows.filter(~is_known), True)
    return unknown


def _check_money(events: pl.DataFrame) -> None:
    """Raise InputError if the values of a request do not fit into int64 together: they are summed in later stages."""
    paid = events.filter(pl.col("value_nanos") > 0, pl.col("request_id").is_not_null())
    sums = paid.group_by("request_id", maintain_order=True).agg(
        pl.col("value_nanos").cast(pl.Int128).sum().alias("sum")
    )
    too_large = sums.filter(pl.col("sum") > MAX_NANOS)
    if too_large.height:
        request_id = too_large["request_id"][0]
        rows = paid.filter(pl.col("request_id") == request_id)
        raise InputError(
            f"{rows[FILE][0]}, row {rows[ROW][0]}, column 'value_nanos': the values of the request {request_id!r} are"
            f" more than {MAX_NANOS:,} billionths together; correct the amounts"
        )


def _windows(log: RawLog, ads: pl.DataFrame) -> pl.DataFrame:
    if "inventory" not in log.frames:
        return requests.windows_of(ads)
    unknown = ~pl.col("ad_id").is_in(ads["ad_id"].implode())
    log.drop("inventory", "ad_id", unknown, pl.format("is unknown: no ad has the ID {}", "ad_id"))
    return log.frames["inventory"]


def _users(users: pl.DataFrame | None, options: FileOptions, *others: pl.DataFrame) -> pl.DataFrame:
    """Profiles with a row for each user of ``others``."""
    log_users = pl.concat([frame.select("user_id") for frame in others]).unique().sort("user_id")
    if users is None:
        users = log_users
    known = [column for column in users.columns if column != "user_id"]
    for name in options.profile_numbers:
        if name not in known:
            raise InputError(f"--profile-numbers: users has no column {name!r}; it has {', '.join(known) or 'none'}")
    users, left_out = profiles.plain(users.drop(ROW, FILE, strict=False), "user_id")
    if left_out:
        progress.say(f"data: columns of users that are neither words nor numbers are left out: {', '.join(left_out)}")
    return pl.concat([users, log_users.join(users, on="user_id", how="anti")], how="diagonal").sort("user_id")
