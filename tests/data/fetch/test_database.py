"""Tables from a real PostgreSQL server: types, one snapshot, read-only, and no password anywhere."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from leadre.__main__ import main
from leadre.data.fetch import secrets
from tests.data.fetch import servers
from tests.data.fetch.conftest import fetch

PASSWORD = "hunter2#secret"
WRITTEN = "hunter2%23secret"

QUERIES = {
    "ads": "SELECT id AS ad_id, name AS title, path AS category_path, price, sold_until AS ends_at FROM shop.products;",
    "events": "SELECT cookie::text AS user_id, at, 'ad' AS domain, product AS item_id, kind AS action, paid AS value\n"
    "FROM shop.log ORDER BY at -- as a log is",
}


@pytest.fixture
def address(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the shop with a password, which the environment has."""
    servers.execute(server, *servers.SHOP)
    with_password = server.replace("postgres:@", f"postgres:{WRITTEN}@")
    assert WRITTEN in with_password
    monkeypatch.setenv("SHOP", with_password)
    return with_password


def test_log_of_a_database_is_read(address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Fetch, then read; neither files nor output have the password."""
    assert fetch(tmp_path, QUERIES) == 0
    flags = ["--config", str(tmp_path / "shop.toml"), "--work", str(tmp_path / "work")]
    assert main(["data", *flags]) == 0
    data = tmp_path / "work" / "shop" / "data"
    ads = pl.read_parquet(data / "ads.parquet")
    assert ads["price_nanos"].to_list() == [19_990_000_000 + n * 1_000_000_000 for n in range(4)]
    assert ads["category_path"].to_list() == [["Shoes", "Boots"]] * 4
    assert ads["ends_at"].null_count() == 4
    events = pl.read_parquet(data / "events.parquet")
    assert events.height == 120
    assert events["at"][0] == datetime(2026, 2, 28, 23, tzinfo=UTC)
    assert events["item_id"].unique().sort().to_list() == ads["ad_id"].to_list()
    assert events["value_nanos"].unique().to_list() == [2_500_000_000]
    for command in ("data", "data fetch"):
        assert main([*command.split(), *flags, "--show"]) == 0
    out, err = capfd.readouterr()
    assert "data fetch: events: 120 rows" in err
    files = [path.read_bytes() for path in (tmp_path / "work").rglob("*") if path.is_file()]
    for secret in (PASSWORD, WRITTEN):
        assert not any(secret.encode() in content for content in [*files, (out + err).encode()])


def test_data_stage_reads_again_only_after_a_fetch(
    address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config", str(tmp_path / "shop.toml"), "--work", str(tmp_path / "work")]
    fetch(tmp_path, QUERIES)
    assert main(["data", *flags]) == 0
    servers.execute(address, "DELETE FROM shop.log WHERE cookie = 0")
    capfd.readouterr()
    assert main(["data", *flags]) == 0
    assert "is current, nothing to do" in capfd.readouterr().err
    fetch(tmp_path, QUERIES)
    assert main(["data", *flags]) == 0
    assert "data: 4 users, 4 ads, 96 events, 0 bad rows" in capfd.readouterr().err


def test_values_of_all_types(address: str, tmp_path: Path) -> None:
    values = {
        "1::smallint": 1,
        "2::bigint": 2,
        "1.5::real": 1.5,
        "true": True,
        "'a'::varchar": "a",
        "NULL": None,
        "'{\"a\": 1}'::json": '{"a": 1}',
        "'{\"a\": 1}'::jsonb": '{"a": 1}',
        "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "2.50::numeric(10, 2)": Decimal("2.50"),
        "7::numeric(18, 0)": 7,
        "'-1234567890123456789012345678901234567.8'::numeric(38, 1)": Decimal(
            "-1234567890123456789012345678901234567.8"
        ),
        "(SELECT avg(n) FROM unnest(ARRAY[2.5, 3.5]) n)": Decimal("3.000000000"),
        "'2026-03-01 08:00+02'::timestamptz": datetime(2026, 3, 1, 6, tzinfo=UTC),
        "'infinity'::timestamptz": None,
        "'-infinity'::timestamptz": None,
        "'2026-03-01'::date": date(2026, 3, 1),
        "'infinity'::date": None,
        "'-infinity'::date": None,
        "ARRAY['a', NULL]": ["a", None],
        "ARRAY[1, 2]": [1, 2],
        "'click'::shop.kind": "click",
    }
    columns = [f"{value} AS c{n}" for n, value in enumerate(values)]
    assert fetch(tmp_path, {"users": f"SELECT {', '.join(columns)} UNION ALL SELECT {', '.join(values)}"}) == 0
    frame = pl.read_parquet(tmp_path / "work" / "shop" / "data-fetch" / "users.parquet")
    assert frame.row(0) == frame.row(1) == tuple(values.values())


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("SELECT now()::timestamp AS at", "column 'at' is timestamp; write at AT TIME ZONE 'UTC', or its own zone"),
        ("SELECT 2.5::money AS price", "column 'price' is money; write price::numeric"),
        ("SELECT 'x'::bytea AS title", "column 'title' is bytea; write encode(title, 'hex')"),
        ("SELECT '1.2.3.4'::inet AS ip", "column 'ip' is inet; write ip::text"),
        ("SELECT interval '1 day' AS age", "column 'age' is interval; write age::text"),
        ("SELECT ARRAY[1.5] AS sizes", "column 'sizes' is _numeric; write sizes::text"),
        ("SELECT 'NaN'::numeric AS price", "column 'price' has a number that is no decimal of 9 places"),
        ("SELECT 1 / 3.0 AS price", "write round(price, 9)"),
        ("SELECT 1 AS a, 2 AS a", "two columns have the name 'a'; rename one with AS"),
        ("SELECT id,\n  nope\nFROM shop.products", 'column "nope" does not exist (line 2 of the query)'),
        ("SELECT id\nFROM nowhere", 'relation "nowhere" does not exist (line 2 of the query)'),
        ("SELECT 1\nFROM shop.log\nWHERE 1 = = 1", 'syntax error at or near "=" (line 3 of the query)'),
        ("SELECT 1 / (cookie - 3) FROM shop.log", "division by zero; correct the query"),
        ("DELETE FROM shop.log RETURNING cookie", "cannot execute DELETE in a read-only transaction"),
        ("SELECT 1; SELECT 2", "cannot insert multiple commands"),
        (f'SELECT "{PASSWORD}" FROM shop.log', 'column "***" does not exist'),
    ],
)
def test_query_that_cannot_be_used_is_refused(
    query: str, why: str, address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The message has table, place and cure, and not the password."""
    assert fetch(tmp_path, {"events": query}) == 2
    out, err = capfd.readouterr()
    (line,) = (out + err).splitlines()
    assert "[data-fetch.queries] events: " in line
    assert why in line
    assert PASSWORD not in line


def test_failed_fetch_leaves_the_folder_and_the_database(address: str, tmp_path: Path) -> None:
    folder = tmp_path / "work" / "shop" / "data-fetch"
    servers.execute(
        address,
        "CREATE SEQUENCE shop.s",
        "CREATE FUNCTION shop.f() RETURNS bigint AS $$ SELECT nextval('shop.s') $$ LANGUAGE sql",
    )
    assert fetch(tmp_path, {"ads": QUERIES["ads"]}) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for statement in ("DELETE FROM shop.log RETURNING cookie", "SELECT shop.f()", "SELECT 1; DROP TABLE shop.log"):
        assert fetch(tmp_path, {"ads": QUERIES["ads"], "events": statement}) == 2
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [path.name for path in folder.parent.iterdir()] == ["data-fetch"]
    assert fetch(tmp_path, {"events": "SELECT count(*) + (SELECT last_value FROM shop.s) AS n FROM shop.log"}) == 0
    assert pl.read_parquet(folder / "events.parquet").item() == 121


def test_all_queries_read_one_snapshot(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leadre.data.fetch import copies

    def change(line: str) -> None:
        if "users" in line:  # the first query is done
            servers.execute(address, "TRUNCATE shop.log", "DELETE FROM shop.products")

    monkeypatch.setattr(copies.progress, "say", change)
    counts = {"users": "SELECT 1 AS a", "events": "SELECT count(*) AS n FROM shop.products"}
    assert fetch(tmp_path, counts) == 0
    assert pl.read_parquet(tmp_path / "work" / "shop" / "data-fetch" / "events.parquet").item() == 4


def test_rows_are_written_in_batches(address: str, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    assert (
        fetch(tmp_path, {"events": "SELECT n AS user_id, repeat('x', 40) AS at FROM generate_series(1, 900000) n"}) == 0
    )
    with pq.ParquetFile(tmp_path / "work" / "shop" / "data-fetch" / "events.parquet") as file:
        assert file.metadata.num_rows == 900_000
        assert file.metadata.num_row_groups > 2


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "environment variable SHOP is not set"),
        (f"host=db password={SECRET}", "environment variable SHOP has another form"),
        (f"oracle://ada:{SECRET}@db/shop", "environment variable SHOP has another form"),
        (f"postgresql://ada:{SECRET}@127.0.0.1:1/shop", "no server listens at this host and port"),
        (f"postgresql://ada:a@{SECRET}@nowhere.invalid/shop", "its host name is unknown"),
        (f"postgresql://ada:{SECRET}/x@127.0.0.1/shop", "its form is wrong"),
        (f"postgresql://ada:{SECRET}%zz@127.0.0.1/shop", "its form is wrong"),
        (f"postgresql://ada@127.0.0.1/shop?passwort={SECRET}", "its form is wrong"),
        (f"postgresql://ada:x@[{SECRET}/shop", "its form is wrong"),
    ],
)
def test_address_that_cannot_be_used_is_not_repeated(
    value: str | None, why: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.delenv("SHOP", raising=False)
    if value is not None:
        monkeypatch.setenv("SHOP", value)
    assert fetch(tmp_path, QUERIES) == 2
    out, err = capfd.readouterr()
    assert why in err
    assert SECRET not in out + err
    assert not (tmp_path / "work" / "shop" / "data-fetch").exists()


def test_passwords_are_hidden_however_they_are_written() -> None:
    for address, password in (
        ("postgresql://ada:p%40ss@db/shop", "p@ss"),
        ("postgresql://ada:p%40ss@db/shop", "p%40ss"),
        ("postgresql://ada:p@ss@db/shop", "p@ss"),
        ("postgresql://ada:p#ss@db/shop?sslmode=require", "p#ss"),
        ("postgresql://ada:p:ss/@db/shop?sslrootcert=a@b", "p:ss/"),
    ):
        assert secrets.hide(f"no column {password}\n here", secrets.of_address(address)) == "no column *** here"
    assert secrets.hide("see postgresql://ada:pass@db/shop", ()) == "see postgresql://ada:***@db/shop"


def test_refusal_of_the_server_is_shown(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("SHOP", server.replace("/postgres?", "/nowhere?").replace("postgres:@", f"postgres:{WRITTEN}@"))
    assert fetch(tmp_path, QUERIES) == 2
    assert 'SHOP: the server refuses the connection: database "nowhere" does not exist' in capfd.readouterr().err
