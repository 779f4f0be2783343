"""Clients behind a reverse proxy: limits count each of them, and none can claim the address of another."""

from __future__ import annotations

import pytest
from uvicorn.middleware.proxy_headers import _TrustedHosts

from leadre.errors import InputError
from leadre.serve.plan import Network

from .bidder import Bidder

CLIENT = "198.51.100.7"
ATTEMPTS = 200  # more than an address may have at once


@pytest.mark.parametrize(
    ("proxies", "trusted", "others"),
    [
        (("127.0.0.1",), ("127.0.0.1", "::ffff:127.0.0.1"), ("127.0.0.2", "::1", "::ffff:127.0.0.2", "x", "")),
        (("10.1.2.3/24",), ("10.1.2.0", "10.1.2.255", "::ffff:10.1.2.9"), ("10.1.3.0", "::ffff:10.1.3.0")),
        (("::1", "fd00::/8"), ("::1", "fd12::5"), ("127.0.0.1", "fe80::1")),
        ((), (), ("127.0.0.1", "::1")),
    ],
)
def test_proxies_are_trusted_in_both_forms_of_their_address(proxies, trusted, others):
    hosts = _TrustedHosts(Network(proxies=proxies).trusted())
    assert [address for address in (*trusted, *others) if address in hosts] == list(trusted)


@pytest.mark.parametrize("proxy", ["localhost", "*", "10.0.0", "10.0.0.1/33", "10.0.0.1:80", ""])
def test_proxy_that_is_no_address_is_an_error(proxy):
    with pytest.raises(InputError, match="it must be an address or a network, such as"):
        Network(proxies=(proxy,)).trusted()


def refused(bidder, forwarded, count=1):
    """The statuses of requests with a wrong key and this header."""
    headers: dict[str, str | bytes] = {"authorization": "Bearer wrong"} | (
        {"x-forwarded-for": forwarded.encode("latin-1")} if forwarded is not None else {}
    )
    return {bidder.http.get(f"{bidder.url}/metrics", headers=headers).status_code for _ in range(count)}


@pytest.mark.slow
def test_limits_count_the_clients_of_a_trusted_proxy(work, tmp_path):
    """The tests are the proxy: they connect from 127.0.0.1 and add the header."""
    flags = ("--generate", "false", "--workers", "1", "--proxies", "127.0.0.1")
    with Bidder(work, tmp_path / "state", *flags) as bidder:
        assert refused(bidder, CLIENT, ATTEMPTS) == {401, 429}
        assert refused(bidder, CLIENT) == {429}
        assert refused(bidder, "203.0.113.9") == {401}, "another client"
        assert refused(bidder, f"{CLIENT}, 203.0.113.10") == {401}, "the client adds what it likes before its address"
        assert refused(bidder, f"203.0.113.11, {CLIENT}") == {429}
        assert refused(bidder, f"{CLIENT}, 127.0.0.1") == {429}, "a chain of trusted proxies"
        for garbage in ("", ",", "unknown", "x" * 2000, "[::1", "::ffff:198.51.100.8", "198.51.100.8:4711", "\x80"):
            assert refused(bidder, garbage) <= {401, 429}
        assert bidder.ask().status_code in (200, 204)


@pytest.mark.slow
def test_header_of_a_client_that_is_no_proxy_is_not_believed(work, tmp_path):
    with Bidder(work, tmp_path / "state", "--generate", "false", "--workers", "1") as bidder:
        assert refused(bidder, CLIENT, ATTEMPTS) == {401, 429}
        assert refused(bidder, "203.0.113.9") == {429}, "all count as one address"
        assert refused(bidder, None) == {429}
