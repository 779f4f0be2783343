"""Paths of a bidder's state: one folder, which a backup copies whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class StatePaths:
    """Files of a state folder, and the process that writes each. ``store``: spec of the user store, maybe elsewhere."""

    folder: Path
    store: str

    @property
    def manage_database(self) -> Path:
        """Campaigns, ads, API keys and origins; written by the management process."""
        return self.folder / "manage.db"

    @property
    def ledger(self) -> Path:
        """Budgets, leases and charges; written by the writer."""
        return self.folder / "ledger.db"

    @property
    def events(self) -> Path:
        """Folder of the event log; written by the writer."""
        return self.folder / "events"

    @property
    def damaged(self) -> Path:
        """Damaged segments of the event log, which `leadre serve repair` has replaced."""
        return self.folder / "damaged"

    @property
    def tables(self) -> Path:
        """Folder of the tables for training, compacted from the event log by the writer."""
        return self.folder / "tables"

    @property
    def counts(self) -> Path:
        """Snapshot of the counts that follow from the event log; written by the writer."""
        return self.folder / "counts"

    @property
    def replacing(self) -> Path:
        """Lock of log segments and tables; its holder may replace and delete these files."""
        return self.folder / "run" / "replacing.lock"

    @property
    def refused(self) -> Path:
        """Requests that failed at the writer and were set aside, without their users; written by the writer."""
        return self.folder / "refused.jsonl"

    @property
    def token_keys(self) -> Path:
        """Keys that sign event tokens."""
        return self.folder / "token.keys"

    @property
    def exploration_key(self) -> Path:
        """Key of the hash that derives the exploration draws of a request from its ID."""
        return self.folder / "draws.key"

    @property
    def erased(self) -> Path:
        """Erased users, as keyed hashes; written by the writer."""
        return self.folder / "erased"

    @property
    def lock(self) -> Path:
        """Held by the supervisor while the bidder runs; its content is the number of that process."""
        return self.folder / "run" / "bidder.lock"

    @property
    def writer_socket(self) -> Path:
        return self.folder / "run" / "writer.sock"

    @property
    def model_server_socket(self) -> Path:
        return self.folder / "run" / "generator.sock"
