"""Versions of lists in the store: write a version, publish it with lists carried over, drop old ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from leadre.store import erased
from leadre.store.contract import Store, StoredList

PAGE = 1000


def put(store: Store, version: str, lists: Mapping[str, StoredList], erased_file: Path) -> None:
    """Write lists, except for users in the file of `leadre.store.erased`."""
    with erased.locked(erased_file) as is_erased:
        store.put_lists(version, {user: stored for user, stored in lists.items() if not is_erased(user)})


def publish(store: Store, version: str, base: str | None, keep: int, erased_file: Path) -> int:
    """Make a version current, with the lists that it lacks copied from ``base``; drop all but the newest ``keep``.

    Returns how many lists were copied.
    """
    carried = 0 if base is None else _carry(store, base, version, erased_file)
    store.switch(version)
    others = [name for name in store.versions().names if name != version]
    for old in others[: max(0, len(others) + 1 - keep)]:
        store.drop(old)
    return carried


def _carry(store: Store, base: str, version: str, erased_file: Path) -> int:
    """Copy the lists of users without one in ``version`` from ``base``; a list keeps the version that generated it."""
    has_list = {user for user, _ in store.scan(version)}
    page: dict[str, StoredList] = {}
    carried = 0
    for user, stored in store.scan(base):
        if user not in has_list:
            page[user] = stored
        if len(page) == PAGE:
            put(store, version, page, erased_file)
            carried += len(page)
            page = {}
    put(store, version, page, erased_file)
    return carried + len(page)
