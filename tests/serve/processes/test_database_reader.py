"""The thread that reads the management database: an end of the worker in the middle of a read."""

from __future__ import annotations

import asyncio

import pytest

from leadre.serve.catalogue.database import MIGRATIONS, ManageDatabase
from leadre.serve.processes.database_reader import DatabaseReader

LONG_QUERY = (
    "WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < 100000) SELECT max(n) "
    "FROM counted"
)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "manage.db"
    ManageDatabase(path).close()
    return path


def test_close_lets_a_read_that_has_begun_end(path):
    async def run():
        reader = DatabaseReader(path, MIGRATIONS)
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def read(connection):
            loop.call_soon_threadsafe(begun.set)
            return connection.execute(LONG_QUERY).fetchone()

        reading = asyncio.create_task(reader.read(read))
        await begun.wait()
        reader.close()
        return await reading

    assert asyncio.run(run()) == (100_000,)
