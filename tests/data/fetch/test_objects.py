"""Tables from an S3-like store: moto serves the protocol, and the command is a process, as a user runs it."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from leadre.data.fetch import objects, run
from leadre.errors import InputError
from tests.data.fetch import servers
from tests.data.fetch.conftest import tables_of

SECRET = "wJalrXUtnFEMIK7MDENG"
CONFIG = 'run = "shop"\n[data]\nsource = "files"\npath = "{path}"\npositive = "click"\n[data-fetch]'
ADS = "ad_id,title\na0,Boot\na1,Shoe\n"


def fetch(folder: Path, addresses: dict[str, str], store: str, command: str = "data fetch") -> tuple[int, str]:
    """(exit status, output) of a command with the credentials in its environment."""
    path = tables_of(CONFIG.format(path=folder / "work" / "shop" / "data-fetch"), folder, objects=addresses)
    environment = os.environ | {"AWS_ENDPOINT_URL": store, "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE"}
    environment |= {"AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    arguments = [*command.split(), "--config", str(path), "--work", str(folder / "work")]
    done = subprocess.run(
        [sys.executable, "-m", "leadre", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def day(number: int) -> bytes:
    rows = [f"u{n},2026-03-{number:02}T08:{n:02}:00Z,ad,a{n % 2},click" for n in range(4)]
    return "\n".join(["user_id,at,domain,item_id,action", *rows]).encode()


def test_log_of_a_store_is_read(store: str, tmp_path: Path) -> None:
    servers.put(f"{store}/shop")
    servers.put(f"{store}/shop/feed/2026%2003/products.v2.csv", ADS.encode())
    for number in range(1, 13):
        servers.put(f"{store}/shop/log/events/placement_id=top/{number:02}.csv.gz", gzip.compress(day(number)))
    servers.put(f"{store}/shop/log/events/placement_id=top/_SUCCESS", b"")
    servers.put(f"{store}/shop/log/events-old/01.csv", day(28))
    addresses = {"ads": "s3://shop/feed/2026 03/products.v2.csv", "events": "s3://shop/log/events/"}
    status, output = fetch(tmp_path, addresses, store)
    assert status == 0, output
    assert "data fetch: events: 12 objects" in output
    status, more = fetch(tmp_path, addresses, store, "data")
    assert status == 0, more
    assert "data: 4 users, 2 ads, 48 events, 0 bad rows" in more
    assert "not read" not in more
    events = pl.read_parquet(tmp_path / "work" / "shop" / "data" / "events.parquet")
    assert events["placement_id"].unique().to_list() == ["top"]
    _, shown = fetch(tmp_path, addresses, store, "data fetch --show")
    files = [path.read_bytes() for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in content for content in [*files, (output + more + shown).encode()])


@pytest.mark.parametrize("address", ["s3://shop2/feed", "s3://no-such-bucket/feed/"])
def test_address_without_an_object_is_named(address: str, store: str, tmp_path: Path) -> None:
    if "shop2" in address:
        servers.put(f"{store}/shop2")
        servers.put(f"{store}/shop2/feed/ads.csv", ADS.encode())
    status, output = fetch(tmp_path, {"ads": address}, store)
    assert status == 2
    assert f"[data-fetch.objects] ads: no object {address}; a prefix ends with a slash" in output
    assert not (tmp_path / "work" / "shop" / "data-fetch").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"objects": {"ads": f"s3://key:{SECRET}@shop/ads.csv"}}, r"objects\] ads: must be s3://BUCKET/KEY"),
        ({"objects": {"ads": f"https://shop/ads.csv?X-Amz-Signature={SECRET}"}}, r"must be s3://BUCKET/KEY"),
        ({"objects": {"../ads": "s3://shop/ads.csv"}}, r"objects\] \.\./ads: must be the name of a table"),
        ({"queries": {"ads": 5}}, r"queries\] ads: must be the name of a table = a text"),
        ({"queries": {"ads": "SELECT 1"}, "objects": {"ads": "s3://shop/ads.csv"}}, "ads is a query and an object"),
        ({"database": f"postgresql://ada:{SECRET}@db/shop"}, "database: must be the name of an environment variable"),
    ],
)
def test_config_that_cannot_be_used_or_has_a_secret_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why) as error:
        run.Config(**options)
    assert SECRET not in str(error.value)


def test_store_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    status, output = fetch(tmp_path, {"ads": "s3://shop/ads.csv"}, "http://127.0.0.1:1")
    assert status == 2
    assert "[data-fetch.objects] ads: " in output
    assert "check the address, AWS_ENDPOINT_URL" in output


def test_object_that_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    """The local file system of Arrow has the interface of the store."""
    from pyarrow import fs

    local = fs.LocalFileSystem()
    source = tmp_path / "ads.csv"
    source.write_text(ADS)
    (info,) = local.get_file_info([str(source)])
    objects._copy_file(local, info, tmp_path / "copy.csv", "place")
    assert (tmp_path / "copy.csv").read_text() == ADS
    source.write_text(ADS + "a2,Sock\n")
    with pytest.raises(InputError, match=r"place: .*ads\.csv changed while it was copied"):
        objects._copy_file(local, info, tmp_path / "again.csv", "place")
