"""Rows of a log -> impressions, clicks and conversions: by words in a column, by flags, by ratings, or all alike."""

from __future__ import annotations

import polars as pl

from leadre.data.inspection import roles
from leadre.data.inspection.excerpts import Excerpt
from leadre.data.inspection.sections import Draft, Section, amount, sql, toml
from leadre.data.tables import shorten


def add(draft: Draft, section: Section, taken: list[str]) -> None:
    """Which rows are impressions, clicks and conversions; and the action that counts as success."""
    table = section.table
    frame = table.frame
    worth = roles.by_name("value", frame.columns, taken)
    worth_sql = amount(table, worth) if worth else ""
    money = f", value = {toml(worth_sql)}" if worth_sql else ""
    by_word = roles.action_column(frame, taken)
    flags = {
        role: column
        for role in ("click", "conversion")
        if (column := roles.by_name(role, frame.columns, taken)) and roles.is_flag(frame, column)
    }
    rating = roles.by_name("rating", frame.columns, taken)
    rest = [c for c in frame.columns if c not in taken]
    if rating is None and table.header:
        rating = next((c for c in rest if roles.rating_limit(frame, c)), None)
    limit = roles.rating_limit(frame, rating) if rating else None
    actions: set[str] = set()
    if by_word is not None:
        actions = _by_words(draft, section, *by_word, money)
    elif flags:
        section.add("domain", "'ad'")
        section.actions.append(("{ action = \"'impression'\" }", "each row is one"))
        for role, column in flags.items():
            extra = money if role == "conversion" else ""
            condition = _is_true(table, column)
            section.actions.append((f"{{ action = \"'{role}'\", where = {toml(condition)}{extra} }}", "by name"))
            if frame.height and roles.cells(frame, column).str.to_lowercase().is_in(["1", "true", "1.0"]).any():
                actions.add(role)
    elif rating is not None and limit is not None:
        number = sql(rating) if table.form == "parquet" else f"TRY_CAST({sql(rating)} AS DOUBLE)"
        section.add("domain", "'ad'")
        section.actions.append(("{ action = \"'click'\" }", "each row is one"))
        where = toml(f"{number} >= {limit:g}")
        section.actions.append((f"{{ action = \"'conversion'\", where = {where} }}", "four fifths of the best rating"))
        actions = {"click", "conversion"}
    else:
        words = {
            "impression": ("impression", "view", "shown"),
            "conversion": ("order", "purchase", "transaction", "sale"),
        }
        action = next((a for a, names in words.items() if any(name in table.name for name in names)), "click")
        section.add("domain", "'ad'")
        section.add("action", f"'{action}'", "no column shows actions, so each row is one of this kind")
        if money and action == "conversion":
            section.add("value", worth_sql, "by name; units of a currency")
        actions = {action}
    _positive(draft, actions)


def _by_words(draft: Draft, section: Section, column: str, words: dict[str, tuple[str, str]], money: str) -> set[str]:
    if not any(action in ("click", "conversion") for _, action in words.values()):
        words = {word: ("ad", "click") if action == "view" else (d, action) for word, (d, action) in words.items()}
    is_number = section.table.form == "parquet" and section.table.frame.schema[column].is_numeric()
    for word, (domain, action) in sorted(words.items(), key=lambda entry: entry[1]):
        literal = word if is_number else "'" + word.replace("'", "''") + "'"
        extra = money if action == "conversion" else ""
        where = toml(f"{sql(column)} = {literal}")
        entry = f"{{ domain = \"'{domain}'\", action = \"'{action}'\", where = {where}{extra} }}"
        section.actions.append((entry, "by the word"))
    others = [w for w in roles.cells(section.table.frame, column).unique().sort().to_list() if w not in words]
    if others:
        draft.absent.append(
            f"events: rows with {shorten(column)} = {', '.join(map(shorten, others[:8]))} are not read; add them to"
            " actions"
        )
    return {action for domain, action in words.values() if domain == "ad"}


def _is_true(table: Excerpt, column: str) -> str:
    kind = table.frame.schema[column]
    if table.form == "parquet" and kind != pl.String:
        return sql(column) if kind == pl.Boolean else f"{sql(column)} = 1"
    values = roles.cells(table.frame, column).unique().to_list()
    true = sorted(value for value in values if value.lower() in ("1", "true"))
    if len(true) > 1:
        return f"{sql(column)} IN ({', '.join(map(repr, true))})"
    return f"{sql(column)} = {true[0] if true else '1'!r}"


def _positive(draft: Draft, actions: set[str]) -> None:
    if "conversion" in actions:
        draft.options.append(("positive", '"conversion"', "the rows have conversions"))
    elif "click" in actions:
        draft.options.append(("positive", '"click"', "the rows have clicks and no conversions"))
    else:
        draft.missing.append("events: no clicks and no conversions were found; name the success in actions")
