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
        """Folder of the tables for training, made from the event log by the table writer."""
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
    def erasing(self) -> Path:
        """Journal of an erasure from the log while it runs; it names no user."""
        return self.folder / "erasing.journal"

    @property
    def to_erase(self) -> Path:
        """Users whose erasure was requested and is not finished; written by the management process."""
        return self.folder / "to-erase.json"

    @property
    def refused(self) -> Path:
        """Requests that failed at the writer and were set aside, without their users; written by the writer."""
        return self.folder / "refused.jsonl"

    @property
    def token_keys(self) -> Path:
        """Keys that encrypt event tokens."""
        return self.folder / "token.keys"

    @property
    def rotation_lock(self) -> Path:
        """Held while a rotation replaces the keys of tokens."""
        return self.folder / "run" / "rotation.lock"

    @property
    def exploration_key(self) -> Path:
        """Key of the hash that derives the exploration draws of a request from its ID."""
        return self.folder / "draws.key"

    @property
    def caller_id_key(self) -> Path:
        """Key of the hashes by which callers' request and event IDs are stored."""
        return self.folder / "ids.key"

    @property
    def callers(self) -> Path:
        """The callers of the exchange route, which an operator edits; missing if any caller is admitted."""
        return self.folder / "callers.toml"

    @property
    def first_key(self) -> Path:
        """The first operator's key, if the first start had no terminal to print it to."""
        return self.folder / "operator.key"

    @property
    def erased(self) -> Path:
        """Erased users, as keyed hashes; written by the writer."""
        return self.folder / "erased"

    @property
    def backup_folders(self) -> Path:
        """Folders with backups, each of which has a copy of the erased users; written by `leadre serve backup`."""
        return self.folder / "backups.json"

    @property
    def rankers(self) -> Path:
        """Folder of the published rankers; written by the start of a bidder and by `leadre serve ranker`."""
        return self.folder / "rankers"

    @property
    def clock(self) -> Path:
        """The last time that the bidder has seen, and its doubts; written by the writer."""
        return self.folder / "clock"

    @property
    def lock(self) -> Path:
        """Held by the supervisor while the bidder runs; its content is the number of that process."""
        return self.folder / "run" / "bidder.lock"

    @property
    def reserve(self) -> Path:
        """Room on the disk for a start; see `leadre.serve.processes.reserve`."""
        return self.folder / "run" / "reserve"

    @property
    def writer_socket(self) -> Path:
        return self.folder / "run" / "writer.sock"

    @property
    def model_server_socket(self) -> Path:
        return self.folder / "run" / "generator.sock"
