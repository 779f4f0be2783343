"""API keys: creation, look-up and revocation; the allowed origins of the API."""

from __future__ import annotations

import hashlib

import pytest

from leadre.errors import InputError, MissingError
from leadre.serve.manage import auth
from leadre.serve.manage.auth import ApiKeys


@pytest.fixture
def keys(manage_database):
    return ApiKeys(manage_database)


def test_key_is_valid_until_revoked(keys):
    created, shown = keys.create("Ann", 5)
    assert created.is_operator and keys.find(shown) == created
    assert keys.revoke(created.key_id, 7).revoked_at_us == 7
    assert keys.find(shown) is None
    assert keys.revoke(created.key_id, 9).revoked_at_us == 7
    with pytest.raises(MissingError, match="no key has this ID"):
        keys.revoke("nobody", 9)


def test_key_of_an_advertiser_has_its_account(keys):
    created, shown = keys.create("Bob", 5, advertiser_id="acme")
    key = keys.find(shown)
    assert key == created and not key.is_operator and key.advertiser_id == "acme"


def test_scopes_of_a_key(keys):
    assert keys.create("Ann", 5)[0].scopes == auth.SCOPES
    assert keys.create("Bob", 5, "acme")[0].scopes == ("campaigns",)
    created, shown = keys.create("Cid", 5, scopes=["explain", "metrics", "explain"])
    assert created.scopes == ("metrics", "explain") and keys.find(shown) == created
    for account, scope in (("", "all"), ("acme", "metrics"), ("acme", "erase"), ("acme", "recommend")):
        with pytest.raises(InputError, match=f"cannot have '{scope}'"):
            keys.create("Dan", 5, account, [scope])


def test_is_allowed_finds_keys_in_force_with_the_scope(keys, reader):
    created, shown = keys.create("Ann", 5, "acme", ["convert"])
    assert auth.is_allowed(reader, shown, "convert") == created
    assert auth.is_allowed(reader, shown, "campaigns") is None
    assert auth.is_allowed(reader, f"{shown}x", "convert") is None
    keys.revoke(created.key_id, 6)
    assert auth.is_allowed(reader, shown, "convert") is None


def test_malformed_and_foreign_keys_are_invalid(keys):
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
    assert [key for key in invalid if keys.find(key)] == []


def test_secret_is_stored_as_a_hash_only(keys, manage_db):
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
def test_public_host_requires_an_operator_key(keys, host):
    keys.create("Bob", 5, advertiser_id="acme")
    created, _ = keys.create("Ann", 5)
    auth.check_exposure(host, keys)
    keys.revoke(created.key_id, 6)
    with pytest.raises(InputError, match="no operator's key"):
        auth.check_exposure(host, keys)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost"])
def test_loopback_host_requires_no_key(keys, host):
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
def test_origin_with_path_wildcard_or_other_scheme_is_refused(origin):
    with pytest.raises(InputError, match="origin = "):
        auth.checked_origin(origin)


@pytest.mark.parametrize("origin", ["https://a.test:99999", "https://a.test\n", "https://[a", "https://" + "a" * 300])
def test_malformed_origin_is_refused(origin):
    with pytest.raises(InputError, match="origin = "):
        auth.checked_origin(origin)


def test_put_origins_replaces_the_whole_list(manage_database, reader):
    assert auth.put_origins(manage_database, ["https://b.test", "https://A.test", "https://a.test:443"]) == [
        "https://a.test",
        "https://b.test",
    ]
    before = manage_database.connection.execute("SELECT number FROM version").fetchone()
    auth.put_origins(manage_database, ["https://b.test", "https://a.test"])
    assert manage_database.connection.execute("SELECT number FROM version").fetchone() == before
    with pytest.raises(InputError):
        auth.put_origins(manage_database, ["https://c.test", "*"])
    assert auth.read_origins(reader) == {"https://a.test", "https://b.test"}
    auth.put_origins(manage_database, [])
    assert auth.read_origins(reader) == frozenset()
