"""Servers for the tests of a file, and configs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from leadre.__main__ import main
from tests.data.fetch import servers

DATA = 'run = "shop"\n[data]\nsource = "files"\npath = "{path}"\npositive = "click"\n[data-fetch]\ndatabase = "SHOP"'


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a PostgreSQL server."""
    with servers.postgresql() as address:
        yield address


@pytest.fixture(scope="module")
def mariadb() -> Iterator[str]:
    """The address of a MariaDB server."""
    with servers.mariadb() as address:
        yield address


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """The endpoint of an object store."""
    with servers.object_store() as endpoint:
        yield endpoint


def tables_of(text: str, folder: Path, **sections: dict[str, str]) -> Path:
    """A config with ``text`` and sections of [data-fetch]: name -> query or address."""
    lines = [text]
    for section, values in sections.items():
        lines += [f"[data-fetch.{section}]", *(f"{name} = '''{value}'''" for name, value in values.items())]
    path = folder / "shop.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def fetch(folder: Path, queries: dict[str, str]) -> int:
    """The exit status of `leadre data fetch` with these queries of the database in SHOP."""
    path = tables_of(DATA.format(path=folder / "work" / "shop" / "data-fetch"), folder, queries=queries)
    return main(["data", "fetch", "--config", str(path), "--work", str(folder / "work")])
