"""The plan of a bidder: which processes run, with which settings, from which artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leadre.config import option
from leadre.serve.paths import StatePaths
from leadre.serve.settings import Settings


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
        (), "addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed; none by default"
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
    network: Network = Network()

    @property
    def management_url(self) -> str:
        """URL of the management port for a visitor of the bid port; "" unless both are on the visitor's machine."""
        is_local = self.host in ("127.0.0.1", "localhost", "::1")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.manage_port}/" if is_local else ""
