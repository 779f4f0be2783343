"""The first start: a book of campaigns from the ads of a run, a list for whoever is not known, an operator's key."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from leadre import progress
from leadre.artifact import Artifact
from leadre.serve.bidding.exploration import ExplorationDraws
from leadre.serve.catalogue import importer
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.events.erased import ErasedUsers
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.manage import auth
from leadre.serve.paths import StatePaths
from leadre.store import open_store
from leadre.store.contract import EVERYBODY, StoredList

LISTED = 200  # ads for whoever is not known


def fill(paths: StatePaths, tables: Artifact) -> None:
    """Make what is missing in the state folder; what is there stays as it is."""
    paths.folder.mkdir(parents=True, exist_ok=True)
    TokenKeys.open(paths.keys)
    ExplorationDraws.open(paths.draws)
    ErasedUsers(paths.erased)
    records = ManageDatabase(paths.book)
    try:
        if not CampaignStore(records).ads(limit=1):
            import polars as pl

            campaigns, ads = importer.read(pl.read_parquet(tables.path / "ads.parquet"), importer.ImportDefaults())
            added = CampaignStore(records).add(campaigns, ads)
            counts = f"{added.campaigns:,} campaigns with {added.ads:,} ads"
            progress.say(f"serve: {counts} from {tables.path}, {len(added.refused):,} ads refused")
    finally:
        records.close()
    store = open_store(paths.store)
    try:
        if store.read_list(EVERYBODY) is None:
            version = store.versions().current or f"context-{tables.hash[:12]}"
            store.put_lists(version, {EVERYBODY: popular(tables, version)})
            store.switch(version)
    finally:
        store.close()


def popular(tables: Artifact, version: str) -> StoredList:
    """The ads that most users acted on, live or not: the book knows which may be shown."""
    from leadre.data import histories
    from leadre.generate.lists import profiles as remembered

    logs = histories.load(tables)
    now_us = int(logs.at_us_E.max(initial=-1)) + 1
    return remembered.popular(logs, now_us, np.arange(len(logs.ads), dtype=np.int32), version, LISTED)


def make_key(paths: StatePaths) -> None:
    """An operator's key where none is in force, shown this once: whoever reads our words may do everything."""
    records = ManageDatabase(paths.book)
    try:
        keys = auth.ApiKeys(records)
        if not keys.have_operator():
            _, secret = keys.create("first start", time.time_ns() // 1000)
            progress.say(f"serve: an operator's key, shown only now: {secret}")
    finally:
        records.close()


def register(paths: StatePaths, origins: Sequence[str]) -> list[str]:
    """Let the pages of these origins ask for bids, besides those that may already: all of them. InputError for none."""
    records = ManageDatabase(paths.book)
    try:
        return auth.put_origins(records, [*auth.read_origins(records.connection), *origins])
    finally:
        records.close()


def check_exposure(paths: StatePaths, hosts: Sequence[str]) -> None:
    """InputError where a server would listen to other machines before any operator's key exists."""
    records = ManageDatabase(paths.book)
    try:
        for host in hosts:
            auth.check_exposure(host, auth.ApiKeys(records))
    finally:
        records.close()
