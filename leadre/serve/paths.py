"""Where a bidder keeps its state: one folder, which a backup copies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class StatePaths:
    """The files of a state folder. ``store`` names the store, which may be elsewhere."""

    folder: Path
    store: str

    @property
    def book(self) -> Path:
        """Campaigns, ads, keys, origins; written by the management process."""
        return self.folder / "manage.db"

    @property
    def ledger(self) -> Path:
        """Budgets and charges; written by the writer."""
        return self.folder / "ledger.db"

    @property
    def events(self) -> Path:
        """The event log; written by the writer."""
        return self.folder / "events"

    @property
    def tables(self) -> Path:
        """What the event log becomes for training; written by the writer."""
        return self.folder / "tables"

    @property
    def keys(self) -> Path:
        """What event tokens are signed with."""
        return self.folder / "token.keys"

    @property
    def draws(self) -> Path:
        """The key that decides, with a request's ID, what is drawn for it."""
        return self.folder / "draws.key"

    @property
    def erased(self) -> Path:
        """Who was erased, as keyed hashes; written by the writer."""
        return self.folder / "erased"

    @property
    def writer(self) -> Path:
        return self.folder / "run" / "writer.sock"

    @property
    def generator(self) -> Path:
        return self.folder / "run" / "generator.sock"
