"""Excerpts of unknown tables -> sections of a config. Each line that is a guess carries its reason."""

from __future__ import annotations

from dataclasses import dataclass, fields

import polars as pl

from leadre.data.inspection import actions, roles
from leadre.data.inspection.excerpts import Excerpt
from leadre.data.inspection.sections import Draft, Section, amount, sql
from leadre.data.sources.mapping import TableMapping
from leadre.data.tables import SCHEMAS, plain_name, shorten

MAX_PROFILE_COLUMNS = 20
_SETTINGS = {f.name for f in fields(TableMapping)}


@dataclass(frozen=True, kw_only=True)
class Log:
    """A table of events with its columns."""

    table: Excerpt
    user: str | None
    item: str | None
    time: roles.Time | None
    by_content: bool = False  # user and item are guessed by the order of columns with repeated values


def make(tables: list[Excerpt]) -> Draft:
    """The draft of a config for tables of an unknown layout."""
    draft = Draft()
    tables = [_usable(table, draft) for table in tables]
    logs = sorted(filter(None, map(_log, tables)), key=_score, reverse=True)
    if not logs:
        draft.missing.append(
            "events: no table has a column of users or times beside one of ads (such as user_id, timestamp, item_id);"
            " write [data.events] by hand (docs/logs.md, Map another layout)"
        )
        return draft
    log = logs[0]
    others = [table for table in tables if table is not log.table]
    for other in logs[1:]:
        draft.absent.append(f"{shorten(other.table.file)} looks like events, too; {shorten(log.table.file)} is read")
    ads = _find_ads(others, log)
    if ads is not None:
        log = Log(table=log.table, user=log.user, item=ads[2], time=log.time, by_content=log.by_content)
    if ads is None or not _is_ready(ads[0], "ads"):
        draft.sections.append(_ads_section(draft, log, ads))
    users = _find_users([table for table in others if ads is None or table is not ads[0]], log)
    if users is not None and not _is_ready(users[0], "users"):
        draft.sections.append(_users_section(*users))
    draft.sections.append(_events_section(draft, log))
    return draft


def _is_ready(table: Excerpt, name: str) -> bool:
    """Whether the files have the name of a table and its required columns, so that they need no mapping."""
    names = {plain_name(column) for column in table.frame.columns}
    return table.file.split(".")[0].lower() == name and names >= set(SCHEMAS[name].required)


def _usable(table: Excerpt, draft: Draft) -> Excerpt:
    """The table without columns that no expression can read."""
    frame = table.frame
    bad = [c for c in frame.columns if '"' in c or not c.isprintable()]
    if table.form.startswith("json"):
        bad += [c for c, kind in frame.schema.items() if kind == pl.Boolean]
    if bad:
        draft.absent.append(
            f"{shorten(table.file)}: columns {', '.join(map(shorten, bad[:5]))} cannot be mapped (quotes in the name,"
            " or truth values of JSON: write 0 and 1)"
        )
    return Excerpt(**{f.name: getattr(table, f.name) for f in fields(Excerpt)} | {"frame": frame.drop(bad)})


def _log(table: Excerpt) -> Log | None:
    """The table as events; None if it has no users or times beside items."""
    frame = table.frame
    user = roles.by_name("user", frame.columns)
    time = roles.time_column(frame, [user] if user else [])
    taken = [column for column in (user, time.column if time else None) if column]
    item = roles.by_name("item", frame.columns, taken)
    by_content = False
    if time is not None and (user is None or item is None):
        free = [c for c in frame.columns if c not in (*taken, item) and _repeats(frame, c)]
        if len(free) >= (user is None) + (item is None):
            by_content = True
            user = user or free.pop(0)
            item = item or free.pop(0)
    if item is None or (user is None and time is None) or roles.is_key(frame, user or item):
        return None
    return Log(table=table, user=user, item=item, time=time, by_content=by_content)


def _repeats(frame: pl.DataFrame, column: str) -> bool:
    """Whether the column looks like IDs of users or items: short texts or integers, many of which occur again."""
    texts = roles.cells(frame, column)
    if len(texts) < 0.5 * min(frame.height, 5_000) or frame.schema[column].is_float() or not len(texts):
        return False
    is_short = not texts.str.len_chars().gt(64).any()
    is_repeated = 2 < texts.n_unique() < 0.9 * len(texts)
    return is_short and is_repeated and roles.rating_limit(frame, column) is None


def _score(log: Log) -> tuple[int, int]:
    frame = log.table.frame
    marks = any(roles.by_name(role, frame.columns) for role in ("action", "click", "conversion", "rating"))
    return (3 * (log.user is not None) + 2 * (log.time is not None) + marks - log.by_content, log.table.bytes)


def _find_ads(tables: list[Excerpt], log: Log) -> tuple[Excerpt, str, str] | None:
    """(the table of the ads, its key, the column of the events that has its IDs)."""
    events = log.table.frame
    best: tuple[tuple[bool, bool, float], Excerpt, str, str] | None = None
    taken = {log.user, log.time.column if log.time else None}
    columns = [c for c in events.columns if c not in taken and (c == log.item or events[c].n_unique() > 20)]
    for table in tables:
        words = roles.by_name("title", table.frame.columns)
        if roles.by_name("user", table.frame.columns) and not words:
            continue
        for key in [c for c in table.frame.columns if c != words and roles.is_key(table.frame, c)][:5]:
            for column in columns:
                share = roles.overlap(events[column], table.frame[key])
                is_same = roles.plain(key) == roles.plain(column)
                is_named = column == log.item and roles.plain(key) in roles.NAMES["item"]
                if share >= 0.8 or (share > 0 and (is_same or is_named)):
                    score = (is_same or is_named, words is not None, share)
                    if best is None or score > best[0]:
                        best = (score, table, key, column)
    return None if best is None else best[1:]


def _find_users(tables: list[Excerpt], log: Log) -> tuple[Excerpt, str, str] | None:
    """(the table of the users, its key, the reason)."""
    if log.user is None:
        return None
    users = log.table.frame[log.user]
    for table in tables:
        named = roles.by_name("user", table.frame.columns)
        is_called = table.name.startswith(("user", "customer", "member", "visitor"))
        keys = [named] if named else [c for c in table.frame.columns if is_called and roles.is_key(table.frame, c)]
        for key in keys[:1]:
            share = roles.overlap(users, table.frame[key])
            if roles.is_key(table.frame, key) and share > 0:
                return table, key, f"by name, and {share:.0%} of the users of the events are there"
    return None


def _start(title: str, table: Excerpt) -> Section:
    section = Section(title=title, table=table)
    section.add("file", table.file)
    if table.header:
        why = "the first row looks like data; name the columns here and below"
        section.add("header", list(table.header), why)
    if not table.quoted:
        section.add("quoted", False)
    return section


def _id(table: Excerpt, column: str) -> str:
    is_float = table.form == "parquet" and table.frame.schema[column].is_float()
    return f"CAST({sql(column)} AS BIGINT)" if is_float else sql(column)


def _ads_section(draft: Draft, log: Log, ads: tuple[Excerpt, str, str] | None) -> Section:
    table, key = (log.table, log.item) if ads is None else ads[:2]
    assert key is not None, "a log has items"
    frame = table.frame
    section = _start("data.columns.ads", table)
    if ads is None or frame[key].n_unique() < frame.height or not table.is_whole:
        section.add("distinct", True, "of rows with one ID the first is kept")
    if ads is None:
        draft.absent.append("ads: no table of them; they are taken from the events")
        if frame[key].null_count():
            section.add("where", f"{sql(key)} IS NOT NULL")
        why = "the items of the events, as no table of ads was found"
    else:
        share = roles.overlap(log.table.frame[ads[2]], frame[key])
        why = f"{share:.0%} of the values of {shorten(ads[2])} in the events are there"
    section.add("ad_id", _id(table, key), why)
    taken = [key, *([log.user, log.time.column if log.time else None] if ads is None else [])]
    _title(draft, section, key, [column for column in taken if column])
    if ads is None:
        return section
    for role in ("object_id", "description", "brand", "advertiser_id"):
        column = roles.by_name(role, frame.columns, [key])
        if column is not None and not frame.schema[column].is_nested():
            section.add(role, sql(column), "by name")
    category = roles.by_name("category_path", frame.columns, [key])
    if category is not None:
        section.add("category_path", sql(category), "by name")
        mark = roles.list_separator(roles.cells(frame, category))
        if mark and mark != " > ":
            section.add("list_separator", mark, f"cells of {shorten(category)} have it")
    price = roles.by_name("price", frame.columns, [key])
    if price is not None and (expression := amount(table, price)):
        section.add("price", expression, "by name; units of a currency")
    return section


def _title(draft: Draft, section: Section, key: str, taken: list[str]) -> None:
    table = section.table
    frame = table.frame
    column = roles.by_name("title", frame.columns, taken)
    if column is not None and frame.schema[column] == pl.String:
        expression = sql(column)
        if frame[column].null_count():
            expression = f"COALESCE({expression}, concat('item ', {sql(key)}))"
        section.add("title", expression, "by name")
        return
    roles_of_features = ("category_path", "brand", "advertiser_id")
    named = [roles.by_name(role, frame.columns, taken) for role in roles_of_features]
    features = [c for c in named if c is not None and not frame.schema[c].is_nested()]
    parts = [f"'item ', {sql(key)}", *(f"' {roles.plain(c)} ', COALESCE({sql(c)}, '')" for c in features)]
    if table.form == "parquet":
        parts = [parts[0], *(f"' {roles.plain(c)} ', {sql(c)}" for c in features)]
    section.add("title", f"concat({', '.join(parts)})", "no column of titles was found; name words if there are any")
    draft.absent.append("ads: no titles; the model reads IDs and features, so new ads have little meaning")


def _users_section(table: Excerpt, key: str, why: str) -> Section:
    section = _start("data.columns.users", table)
    if table.frame[key].n_unique() < table.frame.height or not table.is_whole:
        section.add("distinct", True, "of rows with one ID the first is kept")
    section.add("user_id", _id(table, key), why)
    for column in table.frame.columns:
        is_free = column != key and column not in _SETTINGS and column != "user_id"
        if is_free and not table.frame.schema[column].is_nested() and len(section.lines) < MAX_PROFILE_COLUMNS:
            section.add(column, sql(column), "a column of the profile; delete it if it identifies a person")
    return section


def _events_section(draft: Draft, log: Log) -> Section:
    table = log.table
    frame = table.frame
    section = _start("data.events", table)
    section.add("unordered", True, "the order was not checked in all rows")
    by = "by content: IDs that occur again; look at this" if log.by_content else "by name"
    if log.user is None:
        draft.missing.append(
            f"events: {shorten(table.file)} has no column of users ({_names(frame)}); add user_id to [data.events]"
        )
    else:
        section.add("user_id", _id(table, log.user), by)
    taken = [column for column in (log.user, log.item) if column]
    if log.time is None:
        draft.absent.append("events: no times; rows count as seconds in their order, so times have no meaning")
        section.add("at", "row_number", "no column of times; the order of the rows is that of time")
        section.add("time_unit", "s")
        section.add("time_origin", "2020-01-01", "made up")
    else:
        taken.append(log.time.column)
        name = sql(log.time.column)
        section.add("at", f"STRPTIME({name}, '{log.time.format}')" if log.time.format else name, log.time.why)
        if log.time.unit:
            section.add("time_unit", log.time.unit, log.time.why)
        if log.time.origin:
            section.add("time_origin", log.time.origin, "made up")
            draft.absent.append("events: times count from an unnamed start; time_origin is made up")
    assert log.item is not None, "a log has items"
    section.add("item_id", _id(table, log.item), by)
    without = [sql(column) for column in taken if frame[column].null_count()]
    if without:
        condition = " AND ".join(f"{name} IS NOT NULL" for name in without)
        section.add("where", condition, "rows without them are no events")
    request = roles.by_name("request_id", frame.columns, taken)
    if request is not None and log.user is not None and _has_one_user(frame, request, log.user):
        section.add("request_id", _id(table, request), "by name, and each has one user")
        taken.append(request)
    placement = roles.by_name("placement_id", frame.columns, taken)
    if placement is not None and not frame.schema[placement].is_nested() and not frame.schema[placement].is_float():
        section.add("placement_id", sql(placement), "by name")
        taken.append(placement)
    actions.add(draft, section, taken)
    return section


def _names(frame: pl.DataFrame) -> str:
    return ", ".join(shorten(column) for column in frame.columns[:12])


def _has_one_user(frame: pl.DataFrame, request: str, user: str) -> bool:
    if frame.schema[request].is_nested():
        return False
    pairs = frame.select(request, user).drop_nulls().unique()
    return pairs.height > 0 and pairs[request].n_unique() == pairs.height
