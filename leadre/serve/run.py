"""Answers bid requests: OpenRTB in, ads out, inside a deadline.

Starts a writer (money and events), the language model, the management API and bid workers, each a process, starts anew
whichever of them dies, and stops them in the opposite order when it is told to (SIGTERM): first the workers, which
answer what they have begun. State lies in one folder; the first start fills its book of campaigns from the ads of the run.
"""

from __future__ import annotations

from dataclasses import dataclass

from leadre import artifact, config


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre serve``."""

    host: str = config.option("127.0.0.1", "address to listen on; others than loopback want an operator's key first")
    port: int = config.option(8080, "port for bids, events and health")
    manage_port: int = config.option(8081, "port of the management API, the status page and its documentation")
    public_url: str = config.option("", "how browsers reach the port; https, unless it is this machine (default)")
    workers: int = config.option(1, "processes that answer bid requests")
    state: str = config.option("", "folder of books, events and lists; default work/<run>/state")
    store: str = config.option("", "where lists, profiles and caps are: lmdb:FOLDER or redis://...; default in state")
    generate: bool = config.option(True, "let the language model answer for users without a stored list")
    beam: int = config.option(24, "beams of an online generation")
    seat: str = config.option("leadre", "our name in the auction")
    vendor_id: int = config.option(0, "our number on the Global Vendor List; 0 = none, so no TC string grants anything")
    gdpr_when_absent: bool = config.option(False, "treat requests that do not say so as under the GDPR")
    exploration: float = config.option(0.02, "share of places whose ad is drawn blindly among the best, and logged so")
    tmax_ms: int = config.option(200, "deadline of requests that name none")
    network_ms: float = config.option(10.0, "of each deadline, what the way back takes")
    shed_ms: float = config.option(25.0, "a request that has waited longer for its turn gets no bid at once")
    retain_days: int = config.option(90, "events are kept so long")


def run(config: Config) -> None:
    """Serve until told to stop. InputError for options that cannot be met, ArtifactError where the run has no ads."""
    _check(config)
    tables = artifact.read(config.folder("data"), kind="tables", version=1)
