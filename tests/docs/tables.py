"""Cells and tables of the result pages, in one notation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MARKS = {"above": "▲", "below": "▽", "tie": "=", "": ""}

Cell = Mapping[str, Any]


def figure(value: float, digits: int = 3) -> str:
    """`0.3729` -> `.373`, the notation of all pages."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.{digits}f}")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, with the blank lines around it that Markdown needs after a comment."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "".join("| " + " | ".join(cell.strip() for cell in row) + " |\n" for row in lines) + "\n"
