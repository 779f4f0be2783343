from __future__ import annotations

import hashlib

import pytest

from leadre.errors import InputError, MissingError
from leadre.serve.manage import auth
from leadre.serve.manage.auth import ApiKeys


@pytest.fixture
def keys(desk):
    return ApiKeys(desk)


def test_a_key_opens_until_it_is_revoked(keys):
    created, shown = keys.create("Ann", 5)
    assert created.is_operator and keys.find(shown) == created
    assert keys.revoke(created.key_id, 7).revoked_at_us == 7
    assert keys.find(shown) is None
    assert keys.revoke(created.key_id, 9).revoked_at_us == 7
    with pytest.raises(MissingError, match="'nobody'"):
        keys.revoke("nobody", 9)


def test_advertisers_key_names_its_account(keys):
    created, shown = keys.create("Bob", 5, advertiser_id="acme")
    key = keys.find(shown)
    assert key == created and not key.is_operator and key.advertiser_id == "acme"


def test_nothing_else_opens(keys):
    created, shown = keys.create("Ann", 5)
    _, other = keys.create("Bob", 6)
    secret = shown.split(".")[1]
    invalid = [
        "",
        ".",
        secret,
        shown[:-1],
        shown + "a",
        shown.upper(),
        f"{created.key_id}.",
        f"{created.key_id}.\udcff",
    ]
    invalid += [
        f"{created.key_id}.{other.split('.')[1]}",
        f"nobody.{secret}",
        f" {shown}",
        created.key_id,
        f"\udcff.{secret}",
    ]
    assert [stranger for stranger in invalid if keys.find(stranger)] == []


def test_the_secret_is_not_in_the_file(keys, manage_db):
    created, shown = keys.create("Ann", 5)
    secret = shown.removeprefix(f"{created.key_id}.")
    assert len(secret) == 43  # 256 bits in base 64
    bytes_on_disk = b"".join(path.read_bytes() for path in manage_db.parent.iterdir())
    assert secret.encode() not in bytes_on_disk
    assert hashlib.sha256(secret.encode()).digest() in bytes_on_disk


def test_key_without_a_holder_is_refused(keys):
    for name in ("", " \u200b"):
        with pytest.raises(InputError, match="name the holder"):
            keys.create(name, 5)
    with pytest.raises(InputError, match="advertiser_id"):
        keys.create("Ann", 5, advertiser_id="a\nb")
    assert keys.all() == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.test", ""])
def test_no_opening_to_the_world_without_a_key(keys, host):
    keys.create("Bob", 5, advertiser_id="acme")
    created, _ = keys.create("Ann", 5)
    auth.check_exposure(host, keys)
    keys.revoke(created.key_id, 6)
    with pytest.raises(InputError, match="no operator's key"):
        auth.check_exposure(host, keys)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost"])
def test_this_machine_may_do_without(keys, host):
    auth.check_exposure(host, keys)


@pytest.mark.parametrize(
    ("origin", "stored"),
    [
        ("https://News.Example", "https://news.example"),
        ("https://news.example:443", "https://news.example"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://[::1]:80", "http://[::1]"),
    ],
)
def test_origins_are_stored_as_browsers_send_them(origin, stored):
    assert auth.checked_origin(origin) == stored


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "",
        "news.example",
        "https://",
        "https://a.test/",
        "https://*.test",
        "https://a@b.test",
        "ftp://a.test",
    ],
)
def test_no_origin_but_a_plain_one(origin):
    with pytest.raises(InputError, match="origin = "):
        auth.checked_origin(origin)


@pytest.mark.parametrize("origin", ["https://a.test:99999", "https://a.test\n", "https://[a", "https://" + "a" * 300])
def test_no_origin_that_is_broken(origin):
    with pytest.raises(InputError, match="origin = "):
        auth.checked_origin(origin)


def test_the_list_of_origins_is_replaced_whole(desk, reader):
    assert auth.put_origins(desk, ["https://b.test", "https://A.test", "https://a.test:443"]) == [
        "https://a.test",
        "https://b.test",
    ]
    before = desk.connection.execute("SELECT number FROM version").fetchone()
    auth.put_origins(desk, ["https://b.test", "https://a.test"])
    assert desk.connection.execute("SELECT number FROM version").fetchone() == before
    with pytest.raises(InputError):
        auth.put_origins(desk, ["https://c.test", "*"])
    assert auth.read_origins(reader) == {"https://a.test", "https://b.test"}
    auth.put_origins(desk, [])
    assert auth.read_origins(reader) == frozenset()
