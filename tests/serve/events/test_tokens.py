"""Signed tokens: verified unchanged, or rejected as forged or expired."""

from __future__ import annotations

import base64
import hashlib
import hmac
import stat
import string
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from leadre.errors import ExpiredError, ForgedError, InputError, LeadreError, TokenError
from leadre.serve.events import tokens
from leadre.serve.events.tokens import Token, TokenKeys

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


def test_signature_is_hmac_sha256() -> None:
    body, _, mac = KEYS.sign(TOKEN).rpartition(".")
    expected = hmac.new(bytes(range(32)), body.encode(), hashlib.sha256).digest()
    assert base64.urlsafe_b64decode(mac + "=") == expected
    assert set(body + mac) <= set(string.ascii_letters + string.digits + "-_.")
    assert len(KEYS.sign(TOKEN)) < 200


@given(user=TEXT, ad=TEXT, nanos=st.integers(0, 2**63 - 1), flag=st.booleans(), nonce=st.binary(max_size=20))
@example(user="x\udfff", ad="", nanos=0, flag=True, nonce=b"")
def test_token_is_decoded_as_it_was_signed(user: str, ad: str, nanos: int, flag: bool, nonce: bytes) -> None:
    token = msgspec.structs.replace(
        TOKEN, user_id=user, ad_id=ad, price_cap_nanos=nanos, is_test=flag, nonce=nonce, expires_at_us=nanos
    )
    try:
        text = KEYS.sign(token)
    except UnicodeEncodeError:  # a lone surrogate, which no decoded request holds
        return
    assert KEYS.check(text, min(nanos, 2_000)) == token


def test_token_expires() -> None:
    text = KEYS.sign(TOKEN)
    assert KEYS.check(text, 2_000) == TOKEN
    with pytest.raises(ExpiredError, match="ended 3 s ago"):
        KEYS.check(text, 3_002_000)
    assert KEYS.check(text, 3_000, late_us=1_000) == TOKEN
    with pytest.raises(ExpiredError):
        KEYS.check(text, 3_001, late_us=1_000)


@given(at=st.integers(0, 10_000), sign=st.sampled_from(string.ascii_letters + string.digits + "-_.=é\n "))
def test_changed_character_is_rejected(at: int, sign: str) -> None:
    text = KEYS.sign(TOKEN)
    at %= len(text)
    if text[at] != sign:
        with pytest.raises(ForgedError):
            KEYS.check(text[:at] + sign + text[at + 1 :], 0)


@given(st.one_of(st.text(), st.from_regex(r"[0-9]{1,3}\.[A-Za-z0-9_-]{1,60}\.[A-Za-z0-9_-]{43}", fullmatch=True)))
@example("1." * 5000)
@example("1.x." + "A" * 43)
def test_arbitrary_text_is_rejected(text: str) -> None:
    with pytest.raises(TokenError):
        KEYS.check(text, 0)


def test_token_errors_are_one_tree() -> None:
    assert issubclass(ExpiredError, TokenError) and issubclass(ForgedError, TokenError)
    assert issubclass(TokenError, LeadreError)


def test_signature_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, object]] = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: seen.append((a, b)) or compare(a, b))
    KEYS.check(KEYS.sign(TOKEN), 0)
    assert len(seen) == 1


def test_keys_rotate_and_the_oldest_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "state" / "secret"
    first = TokenKeys.open(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = first.sign(TOKEN)
    assert TokenKeys.open(path).check(text, 0) == TOKEN, "the file's key is the same key"
    second = first.rotate(path)
    assert second.sign(TOKEN).startswith("2.") and second.check(text, 0) == TOKEN
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    third = TokenKeys.open(path).rotate(path)
    assert third.check(second.sign(TOKEN), 0) == TOKEN
    with pytest.raises(ForgedError, match="its key was retired"):
        third.check(text, 0)
    with pytest.raises(ForgedError):
        TokenKeys({1: bytes(32)}).check(text, 0)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["secret"]


@pytest.mark.parametrize("content", ["", "1 abc\n", "1 " + "0" * 64 + "\nx\n", "\xff"])
def test_damaged_key_file_is_an_error_with_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "secret"
    path.write_text(content)
    with pytest.raises(InputError, match="secret: wants lines of a version and a key"):
        TokenKeys.open(path)
    assert path.read_text() == content


def test_token_with_a_missing_field_is_rejected_and_with_a_further_field_read() -> None:
    def signed(fields: list[object]) -> str:
        body = f"1.{tokens._base64(msgspec.msgpack.encode(fields))}"
        return f"{body}.{tokens._mac(bytes(range(32)), body)}"

    fields = list(msgspec.structs.astuple(TOKEN))
    assert KEYS.check(signed([*fields, "new"]), 0) == TOKEN
    with pytest.raises(ForgedError, match="written by another release"):
        KEYS.check(signed(fields[:-1]), 0)


def test_event_urls() -> None:
    assert tokens.event_url("https://ads.example.com/", "click", "T") == "https://ads.example.com/e/click?t=T"
    assert tokens.event_url("http://localhost:8080", "bill", "T") == (
        "http://localhost:8080/e/bill?t=T&price=${AUCTION_PRICE}"
    )
    assert tokens.event_url("https://a.b/x", "loss", "T") == "https://a.b/x/e/loss?t=T&reason=${AUCTION_LOSS}"
    for url in ("http://ads.example.com", "ads.example.com", "https://", "https://a.b/?x=1", "javascript:alert(1)"):
        with pytest.raises(InputError, match="give an https address"):
            tokens.event_url(url, "imp", "T")


def test_nonces_differ() -> None:
    assert len({tokens.nonce() for _ in range(1000)}) == 1000 and len(tokens.nonce()) == 12
