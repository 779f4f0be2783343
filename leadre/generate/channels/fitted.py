"""Fitted channels on disk: ``work/<run>/channels/<name>``, written once and shared by evaluation and the Python API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from leadre import artifact
from leadre.generate.channels.contract import Channel
from leadre.generate.channels.registry import CHANNELS

if TYPE_CHECKING:
    from leadre.data.histories import Logs


def load(folder: Path, name: str, logs: Logs, data: artifact.Artifact, *, seed: int, threads: int) -> Channel:
    """The channel ``name`` of CHANNELS from ``folder``; see `lm.fits.Method.current`."""
    return CHANNELS[name].current(folder, logs, data, seed=seed, threads=threads)
