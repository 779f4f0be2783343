"""Text cells -> lists: entries between separators, arrays of JSON, and lists as Python prints them.

Writers of CSV have no form for lists. A data frame writes ``['Home', 'Garden']``, a JSON column
``["Home", "Garden"]``; other cells have separators.
"""

from __future__ import annotations

import ast
import json
import re
import warnings

import polars as pl

from leadre.data.sources.options import LIST_SEPARATOR
from leadre.data.tables import LIST_MARK

OTHER_SEPARATORS = (">", "|", "/", ";", ",")
_PRINTED = r"^\[.*\]$"
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_OF_PYTHON = re.compile(rf"\[\s*(?:{_QUOTED})(?:\s*,\s*(?:{_QUOTED}))*\s*,?\s*\]")


def entries(cells: pl.Series, separator: str = LIST_SEPARATOR) -> pl.Series:
    """The list of each cell; null for a missing cell and a printed list without entries."""
    is_printed = cells.str.contains(_PRINTED).fill_null(False)
    if is_printed.any():
        marked = [_marked(cell) for cell in cells.filter(is_printed).to_list()]
        cells = cells.scatter(is_printed.arg_true(), pl.Series(marked, dtype=pl.String))
    split = cells.str.split(separator)
    if separator != LIST_SEPARATOR:  # which has its blanks; no text has any around it
        split = split.list.eval(pl.element().str.strip_chars())
    is_marked = cells.str.contains(LIST_MARK, literal=True).fill_null(False)
    return cells.str.split(LIST_MARK).list.slice(1).zip_with(is_marked, split) if is_marked.any() else split


def unsplit(lists: pl.Series) -> str | None:
    """The separator that seems to be in the entries of a column in which no list has two of them; None for none."""
    texts = lists.list.first().drop_nulls().unique()
    if len(texts) < 2 or (lists.list.len() > 1).any():
        return None
    counts = {mark: int(texts.str.contains(mark, literal=True).sum()) for mark in OTHER_SEPARATORS}
    best = max(counts, key=lambda mark: counts[mark])
    return best if 2 * counts[best] > len(texts) else None


def _marked(cell: str) -> str | None:
    """A printed list in the form of lists that pass through text (`LIST_MARK`); text that is no list as it is."""
    try:
        values = json.loads(cell)
    except (ValueError, RecursionError):
        # NumPy prints no commas, so its lists stay text: where an entry ends is not known.
        if not _OF_PYTHON.fullmatch(cell):
            return cell
        try:
            with warnings.catch_warnings(action="error"):  # Python prints no escape that it warns of
                values = [ast.literal_eval(text) for text in re.findall(_QUOTED, cell)]
        except (SyntaxError, ValueError):
            return cell
    if not all(isinstance(value, str | int | None) and not isinstance(value, bool) for value in values):
        return cell
    texts = [str(value).replace(LIST_MARK, " ") for value in values if value is not None]
    return LIST_MARK + LIST_MARK.join(texts) if texts else None
