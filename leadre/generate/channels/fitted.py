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
    """The channel ``name`` of CHANNELS from ``folder``. If it is not current there, fit and write it first.

    ``logs`` are those of ``data``; ``threads``: processor threads of the fit, 0 = all.
    """
    method = CHANNELS[name]
    settings = {"channel": name, **method.settings}
    output = artifact.Output(folder=folder, kind=artifact.CHANNEL, config=settings, seed=seed, parents=[data])
    if not output.is_current():
        with output.create() as temporary:
            method.fit(logs, seed, threads).save(temporary)
    return method.load(folder)
