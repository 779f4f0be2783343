"""The plan of a bidder: which processes run, with which settings, from which artifacts."""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from leadre.config import option
from leadre.errors import InputError
from leadre.serve.paths import StatePaths
from leadre.serve.settings import Settings

MAPPED_BITS = 96  # before the address of IPv4 in one of IPv6 (RFC 4291, section 2.5.5.2)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Deadlines of a worker, in milliseconds, and how long it bids without a writer."""

    tmax_ms: int = option(200, "deadline of requests that have no tmax", at_least=1)
    network_ms: float = option(10.0, "part of each deadline that is reserved for the network", at_least=0)
    shed_ms: float = option(25.0, "a request that has waited longer than this gets no bid", at_least=0)
    writer_away_s: float = option(
        60.0, "seconds without the writer after which campaigns without a budget stop, until it is back", at_least=1
    )


@dataclass(frozen=True, kw_only=True)
class Network:
    """Clients of the two ports."""

    max_connections: int = option(
        4096, "connections of one process; a newcomer beyond them closes the oldest silent or idle one", at_least=16
    )
    proxies: tuple[str, ...] = option(
        (), "addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed; none by default"
    )

    def trusted(self) -> list[str]:
        """The proxies as networks, those of IPv4 also in the form that they have at an IPv6 socket.

        InputError for text that is no address and no network.
        """
        networks = []
        for proxy in self.proxies:
            try:
                network = ipaddress.ip_network(proxy, strict=False)
            except ValueError as error:
                rule = "an address or a network, such as '10.0.0.1' or '10.0.0.0/24'"
                raise InputError(f"proxies = {proxy!r}; it must be {rule}") from error
            networks.append(str(network))
            if isinstance(network, ipaddress.IPv4Network):
                networks.append(f"::ffff:{network.network_address}/{network.prefixlen + MAPPED_BITS}")
        return networks


@dataclass(frozen=True, kw_only=True)
class Pages:
    """Limits of the requests of pages, all workers together. An open bid is neither shown nor lost, within its time."""

    page_origin_per_s: float = option(1000.0, "bid requests in a second with one Origin, which nothing proves", above=0)
    page_network_per_s: float = option(20.0, "bid requests of pages in a second from one /24 or /48", above=0)
    page_origin_open_bids: int = option(100_000, "open bids for pages of one origin", at_least=1)
    page_network_open_bids: int = option(500, "open bids for pages in one /24 or /48", at_least=1)
    page_origin_open_money: float = option(
        100.0, "sum of the prices of the open bids of one origin, in each currency", above=0, at_most=10**9
    )
    page_network_open_money: float = option(
        5.0, "sum of the prices of the open bids in one /24 or /48, in each currency", above=0, at_most=10**9
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that the processes of one bidder need at start. ``model`` None: no model server. Folders are of artifacts."""

    paths: StatePaths
    settings: Settings
    host: str
    port: int
    manage_port: int
    workers: int
    timing: Timing
    tables: Path
    codebook: Path
    model: Path | None
    beam: int
    retain_days: int
    ranks: bool = False  # whether the published ranker prices ads
    network: Network = Network()
    reviews_accounts: bool = True
    pages: Pages = Pages()
    page_key: bytes = field(default_factory=lambda: secrets.token_bytes(16), repr=False)  # of hashes of networks

    @property
    def management_url(self) -> str:
        """URL of the management port for a visitor of the bid port; "" unless both are on the visitor's machine."""
        is_local = self.host in ("127.0.0.1", "localhost", "::1")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.manage_port}/" if is_local else ""
