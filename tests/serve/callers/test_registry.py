"""The file of callers: what it may say, who is recognised by it, how it is changed and followed."""

from __future__ import annotations

import os

import pytest

from leadre import progress
from leadre.errors import InputError
from leadre.serve.callers import file, registry
from leadre.serve.callers.registry import Callers, Section, token_hash

TOKEN = "open.secret"
HASH = token_hash(TOKEN)
FILE = f"""
[open]
tokens = ["{HASH}"]

[both]
tokens = ["{token_hash("both.1")}", "{token_hash("both.2")}"]
addresses = ["192.0.2.0/24"]

[near]
addresses = ["198.51.100.7", "2001:db8::/32"]
exp_s = 30
sends_no_price = true

[signed]
certificates = ["ab12"]
addresses = ["203.0.113.0/24"]

[also-signed]
tokens = ["{token_hash("also-signed.1")}"]
certificates = ["cd34"]
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "callers.toml").write_text(FILE)
    return tmp_path / "callers.toml"


@pytest.mark.parametrize(
    ("token", "address", "certificate", "name"),
    [
        (TOKEN, "9.9.9.9", "", "open"),
        (TOKEN + "x", "9.9.9.9", "", "token"),
        ("open", "9.9.9.9", "", "token"),
        ("nobody.secret", "9.9.9.9", "", "token"),
        ("near.", "198.51.100.7", "", "token"),
        ("\udcff.\udcff", "9.9.9.9", "", "token"),
        ("both.1", "192.0.2.9", "", "both"),
        ("both.2", "::ffff:192.0.2.9", "", "both"),
        ("both.1", "192.0.3.9", "", "address"),
        ("both.1", "", "", "address"),
        ("", "192.0.2.9", "", "unknown"),
        ("", "198.51.100.7", "", "near"),
        ("", "::ffff:198.51.100.7", "", "near"),
        ("", "2001:db8:1::1", "", "near"),
        ("", "198.51.100.8", "", "unknown"),
        ("", "garbage", "", "unknown"),
        ("", "203.0.113.5", "ab12", "signed"),
        ("", "203.0.113.5", "ab13", "unknown"),
        ("", "203.0.113.5", "", "unknown"),
        ("", "9.9.9.9", "ab12", "address"),
        ("also-signed.1", "9.9.9.9", "cd34", "also-signed"),
        ("also-signed.1", "9.9.9.9", "ab12", "certificate"),
        ("also-signed.1", "9.9.9.9", "", "certificate"),
        ("", "9.9.9.9", "cd34", "unknown"),
    ],
)
def test_request_is_of_the_caller_whose_every_mark_it_has(path, token, address, certificate, name):
    callers = Callers(path)
    for _ in range(2):  # the second answer may come from memory
        result = callers.find(token, address, certificate)
        assert (result if isinstance(result, str) else result.name) == name


def test_section_decides_what_the_caller_may_do(path):
    near = registry.read(path)["near"].party
    assert (near.exp_s, near.sends_no_price, near.name, near.may_test) == (30, True, "near", True)
    assert near.bounds[0].max_nanos == 100_000_000_000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[a]\n", "has no tokens, addresses or certificates"),
        ("a = 1\n", "Expected `object`"),
        ("[a]\ntokens = ['secret']\n", "not a SHA-256 in hex"),
        ("[a]\naddresses = ['localhost']\n", "must be an address or a network"),
        ("[a]\naddresses = ['10.0.0.1/33']\n", "must be an address or a network"),
        ("[a]\naddress = ['10.0.0.1']\n", "unknown field `address`"),
        ("[a]\naddresses = ['10.0.0.1']\nrequests_per_s = -1\n", "requests_per_s"),
        ("[a]\naddresses = ['10.0.0.1']\nmax_open_bids = 0\n", "max_open_bids"),
        ("[a]\naddresses = ['10.0.0.1']\nmax_open_money = nan\n", "max_open_money"),
        ("[a]\naddresses = ['10.0.0.1']\nrequests_per_s = inf\n", "requests_per_s"),
        ("[a]\naddresses = ['10.0.0.0/8']\n[b]\naddresses = ['10.1.0.0/16']\n", "in common"),
        ("[a]\ncertificates = ['x']\n[b]\ncertificates = ['x', 'y']\n", "in common"),
        ("[a]\ncertificates = ['']\n", "is empty"),
        ("[operator]\naddresses = ['10.0.0.1']\n", "the name of a caller"),
        ("['A b']\naddresses = ['10.0.0.1']\n", "the name of a caller"),
        ("[a]\n[a]\n", "Cannot declare"),
        ("[a\n", "callers.toml"),
        ("\xff", "callers.toml"),
    ],
)
def test_fault_of_the_file_is_an_error_that_names_it(tmp_path, text, why):
    path = tmp_path / "callers.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"callers\.toml") as raised:
        registry.read(path)
    assert why in str(raised.value)


def test_added_caller_and_token_leave_all_other_lines(path):
    path.write_text("# ours\n" + FILE + "# the end")
    file.add_caller(path, "new", Section(tokens=[token_hash("new.1")], requests_per_s=5, certificates=['"\\é']))
    file.add_token(path, "both", "both.3")
    callers = Callers(path)
    assert callers.find("new.1", "9.9.9.9", '"\\é').section.requests_per_s == 5
    assert [isinstance(callers.find(f"both.{n}", "192.0.2.9", ""), str) for n in (1, 2, 3)] == [False, True, False]
    text = path.read_text()
    assert text.startswith("# ours\n") and "# the end" in text and path.stat().st_mode & 0o077 == 0
    for name, add in (("new", file.add_caller), ("nobody", file.add_token)):
        with pytest.raises(InputError, match=name):
            add(path, name, Section(addresses=["10.0.0.1"]) if add is file.add_caller else "x")
    with pytest.raises(InputError, match="no list `tokens`"):
        file.add_token(path, "near", "near.1")
    assert path.read_text() == text


def test_first_caller_creates_the_file(tmp_path):
    file.add_caller(tmp_path / "callers.toml", "first", Section(addresses=["10.0.0.1"]))
    assert Callers(tmp_path / "callers.toml").find("", "10.0.0.1", "").name == "first"


def test_changes_are_followed_and_a_damaged_or_missing_file_opens_nothing(path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(progress, "say", lines.append)

    def write(text):
        path.with_name("new").write_text(text)
        os.replace(path.with_name("new"), path)

    callers = Callers(path)
    lines.clear()
    assert callers.find(TOKEN, "", "").name == "open"
    write(FILE.replace("[open]", "[other]"))
    callers.follow()
    assert callers.find(TOKEN, "", "") == "token"
    assert "admits the 5 callers" in lines.pop()
    write(FILE + "[x")
    callers.follow()
    callers.follow()
    assert callers.find("both.1", "192.0.2.1", "").name == "both" and len(lines) == 1
    path.unlink()
    callers.follow()
    callers.follow()
    assert callers.find("both.1", "192.0.2.1", "").name == "both" and len(lines) == 2
    assert not callers.is_open
    write(FILE)
    callers.follow()
    assert callers.find(TOKEN, "", "").name == "open"
    write("")
    callers.follow()
    assert callers.find("both.1", "192.0.2.1", "") == "token" and not callers.is_open


def test_without_a_file_any_caller_is_admitted_unless_callers_are_required(tmp_path):
    path = tmp_path / "callers.toml"
    assert Callers(path).is_open
    required = Callers(path, is_required=True)
    assert not required.is_open and required.find("", "127.0.0.1", "") == "unknown"
    path.write_text("[x")
    damaged = Callers(path)
    assert not damaged.is_open and damaged.find(TOKEN, "", "") == "token"
