"""Servers for the tests of a file, and configs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.fetch import servers


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
