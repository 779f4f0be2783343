"""Tables from a real MariaDB server: types, zones, one snapshot, read-only, and no password anywhere."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import polars as pl
import pytest

from leadre.__main__ import main
from tests.data.fetch.conftest import fetch

PASSWORD = "hunter2#sécret"
WRITTEN = quote(PASSWORD)
SHOP = (
    "DROP DATABASE IF EXISTS shop",
    "CREATE DATABASE shop CHARACTER SET utf8mb4",
    "USE shop",  # which has the sequences
    "CREATE TABLE shop.products (id int unsigned, name varchar(80), price decimal(10, 2), sold_until timestamp NULL,"
    " category set('Shoes', 'Boots'))",
    "INSERT INTO shop.products SELECT seq, concat('Böot ', seq), 19.99 + seq, NULL, 'Shoes' FROM seq_0_to_3",
    "CREATE TABLE shop.log (cookie int, at timestamp(3), local datetime, product int, kind enum('impression', 'click'),"
    " paid decimal(12, 4))",
    "INSERT INTO shop.log SELECT n.seq % 5, from_unixtime(1772319600 + n.seq * 3600),"
    " '2026-03-01 00:00:00' + INTERVAL n.seq HOUR, n.seq % 4, k.seq, if(k.seq = 2, 2.5, NULL)"
    " FROM seq_0_to_59 n, seq_1_to_2 k ORDER BY n.seq, k.seq",
    f"CREATE OR REPLACE USER reader@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'",
    "GRANT ALL ON shop.* TO reader@'127.0.0.1'",
)
QUERIES = {
    "ads": "SELECT id AS ad_id, name AS title, category AS brand, price, sold_until AS ends_at FROM shop.products;",
    "events": "SELECT cookie AS user_id, at, 'ad' AS domain, product AS item_id, kind AS action, paid AS value\n"
    "FROM shop.log ORDER BY at, kind -- as a log is",
}


def execute(address: str, *statements: str) -> None:
    import pymysql

    parts = urlsplit(address)
    assert parts.hostname is not None
    with pymysql.connect(host=parts.hostname, port=parts.port or 0, user="ada", autocommit=True) as connection:
        for statement in statements:
            connection.query(statement)


@pytest.fixture
def address(mariadb: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the shop with a password, which the environment has."""
    execute(mariadb, *SHOP)
    with_password = mariadb.replace("ada@", f"reader:{WRITTEN}@") + "/shop"
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
    assert ads["title"].to_list() == [f"Böot {n}" for n in range(4)]
    assert ads["ends_at"].null_count() == 4
    events = pl.read_parquet(data / "events.parquet")
    assert events.height == 120
    assert events["at"][0] == datetime(2026, 2, 28, 23, tzinfo=UTC)  # the zone of the server is +05:00
    assert events["item_id"].unique().sort().to_list() == ads["ad_id"].to_list()
    assert events["value_nanos"].drop_nulls().unique().to_list() == [2_500_000_000]
    for command in ("data", "data fetch"):
        assert main([*command.split(), *flags, "--show"]) == 0
    out, err = capfd.readouterr()
    assert "data fetch: events: 120 rows" in err
    files = [path.read_bytes() for path in (tmp_path / "work").rglob("*") if path.is_file()]
    for secret in (PASSWORD, WRITTEN):
        assert not any(secret.encode() in content for content in [*files, (out + err).encode()])


def test_values_of_all_types(address: str, tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "tinyint": 1,
        "bigint": -(2**62),
        "bigint unsigned": 2**63 - 1,
        "year": 2026,
        "boolean": 1,
        "double": 1.5,
        "varchar(9)": "é",
        "longtext": "long",
        "json": '{"a": 1}',
        "uuid": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "enum('click', 'view')": "click",
        "set('a', 'b')": "a,b",
        "decimal(10, 2)": Decimal("-2.50"),
        "decimal(17, 0)": 7,
        "decimal(38, 1)": Decimal("-1234567890123456789012345678901234567.8"),
        "timestamp(6) NULL": datetime(2026, 3, 1, 6, 0, 0, 123456, tzinfo=UTC),
        "datetime": datetime(2026, 3, 1, 6),
        "date": date(2026, 3, 1),
    }
    names = [f"c{n}" for n in range(len(columns))]
    literals = [repr(str(value)).replace("+00:00", "") for value in columns.values()]
    execute(
        address,
        "SET time_zone = '+00:00'",
        "DROP TABLE IF EXISTS shop.all_types",
        f"CREATE TABLE shop.all_types ({', '.join(map(' '.join, zip(names, columns, strict=True)))})",
        f"INSERT INTO shop.all_types VALUES ({', '.join(literals)})",
        f"INSERT INTO shop.all_types VALUES ({', '.join('NULL' for _ in columns)})",
    )
    assert fetch(tmp_path, {"users": "SELECT *, NULL AS nothing, 1 + 1 AS two FROM all_types"}) == 0
    frame = pl.read_parquet(tmp_path / "work" / "shop" / "data-fetch" / "users.parquet")
    assert frame.row(0) == (*columns.values(), None, 2)
    assert frame.row(1) == (*[None] * len(columns), None, 2)
    sums = {"users": "SELECT sum(paid) AS s, avg(paid) AS a, count(*) AS n, sum(cookie) AS c FROM shop.log"}
    assert fetch(tmp_path, sums) == 0
    frame = pl.read_parquet(tmp_path / "work" / "shop" / "data-fetch" / "users.parquet")
    assert frame.row(0) == (Decimal("150"), Decimal("2.5"), 120, 240)


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("SELECT unhex('ff') AS title", "column 'title' is bytes; write HEX(title)"),
        ("SELECT b'101' AS flags", "column 'flags' is bytes; write HEX(flags)"),
        ("SELECT time '10:00' AS age", "column 'age' is time; write CAST(age AS CHAR)"),
        ("SELECT point(1, 2) AS place", "column 'place' is geometry; write ST_AsText(place)"),
        ("SELECT cast('0000-00-00' AS date) AS at", "has the date '0000-00-00', which is none; write NULLIF(at, 0)"),
        ("SELECT 18446744073709551615 AS id", "column 'id' has a value that does not fit"),
        ("SELECT 1 AS a, 2 AS a", "two columns have the name 'a'; rename one with AS"),
        ("SELECT id,\n  nope\nFROM products", "Unknown column 'nope'"),
        ("SELECT id\nFROM nowhere", "Table 'shop.nowhere' doesn't exist"),
        ("SELECT 1\nFROM log\nWHERE 1 = = 1", "at line 3; correct the query"),
        ("DELETE FROM log", "in a READ ONLY transaction"),
        ("DROP TABLE log", "in a READ ONLY transaction"),
        ("SELECT 1; DROP TABLE log", "You have an error in your SQL syntax"),
        ("DO 1", "has no rows; write a SELECT"),
        (f"SELECT `{PASSWORD}` FROM log", "Unknown column '***'"),
    ],
)
def test_query_that_cannot_be_used_is_refused(
    query: str, why: str, address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The message has table, place and cure, and not the password; the log stays."""
    assert fetch(tmp_path, {"events": query}) == 2
    out, err = capfd.readouterr()
    (line,) = (out + err).splitlines()
    assert "[data-fetch.queries] events: " in line
    assert why in line
    assert PASSWORD not in line
    assert not (tmp_path / "work" / "shop" / "data-fetch").exists()
    assert fetch(tmp_path, {"events": "SELECT count(*) AS n FROM log"}) == 0
    assert pl.read_parquet(tmp_path / "work" / "shop" / "data-fetch" / "events.parquet").item() == 120


def test_all_queries_read_one_snapshot(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leadre.data.fetch import copies

    def change(line: str) -> None:
        if "users" in line:  # the first query is done
            execute(address, "DELETE FROM shop.log", "DELETE FROM shop.products")

    monkeypatch.setattr(copies.progress, "say", change)
    counts = {"users": "SELECT 1 AS a", "events": "SELECT count(*) AS n FROM products"}
    assert fetch(tmp_path, counts) == 0
    assert pl.read_parquet(tmp_path / "work" / "shop" / "data-fetch" / "events.parquet").item() == 4


def test_rows_are_read_in_batches_and_a_fault_ends_the_query(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from leadre.data.fetch import mysql

    sizes = []
    converted = mysql._converted

    def record(values: tuple[Any, ...], *rest: Any) -> Any:
        sizes.append(len(values))
        return converted(values, *rest)

    monkeypatch.setattr(mysql, "_converted", record)
    assert fetch(tmp_path, {"events": "SELECT seq AS user_id FROM seq_1_to_25000"}) == 0
    assert sizes == [10_000, 10_000, 5_000]
    endless = "SELECT CAST(if(seq < 3, 1, 18446744073709551615) AS unsigned) AS id FROM seq_1_to_9000000000000"
    assert fetch(tmp_path, {"events": endless}) == 2
    assert "column 'id' has a value that does not fit" in capfd.readouterr().err


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (f"mysql://ada:{SECRET}@127.0.0.1:1/shop", "no server listens at this host and port"),
        (f"mysql://ada:a@{SECRET}@nowhere.invalid/shop", "its host name is unknown"),
        (f"mysql://ada:{SECRET}/x@127.0.0.1/shop", "its form is wrong"),
        (f"mysql://ada@127.0.0.1/shop?passwort={SECRET}", "its form is wrong"),
        (f"mysql://ada@127.0.0.1/shop?ssl-mode={SECRET}", "its form is wrong"),
        (f"mysql://ada:x@[{SECRET}/shop", "its form is wrong"),
        (f"mysql://{SECRET}", "cannot connect"),
    ],
)
def test_address_that_cannot_be_used_is_not_repeated(
    value: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pymysql")
    monkeypatch.setenv("SHOP", value)
    assert fetch(tmp_path, QUERIES) == 2
    out, err = capfd.readouterr()
    assert why in err
    assert SECRET not in out + err
    assert not (tmp_path / "work" / "shop" / "data-fetch").exists()


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("/shop", "/nowhere", "the server refuses the connection: Access denied for user 'reader'"),
        (WRITTEN, "wrong", "the server refuses the connection: Access denied for user 'reader'"),
        ("/shop", "/shop?ssl-mode=VERIFY_CA", "TLS failed: see ssl-mode"),
    ],
)
def test_refusal_of_the_server_is_shown(
    old: str, new: str, why: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("SHOP", address.replace(old, new))
    assert fetch(tmp_path, QUERIES) == 2
    assert why in capfd.readouterr().err
