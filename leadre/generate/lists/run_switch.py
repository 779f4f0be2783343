"""Switches the store to other lists: the version that was current before, or one by its name.

Running bidders use the new current version at once.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from leadre import config, progress


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre generate switch``."""

    to: str = config.option("", "version to make current; empty = the one that was current before")
    state: str = config.option("", "state folder of the bidder; default work/<run>/state")
    store: str = config.option(
        "", "lmdb:FOLDER or redis://HOST:PORT/DB; default the folder lists in the state folder, as in serve"
    )


def run(config: Config) -> None:
    """Switch. Raises InputError if there is no such version or none was current before, StoreDown."""
    from leadre.store import open_store, spec_in

    state = Path(config.state) if config.state else config.folder("state")
    with closing(open_store(spec_in(state, config.store))) as store:
        if config.to:
            store.switch(config.to)
        else:
            store.rollback()
        known = store.versions()
    progress.say(f"generate: version {known.current} is current, of {', '.join(known.names)}")
