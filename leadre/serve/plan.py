"""The plan of a bidder: which processes run, with which settings, from which artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leadre.serve.paths import StatePaths
from leadre.serve.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Deadlines of a worker in milliseconds: of requests that name none, of the way back, of waiting for a turn."""

    tmax_ms: int
    network_ms: float
    shed_ms: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run. ``model`` None: no language model; the folders are those of artifacts."""

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
