"""Every code block of the pages runs, or has a reason not to."""

from __future__ import annotations

from pathlib import Path

import pytest

from .blocks import blocks_of
from .pages import ROOT

PAGES = [path for name in ("README.md", "CONTRIBUTING.md") if (path := ROOT / name).exists()]
PAGES += sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_blocks_of_a_page_run_in_order(page: Path, scratch) -> None:
    for block in blocks_of(page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")):
        scratch.run(block)


def test_there_are_pages() -> None:
    assert len(PAGES) > 5
