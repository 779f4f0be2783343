"""Copies a log from a PostgreSQL or MySQL database, or an object store, into a folder that `leadre data` reads.

Each query of ``[data-fetch.queries]`` gives a Parquet file, all of one snapshot of the database; each address of
``[data-fetch.objects]`` gives the object, or the objects below it. The folder ``work/<run>/data-fetch`` appears when
all are there. A query has no state that shows whether its answer has changed, so each call reads everything again, and
a run is repeatable as long as the folder stays.

Credentials come from the environment alone. No file, message or option has them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leadre import artifact, config, extras, progress
from leadre.errors import InputError

FETCHED = artifact.Kind("fetched", 1)
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # a table, or a file that a mapping joins
_POSTGRESQL = ("postgresql://", "postgres://")
_MYSQL = ("mysql://", "mariadb://")
_S3 = re.compile(r"s3://([a-z0-9][a-z0-9.-]*)/([^/].*)")


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre data fetch``."""

    database: str = config.option("DATABASE_URL", "environment variable that has the address of the database")
    queries: dict[str, Any] | None = config.option(
        None, "the section [data-fetch.queries]: table -> query in SQL (docs/databases.md)"
    )
    objects: dict[str, Any] | None = config.option(
        None, "the section [data-fetch.objects]: table -> s3://BUCKET/KEY, or s3://BUCKET/PREFIX/ for all below it"
    )

    def __post_init__(self) -> None:
        """Raises InputError for anything that may hold a password, without repeating it."""
        super().__post_init__()
        if not _ENVIRONMENT_NAME.fullmatch(self.database):
            raise InputError(
                "database: must be the name of an environment variable, such as DATABASE_URL, which has the address"
                " (postgresql:// or mysql://USER:PASSWORD@HOST/NAME); a config is no place for a password"
            )
        for section, values in (("queries", self.queries or {}), ("objects", self.objects or {})):
            for name, value in values.items():
                if not _FILE_NAME.fullmatch(name) or not isinstance(value, str) or not value.strip():
                    raise InputError(f"[data-fetch.{section}] {name}: must be the name of a table = a text in quotes")
        for name, address in (self.objects or {}).items():
            if not _S3.fullmatch(address):
                raise InputError(
                    f"[data-fetch.objects] {name}: must be s3://BUCKET/KEY or s3://BUCKET/PREFIX/, without keys or"
                    " other credentials, which come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...)"
                )
        both = sorted((self.queries or {}).keys() & (self.objects or {}).keys())
        if both:
            raise InputError(f"[data-fetch]: {both[0]} is a query and an object; keep one of them")


def run(settings: Config) -> None:
    """Write ``work/<run>/data-fetch``. InputError for a query, an object or a connection that fails."""
    queries: Mapping[str, str] = settings.queries or {}
    objects: Mapping[str, str] = settings.objects or {}
    if not queries and not objects:
        raise InputError("data fetch: nothing to fetch; add [data-fetch.queries] or [data-fetch.objects] to the config")
    if queries:
        extras.require("[data-fetch.queries]", "database", otherwise="export the tables as files")
    output = artifact.Output(
        folder=settings.folder("data-fetch"), kind=FETCHED, config=settings.flat(), seed=settings.seed, parents=[]
    )
    with output.create() as temporary:
        if objects:
            from leadre.data.fetch import objects as store

            addresses = {name: tuple(_S3.fullmatch(address).groups()) for name, address in objects.items()}  # type: ignore[union-attr]  # checked
            store.copy(addresses, temporary)
        if queries:
            address = _address(settings.database)
            if address.startswith(_POSTGRESQL):
                from leadre.data.fetch import postgresql as database
            else:
                from leadre.data.fetch import mysql as database  # type: ignore[no-redef]  # it has the same function
            database.copy(address, settings.database, queries, temporary)
    progress.say(f"data fetch: -> {output.folder}")


def _address(variable: str) -> str:
    address = os.environ.get(variable, "").strip()
    if not address.startswith((*_POSTGRESQL, *_MYSQL)):
        state = "is not set" if not address else "has another form"
        raise InputError(
            f"data fetch: the environment variable {variable} {state}: export"
            f" {variable}=postgresql://USER:PASSWORD@HOST/NAME (or mysql://), with %XX for special characters of the"
            " password"
        )
    return address
