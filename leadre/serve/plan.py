"""The plan of a bidder: which processes run, with which settings, from which artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leadre.serve.paths import StatePaths
from leadre.serve.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Deadlines of a worker, in milliseconds.

    ``tmax_ms``: of a request without a tmax. ``network_ms``: part of each deadline that is left for the network.
    ``shed_ms``: longest wait in the admission queue.
    """

    tmax_ms: int
    network_ms: float
    shed_ms: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Processes to run. ``tables``, ``codebook`` and ``model`` are artifact folders; no ``model``, no model server."""

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
