"""Bootstrap: steps before a bidder starts. The first start fills the catalogue and offers an operator's key."""

from __future__ import annotations

import os
import shlex
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from leadre import database, progress
from leadre.artifact import Artifact
from leadre.clock import Clock
from leadre.errors import InputError, StorageError
from leadre.serve.bidding.exploration import ExplorationDraws
from leadre.serve.callers import registry
from leadre.serve.catalogue import importer, ownership
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.events import durable, user_records
from leadre.serve.events.erased import ErasedUsers
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.manage import auth
from leadre.serve.paths import StatePaths
from leadre.serve.private import keep_private
from leadre.serve.processes import reserve
from leadre.serve.settings import Settings
from leadre.store import open_store
from leadre.store.contract import EVERYBODY, StoredList

MAX_SOCKET_BYTES = 103  # of the path of a Unix socket: 107 on Linux, 103 on macOS
POPULAR_ADS = 200  # length of the list for unknown users
CONTEXT_ONLY = "context-"  # begins the name of a version that holds only the list for unknown users


@contextmanager
def owned(paths: StatePaths) -> Iterator[None]:
    """Own a state folder, so that no second bidder starts on it.

    InputError if another bidder runs on it, if it cannot be written, or if its path is too long for a Unix socket.
    """
    for socket in (paths.writer_socket, paths.model_server_socket):
        length = len(os.fsencode(socket))
        if length > MAX_SOCKET_BYTES:
            raise InputError(
                f"{paths.folder}: the sockets in it have paths of up to {length} bytes, and the system allows"
                f" {MAX_SOCKET_BYTES}; choose a shorter --state"
            )
    with errors(paths):
        keep_private(paths.folder)
        file = durable.lock(paths.lock, "a bidder runs on this state folder; stop it first, or choose another --state")
    try:
        reserve.free(paths.reserve)
        with errors(paths):
            user_records.recover(paths.events, paths.erasing)  # before a process reads the log
        yield
    finally:
        os.close(file)


@contextmanager
def errors(paths: StatePaths) -> Iterator[None]:
    """InputError in place of errors of the disk, and of a database that is damaged or locked by another program."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise InputError(
            f"{paths.manage_database}: {error}; close the program that has it open, or free the disk"
        ) from error
    except sqlite3.DatabaseError as error:
        raise InputError(f"{paths.manage_database}: {error}; restore a backup by `leadre serve restore`") from error
    except (OSError, StorageError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise InputError(f"{paths.folder}: cannot be written ({error}); choose another --state, or free it") from error


def fill(paths: StatePaths, tables: Artifact) -> None:
    """Create the missing parts of the state: secret keys, campaigns and ads, the list for unknown users."""
    paths.folder.mkdir(parents=True, exist_ok=True)
    TokenKeys.open(paths.token_keys)
    ExplorationDraws.open(paths.exploration_key)
    ErasedUsers(paths.erased)
    manage_database = ManageDatabase(paths.manage_database)
    try:
        if not CampaignStore(manage_database).ads(limit=1):
            import polars as pl

            campaigns, ads = importer.read(pl.read_parquet(tables.path / "ads.parquet"), importer.ImportDefaults())
            added = CampaignStore(manage_database).add(campaigns, ads)
            summary = f"{added.campaigns:,} campaigns with {added.ads:,} ads"
            progress.say(f"serve: {summary} from {tables.path}, {len(added.refused):,} ads refused")
        with database.transaction(manage_database.connection):  # the catalogue keeps its version
            objects = importer.object_ids(tables.path)
            ownership.grant(manage_database.connection, ((object_id, ownership.RUN) for object_id in objects))
    finally:
        manage_database.close()
    store = open_store(paths.store)
    try:
        if store.read_list(EVERYBODY) is None:
            version = store.versions().current or f"{CONTEXT_ONLY}{tables.hash[:12]}"
            store.put_lists(version, {EVERYBODY: popular(tables, version)})
            store.switch(version)
        if (store.versions().current or "").startswith(CONTEXT_ONLY):
            progress.say(
                "serve: no user has a list or a profile yet, so all get popular ads; "
                "`leadre generate lists` writes them, also while the bidder runs"
            )
    finally:
        store.close()


def popular(tables: Artifact, version: str) -> StoredList:
    """The list for unknown users: the ads that most users acted on, live or not. Each request filters the live ones."""
    from leadre.data import histories
    from leadre.generate.lists import profiles

    logs = histories.load(tables)
    now_us = int(logs.at_us_E.max(initial=-1)) + 1
    return profiles.popular(logs, now_us, np.arange(len(logs.ads), dtype=np.int32), version, POPULAR_ADS)


def offer_operator_key(paths: StatePaths, clock: Clock) -> None:
    """If no operator's key is in force: create one, and print it in a terminal, or write it into a file elsewhere.

    The key authorises every call. A service's stderr is collected and read by many, so it never holds a key: it names
    the file, which its owner alone can read. A terminal is one by `isatty` alone: rich takes a log for a terminal if
    FORCE_COLOR is set.
    """
    program = sys.argv[0] if Path(sys.argv[0]).name == "leadre" else "leadre"
    command = f"{program} serve key --name NAME --state {paths.folder}"
    manage_database = ManageDatabase(paths.manage_database)
    try:
        keys = auth.ApiKeys(manage_database)
        if keys.have_operator():
            return
        _, key_text = keys.create("first start", clock.now_us())
    finally:
        manage_database.close()
    if not sys.stderr.isatty():
        durable.replace(paths.first_key, f"{key_text}\n".encode(), mode=0o600)
        progress.say(f"serve: an operator's key is in {paths.first_key}; move it to a safe place:")
        progress.say(f"\n    export KEY=$(cat {shlex.quote(str(paths.first_key))})\n")
        progress.say(f"serve: `{command}` prints another at any time")
        return
    progress.say("serve: an operator's key for the status page and for curl; only its hash is stored, so copy it:")
    progress.say(f"\n    export KEY={key_text}\n")
    progress.say(f"serve: `{command}` prints another at any time")


def register_origins(paths: StatePaths, origins: Sequence[str]) -> list[str]:
    """Add web origins to the registered ones; returns all of them. InputError for text that is no origin."""
    manage_database = ManageDatabase(paths.manage_database)
    try:
        return auth.put_origins(manage_database, [*auth.read_origins(manage_database.connection), *origins])
    finally:
        manage_database.close()


def describe_callers(paths: StatePaths, settings: Settings, host: str) -> str:
    """A line about the callers that may request bids. InputError for a damaged file of callers."""
    command = f"`leadre serve caller --name NAME --state {paths.folder}` adds one"
    if paths.callers.exists():
        names = sorted(registry.read(paths.callers))
        return f"callers that may request bids: {', '.join(names) or 'none, so exchanges get 401'}; {command}"
    if settings.require_callers:
        return f"exchanges get 401, as no caller is configured and require_callers is set; {command}"
    is_exposed = not (auth.is_loopback(host) and auth.is_loopback(urlsplit(settings.public_url).hostname or ""))
    if is_exposed:
        return (
            "WARNING: no caller is configured, so anybody who reaches /openrtb2/bid may request bids, and hold the"
            f" budgets and frequency caps of all campaigns; {command}, and require_callers refuses them until then"
        )
    return f"any program on this machine may request bids, as no caller is configured; {command}"


def check_exposure(paths: StatePaths, hosts: Sequence[str]) -> None:
    """InputError if a server would accept connections from other machines while no operator's key is in force."""
    manage_database = ManageDatabase(paths.manage_database)
    try:
        for host in hosts:
            auth.check_exposure(host, auth.ApiKeys(manage_database))
    finally:
        manage_database.close()
