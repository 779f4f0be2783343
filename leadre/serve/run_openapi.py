"""Writes the OpenAPI descriptions of a bidder: bidder.json for bids and events, management.json for the API.

A running bidder has the second one at `/openapi.json` of its management port, for callers with a key.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leadre import config, progress


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre serve openapi``."""

    to: Path = config.option(Path("openapi"), "folder for the two files")


def run(config: Config) -> None:
    """Write both files. Raises StorageError if the folder cannot be written."""
    from leadre.serve.events import durable

    for name, description in descriptions().items():
        path = config.to / f"{name}.json"
        durable.replace(path, json.dumps(description, indent=2).encode() + b"\n")
        progress.say(f"serve: {path}")


def descriptions() -> dict[str, dict[str, Any]]:
    """``bidder`` and ``management`` -> description, ready for JSON."""
    from leadre.serve.manage import api
    from leadre.serve.processes import openapi

    return {"bidder": openapi.describe(), "management": api.routes().openapi()}
