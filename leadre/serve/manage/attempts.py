"""Limits of requests by client address: token buckets in bounded memory.

A valid key or token is never refused because of others with the same address, such as those behind one proxy: secrets
have 256 random bits, so a limit need not slow down guesses. It spares the processor and the log.
"""

from __future__ import annotations

import ipaddress

from leadre.clock import Clock
from leadre.serve.callers.rates import RateLimit

FAILED_LOGINS = 60.0  # requests without a valid key of one address at once
FAILED_LOGINS_PER_S = 0.2
RETRY_AFTER_S = "5"  # header Retry-After: the time for one more
IPV6_BITS = 64  # one client has all addresses of such a network


def failed_logins(clock: Clock) -> AddressLimit:
    """The limit of requests without a valid key."""
    return AddressLimit(clock, burst=FAILED_LOGINS, per_s=FAILED_LOGINS_PER_S)


class AddressLimit(RateLimit):
    """A `RateLimit` by address; all addresses of an IPv6 network are one."""

    def take(self, address: str) -> bool:
        """Count a request of an address. False if it has exceeded the limit."""
        return super().take(network_of(address))


def network_of(address: str) -> str:
    """An IPv4 address as it is, the network of an IPv6 address, other text cut short."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.IPv6Address(int(parsed) >> IPV6_BITS << IPV6_BITS))
    return str(parsed)


def is_public(address: str) -> bool:
    """Whether the address is one client's. Those of this machine and of private networks are often proxies'."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
