"""Makes other lists of the store the current ones: those that were current before, or a version by its name.

`leadre generate --stage switch` is another name for `leadre generate-switch`. Bidders that run follow at once.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from leadre import config, progress


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre generate --stage switch``."""

    to: str = config.option("", "the version that shall be current; empty = the one that was before")
    state: str = config.option("", "the bidder's folder; default work/<run>/state")
    store: str = config.option(
        "", "lmdb:FOLDER or redis://HOST:PORT/DB; default the folder lists in state, as in serve"
    )


def run(config: Config) -> None:
    """Switch. InputError where there is no such version, or none was current before; StoreDown."""
    from leadre.store import open_store, spec_in

    state = Path(config.state) if config.state else config.folder("state")
    with closing(open_store(spec_in(state, config.store))) as store:
        if config.to:
            store.switch(config.to)
        else:
            store.rollback()
        known = store.versions()
    progress.say(f"generate: version {known.current} is current; there are {', '.join(known.names)}")
