"""Encrypted tokens: verified unchanged, or rejected as forged or expired."""

from __future__ import annotations

import base64
import stat
import string
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from leadre.errors import ExpiredError, ForgedError, InputError, LeadreError, TokenError
from leadre.serve.events import tokens
from leadre.serve.events.outcomes import CONVERSION_US
from leadre.serve.events.records import AssumedRate
from leadre.serve.events.tokens import KEPT_US, Token, TokenKeys
from leadre.types import EventKind

KEYS = TokenKeys({1: bytes(range(32))})
TOKEN = Token(
    bid_id="b",
    request_id="r",
    imp_id="1",
    ad_id="a",
    campaign_id="c",
    user_id="u",
    charge_type="cpc",
    price_cap_nanos=1_234_567,
    charge_nanos=500_000_000,
    currency="EUR",
    lease_id=7,
    reserved_nanos=400_000_000,
    cap_id="k",
    issued_at_us=1_000,
    expires_at_us=2_000,
    nonce=b"\0\xff" * 6,
    is_test=False,
    may_measure=True,
    may_profile=False,
)
TEXT = st.text(max_size=40)
KINDS: tuple[EventKind, ...] = get_args(EventKind)
FIELDS_IN_2026_11 = 19


def signed(fields: list[object]) -> str:
    """The token of a release up to November 2026, whose fields can be read."""
    body = f"1.{tokens._base64(msgspec.msgpack.encode(fields))}"
    return f"{body}.{tokens._mac(bytes(range(32)), body)}"


def test_token_cannot_be_read_by_its_holder() -> None:
    text = KEYS.encrypt(TOKEN, "click")
    assert set(text) <= set(string.ascii_letters + string.digits + "-_.") and len(text) < 250
    body = base64.urlsafe_b64decode(text.split(".")[1] + "==")
    named = msgspec.structs.replace(TOKEN, user_id="user-of-this-bid", campaign_id="campaign-of-this-bid")
    body += base64.urlsafe_b64decode(KEYS.encrypt(named, "imp").split(".")[1] + "==")
    assert b"user-of" not in body and b"campaign-of" not in body and b"EUR" not in body


@pytest.mark.parametrize("kind", KINDS)
def test_token_serves_one_kind_of_event(kind: EventKind) -> None:
    text = KEYS.encrypt(TOKEN, kind)
    for other in KINDS:
        if other == kind or {kind, other} == {"imp", "view"}:
            assert KEYS.check(text, other, 2_000) == TOKEN
        else:
            with pytest.raises(ForgedError):
                KEYS.check(text, other, 2_000)
    assert KEYS.encrypt_each(TOKEN, KINDS)[kind] == text


def test_signed_token_of_an_earlier_release_is_read_for_every_kind_until_it_expires() -> None:
    text = signed(list(msgspec.structs.astuple(TOKEN))[:FIELDS_IN_2026_11])
    for kind in KINDS:
        assert KEYS.check(text, kind, 2_000) == TOKEN
    with pytest.raises(ExpiredError):
        KEYS.check(text, "bill", 2_001)
    with pytest.raises(ForgedError, match="was changed"):
        KEYS.check(text[:-1] + ("A" if text[-1] != "A" else "Q"), "bill", 2_000)


@given(user=TEXT, ad=TEXT, nanos=st.integers(0, 2**63 - 1), flag=st.booleans(), nonce=st.binary(max_size=20))
@example(user="x\udfff", ad="", nanos=0, flag=True, nonce=b"")
def test_token_is_decoded_as_it_was_signed(user: str, ad: str, nanos: int, flag: bool, nonce: bytes) -> None:
    token = msgspec.structs.replace(
        TOKEN, user_id=user, ad_id=ad, price_cap_nanos=nanos, is_test=flag, nonce=nonce, expires_at_us=nanos
    )
    try:
        text = KEYS.encrypt(token, "imp")
    except UnicodeEncodeError:  # a lone surrogate, which no decoded request holds
        return
    assert KEYS.check(text, "imp", min(nanos, 2_000)) == token


def test_token_expires() -> None:
    text = KEYS.encrypt(TOKEN, "imp")
    assert KEYS.check(text, "imp", 2_000) == TOKEN
    with pytest.raises(ExpiredError, match="ended 3 s ago"):
        KEYS.check(text, "imp", 3_002_000)
    assert KEYS.check(text, "imp", 3_000, late_us=1_000) == TOKEN
    with pytest.raises(ExpiredError):
        KEYS.check(text, "imp", 3_001, late_us=1_000)


@given(at=st.integers(0, 10_000), sign=st.sampled_from(string.ascii_letters + string.digits + "-_.=é\n "))
def test_changed_character_is_rejected(at: int, sign: str) -> None:
    text = KEYS.encrypt(TOKEN, "imp")
    at %= len(text)
    if text[at] != sign:
        with pytest.raises(ForgedError):
            KEYS.check(text[:at] + sign + text[at + 1 :], "imp", 0)


@given(st.one_of(st.text(), st.from_regex(r"[0-9]{1,3}\.[A-Za-z0-9_-]{1,60}\.[A-Za-z0-9_-]{43}", fullmatch=True)))
@example("1." * 5000)
@example("1.x." + "A" * 43)
def test_arbitrary_text_is_rejected(text: str) -> None:
    with pytest.raises(TokenError):
        KEYS.check(text, "imp", 0)


def test_token_errors_are_one_tree() -> None:
    assert issubclass(ExpiredError, TokenError) and issubclass(ForgedError, TokenError)
    assert issubclass(TokenError, LeadreError)


def test_keys_rotate_and_the_oldest_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "state" / "secret"
    first = TokenKeys.open(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = first.encrypt(TOKEN, "imp")
    assert TokenKeys.open(path).check(text, "imp", 0) == TOKEN, "the file's key is the same key"
    second = first.rotate(path, 1_000)
    assert second.encrypt(TOKEN, "imp").startswith("2.") and second.check(text, "imp", 0) == TOKEN
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    third = TokenKeys.open(path).rotate(path, 1_000 + KEPT_US - 1)
    assert third.versions == [1, 2, 3] and third.check(text, "imp", 0) == TOKEN, "an event of it may still arrive"
    third = TokenKeys.open(path).rotate(path, 1_000 + KEPT_US)
    assert third.versions == [2, 3, 4] and third.check(second.encrypt(TOKEN, "imp"), "imp", 0) == TOKEN
    with pytest.raises(ForgedError, match="its key was retired"):
        third.check(text, "imp", 0)
    with pytest.raises(ForgedError):
        TokenKeys({1: bytes(32)}).check(text, "imp", 0)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["secret"]
    assert TokenKeys.open(path).rotate(path, 0, kept_us=0).versions == [5], "at once, even with a clock that went back"


def test_keys_adopt_a_rotation_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    writer = TokenKeys.open(path)
    worker = TokenKeys.open(path)
    old = worker.encrypt(TOKEN, "imp")
    TokenKeys.open(path).rotate(path, 1)
    worker.follow()
    new = worker.encrypt(TOKEN, "imp")
    assert new.startswith("2.")
    assert writer.check(new, "imp", 0) == TOKEN, "the file is read again for a version that it did not have"
    assert writer.check(old, "imp", 0) == TOKEN and writer.version == 2
    with pytest.raises(ForgedError):
        writer.check(f"9.{new[2:]}", "imp", 0)
    path.write_text("damaged")
    with pytest.raises(InputError, match="restore the file"):
        worker.follow()
    assert worker.check(new, "imp", 0) == TOKEN, "the keys stay"


def test_key_is_kept_for_longer_than_its_tokens_are_accepted() -> None:
    longest_bid_us = 24 * 3600 * 1_000_000
    redirected_us = longest_bid_us + tokens.GRACE_US + tokens.CLICK_US + CONVERSION_US
    assert redirected_us + CONVERSION_US < KEPT_US


def test_key_file_of_an_older_release_is_read_and_rotated(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"1 {'00' * 32}\n2 {'11' * 32}\n")
    keys = TokenKeys.open(path)
    assert keys.versions == [1, 2]
    assert keys.rotate(path, 5).versions == [1, 2, 3], "nobody knows when the second replaced the first"


@pytest.mark.parametrize("content", ["", "1 abc\n", "1 " + "0" * 64 + "\nx\n", "\xff"])
def test_damaged_key_file_is_an_error_with_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "secret"
    path.write_text(content)
    with pytest.raises(InputError, match="secret: wants lines of a version and a key"):
        TokenKeys.open(path)
    assert path.read_text() == content


def test_token_with_a_missing_field_is_rejected_and_with_a_further_field_read() -> None:
    fields = list(msgspec.structs.astuple(TOKEN))
    assert KEYS.check(signed([*fields, "new"]), "imp", 0) == TOKEN
    with pytest.raises(ForgedError, match="written by another release"):
        KEYS.check(signed(fields[: FIELDS_IN_2026_11 - 1]), "imp", 0)


def test_rate_of_a_token_of_the_release_before_is_in_millionths() -> None:
    before = msgspec.structs.replace(TOKEN, rate_event="click", rate_micro=500, rate_nano=0)
    now = msgspec.structs.replace(TOKEN, rate_event="click", rate_micro=0, rate_nano=500_001)
    assert before.rate == AssumedRate("click", 500_000) and now.rate == AssumedRate("click", 500_001)
    assert msgspec.structs.replace(now, rate_event="").rate is None


def test_event_urls() -> None:
    assert tokens.event_url("https://ads.example.com/", "click", "T") == "https://ads.example.com/e/click?t=T"
    assert tokens.event_url("http://localhost:8080", "bill", "T") == (
        "http://localhost:8080/e/bill?t=T&price=${AUCTION_PRICE}"
    )
    assert tokens.event_url("https://a.b/x", "loss", "T", min_to_win=True) == (
        "https://a.b/x/e/loss?t=T&reason=${AUCTION_LOSS}&min=${AUCTION_MIN_TO_WIN}"
    )
    assert tokens.event_url("https://a.b/x", "loss", "T") == "https://a.b/x/e/loss?t=T&reason=${AUCTION_LOSS}"
    assert "min=" not in tokens.event_url("https://a.b/x", "bill", "T", min_to_win=True)
    for url in ("http://ads.example.com", "ads.example.com", "https://", "https://a.b/?x=1", "javascript:alert(1)"):
        with pytest.raises(InputError, match="give an https address"):
            tokens.event_url(url, "imp", "T")


def test_nonces_differ() -> None:
    assert len({tokens.nonce() for _ in range(1000)}) == 1000 and len(tokens.nonce()) == 12
