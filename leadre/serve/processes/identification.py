"""The sender of a bid request: a configured caller, or a page of a registered origin. Each has a limit of its rate.

Each worker permits its part of a rate, the rate divided by the number of workers, as the system spreads connections
over them. Nothing proves the `Origin` of a request, so pages are bounded by origin and by network of the address.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from collections.abc import Collection
from typing import NamedTuple

from leadre.clock import Clock
from leadre.serve.callers.party import ANYBODY, Bound, Party
from leadre.serve.callers.rates import RateLimit
from leadre.serve.callers.registry import Caller, Callers, plain_address
from leadre.serve.manage.attempts import is_public
from leadre.serve.plan import Network, Pages
from leadre.serve.processes.bodies import Scope, header, parameter
from leadre.serve.processes.client_limits import address_of
from leadre.serve.processes.connections import PEER
from leadre.units import NANOS_PER_UNIT

BURST_S = 2.0  # a sender may send the requests of so many seconds at once
IPV4_BITS, IPV6_BITS = 24, 48  # of the network of an address
CERTIFICATE = b"x-client-certificate"


class Refusal(NamedTuple):
    """The response to a sender that gets none: 401, 403 or 429, and the label of metrics."""

    status: int
    reason: str
    retry_after_s: int = 0


class _Rate(NamedTuple):
    caller: Caller
    limit: RateLimit


class Identification:
    """Senders of one worker's bid requests, and their rates.

    ``workers``: the processes that share a rate. ``key``: of the hashes of origins and networks, the same in all.
    """

    def __init__(self, network: Network, pages: Pages, workers: int, clock: Clock, key: bytes = b"") -> None:
        self._key = key
        self._proxies = [ipaddress.ip_network(proxy) for proxy in network.trusted()]
        self._pages = pages
        self._workers = workers
        self._clock = clock
        self._rates: dict[str, _Rate] = {}  # by name of the caller
        self._origins = self._limit(pages.page_origin_per_s)
        self._networks = self._limit(pages.page_network_per_s)

    def exchange(self, callers: Callers, scope: Scope) -> Party | Refusal:
        """The sender of a request to the route of exchanges."""
        if callers.is_open:
            return ANYBODY
        caller = callers.find(presented_token(scope), address_of(scope), self._certificate(scope))
        if not isinstance(caller, Caller):
            return Refusal(401 if caller in ("unknown", "token") else 403, caller)
        rate = self._rate(caller)
        if rate is not None and not rate.take(""):
            return Refusal(429, caller.name, self._retry_after_s(caller.section.requests_per_s))
        return caller.party

    def page(self, origins: Collection[str], scope: Scope) -> Party | Refusal:
        """The sender of a request to the route of pages."""
        origin = header(scope, b"origin").decode("latin-1")
        if origin not in origins:
            return Refusal(403, "origin" if origin else "no_origin")
        pages = self._pages
        origin_key = self._hash("o", origin)
        cap_holder = origin_key
        bounds = [Bound(origin_key, pages.page_origin_open_bids, round(pages.page_origin_open_money * NANOS_PER_UNIT))]
        network = network_of(address_of(scope))
        if network:
            if not self._networks.take(network):
                return Refusal(429, "network", self._retry_after_s(pages.page_network_per_s))
            money_nanos = round(pages.page_network_open_money * NANOS_PER_UNIT)
            cap_holder = self._hash("n", network)
            bounds.append(Bound(cap_holder, pages.page_network_open_bids, money_nanos))
        if not self._origins.take(origin):
            return Refusal(429, "origin", self._retry_after_s(pages.page_origin_per_s))
        return Party(bounds=tuple(bounds), share=origin_key, cap_holder=cap_holder, has_fixed_price=True)

    def _hash(self, kind: str, text: str) -> str:
        """A short key of an origin or a network, which tokens and stores may have."""
        return f"{kind}:{hashlib.blake2b(text.encode(), key=self._key, digest_size=6).hexdigest()}"

    def _rate(self, caller: Caller) -> RateLimit | None:
        """The limit of a caller's requests; None if it has none. It is full again after a change of its section."""
        if not caller.section.requests_per_s:
            return None
        rate = self._rates.get(caller.name)
        if rate is None or rate.caller is not caller:
            rate = self._rates[caller.name] = _Rate(caller, self._limit(caller.section.requests_per_s))
        return rate.limit

    def _limit(self, per_s: float) -> RateLimit:
        share_per_s = per_s / self._workers
        return RateLimit(self._clock, burst=max(1.0, BURST_S * share_per_s), per_s=share_per_s)

    def _retry_after_s(self, per_s: float) -> int:
        return max(1, math.ceil(self._workers / per_s))

    def _certificate(self, scope: Scope) -> str:
        """The client certificate that a proxy has checked; "" without one. A header of another client is ignored."""
        certificate = header(scope, CERTIFICATE).decode("latin-1").strip()
        if not certificate or not self._proxies:
            return ""
        try:
            peer = ipaddress.ip_address(scope.get(PEER, ""))
        except ValueError:
            return ""
        return certificate if any(peer in proxy for proxy in self._proxies) else ""


def presented_token(scope: Scope) -> str:
    """The token of a request: that of `Authorization: Bearer`, else that of the parameter ``caller``; "" without one.

    A caller that cannot set a header has the token in the URL.
    """
    return bearer(scope) or (parameter(scope, "caller") if b"caller=" in scope["query_string"] else "")


def bearer(scope: Scope) -> str:
    """The token of `Authorization: Bearer`, "" without one."""
    kind, _, presented = header(scope, b"authorization").decode("latin-1").partition(" ")
    return presented.strip() if kind.lower() == "bearer" else ""


def network_of(address: str) -> str:
    """The network of a client, /24 or /48; "" for an address of this machine or a private network, maybe a proxy's."""
    parsed = plain_address(address)
    if parsed is None or not is_public(str(parsed)):
        return ""
    bits = IPV4_BITS if parsed.version == 4 else IPV6_BITS
    return str(ipaddress.ip_network((parsed, bits), strict=False))
