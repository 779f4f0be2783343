"""Limits by address: bounded memory, refill, networks of IPv6; and the cookies that reach the framework."""

from __future__ import annotations

import asyncio

import pytest

from leadre.clock import ManualClock
from leadre.serve.callers import rates
from leadre.serve.manage import attempts
from leadre.serve.manage.attempts import AddressLimit
from leadre.serve.manage.cookies import SessionCookieOnly


def test_address_has_a_burst_and_then_a_rate():
    clock = ManualClock()
    limit = AddressLimit(clock, burst=3, per_s=0.5)
    assert [limit.take("9.9.9.9") for _ in range(5)] == [True, True, True, False, False]
    assert limit.take("9.9.9.10"), "another address"
    clock.elapsed_s += 2
    assert [limit.take("9.9.9.9") for _ in range(2)] == [True, False]
    clock.elapsed_s += 1000
    assert [limit.take("9.9.9.9") for _ in range(4)] == [True, True, True, False]


def test_one_network_of_ipv6_is_one_client():
    limit = AddressLimit(ManualClock(), burst=1, per_s=1)
    assert limit.take("2001:db8:1:2:3::4") and not limit.take("2001:db8:1:2:ffff::1")
    assert limit.take("2001:db8:1:3::1")
    assert limit.take("::ffff:9.9.9.9") and not limit.take("::ffff:9.9.9.9") and limit.take("::ffff:9.9.9.8")


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(rates, "MAX_KEYS", 10)
    limit = AddressLimit(ManualClock(), burst=1, per_s=1)
    for number in range(100):
        assert limit.take(f"10.0.0.{number}")
    assert len(limit) == 10 and not limit.take("10.0.0.99") and limit.take("x" * 10_000)


@pytest.mark.parametrize(
    ("address", "is_public"),
    [("9.9.9.9", True), ("127.0.0.1", False), ("10.1.2.3", False), ("::1", False), ("", False), ("2a00::1", True)],
)
def test_addresses_of_proxies_are_not_public(address, is_public):
    assert attempts.is_public(address) == is_public


@pytest.mark.parametrize(
    ("cookies", "kept"),
    [
        ([b"leadre_session=abc_-1"], [b"leadre_session=abc_-1"]),
        ([b'other="' + rb"\"" * 20_000 + b'"; leadre_session=abc; more=1'], [b"leadre_session=abc"]),
        ([b"a=1", b"leadre_session=abc"], [b"leadre_session=abc"]),
        ([b"xleadre_session=abc"], []),
        ([b'leadre_session="abc"'], []),
        ([b"leadre_session=" + b"a" * 65], []),
        ([b"a=1"], []),
        ([], []),
    ],
)
def test_only_the_sessions_cookie_reaches_the_framework(cookies, kept):
    seen = []

    async def app(scope, receive, send):
        seen.extend(scope["headers"])

    scope = {"type": "http", "headers": [(b"host", b"x"), *((b"cookie", value) for value in cookies)]}
    asyncio.run(SessionCookieOnly(app)(scope, None, None))
    assert seen == [(b"host", b"x"), *((b"cookie", value) for value in kept)]
