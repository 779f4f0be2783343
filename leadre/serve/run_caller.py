"""Adds a caller of bid requests, or a token of one, and prints the token once; a running bidder follows in a second.

Standard output has the token and nothing else. The file `callers.toml` of the state folder stores its hash alone. With
the first caller the route of exchanges closes to all others. For a caller that is in the file a new token is added: it
and the one before are in force, so that the exchange can replace it without a gap. All else is changed in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leadre import config, progress
from leadre.errors import InputError
from leadre.serve import run as serve

if TYPE_CHECKING:
    from leadre.serve.callers.registry import Section


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre serve caller``."""

    name: str = config.option("", "name of the caller: a to z, 0 to 9, '-' and '_'")
    token: bool = config.option(True, "create a token; without one the caller has addresses or certificates alone")
    addresses: tuple[str, ...] = config.option((), "addresses or networks from which alone its requests come")
    certificates: tuple[str, ...] = config.option(
        (), "its client certificates, as a proxy writes them into X-Client-Certificate"
    )
    requests_per_s: float = config.option(0.0, "requests in a second, all workers together; 0 = no limit", at_least=0)
    max_open_bids: int = config.option(
        100_000, "bids that may be open: neither shown nor lost, within their time", at_least=1, at_most=10**9
    )
    max_open_money: float = config.option(
        100.0, "sum of the prices of its open bids, in each currency", above=0, at_most=10**9
    )
    exp_s: int = config.option(
        0, "seconds in which its bids may be shown; 0 = as the bidder has it", at_least=0, at_most=3600
    )
    sends_no_price: bool = config.option(False, "it fills in no clearing price: the signed price is billed")
    state: str = config.option("", "state folder of the bidder; default that of [serve], else work/<run>/state")
    stages: Path | None = config.option(None, "TOML whose [serve] names the state folder; none = that of --config")


def run(settings: Config) -> str | None:
    """Change the file; returns the text of the token. InputError for values that the file cannot have."""
    from leadre.serve.callers import file, registry
    from leadre.serve.private import keep_private

    registry.check_name(settings.name)
    path = serve.paths_for(settings, settings.stages, settings.state).callers
    keep_private(path.parent)
    is_known = path.exists() and settings.name in registry.read(path)
    token = file.new_token(settings.name) if settings.token else None
    if is_known:
        if token is None or _section(settings, None) != _section(Config(), None):
            raise InputError(f"{path}: has [{settings.name}] already; only a token is added here, all else in the file")
        file.add_token(path, settings.name, token)
    else:
        file.add_caller(path, settings.name, _section(settings, token))
    progress.say(f"serve: caller {settings.name} is in {path}; only the hash of a token is stored")
    return token


def _section(settings: Config, token: str | None) -> Section:
    """The section of a new caller."""
    from leadre.serve.callers import registry

    return registry.Section(
        tokens=[registry.token_hash(token)] if token else [],
        addresses=list(settings.addresses),
        certificates=list(settings.certificates),
        requests_per_s=settings.requests_per_s,
        max_open_bids=settings.max_open_bids,
        max_open_money=settings.max_open_money,
        exp_s=settings.exp_s,
        sends_no_price=settings.sends_no_price,
    )
