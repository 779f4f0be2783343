"""Erasures of users: requested at the management API, and finished even if a process dies meanwhile.

A request is on the disk before the writer hides the user. One pass over log and tables serves all users that wait; a
start continues with those that an earlier process left. The file holds their IDs, as their bytes must be found, and
loses them when the pass ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future

import msgspec

from leadre import telemetry
from leadre.errors import LeadreError, PeerError, StorageError
from leadre.serve.events import durable
from leadre.serve.paths import StatePaths
from leadre.store import erased
from leadre.store.contract import Store

PROPAGATE_S = 1.0  # within which every bid worker reads the erased users again
RETRY_S = 5.0  # after a pass that failed

Removed = Mapping[str, int]  # store -> number of records removed


class Erasures:
    """The erasures of one bidder. ``hide``: lets the writer name a user in no further record and reply."""

    def __init__(self, paths: StatePaths, store: Store, hide: Callable[[str], None]) -> None:
        self._paths = paths
        self._store = store
        self._hide = hide
        self._changed = threading.Condition()
        self._hidden: set[str] = set()
        self._waiting = _read(paths)  # users in the order of their requests
        self._results: dict[str, list[Future[Removed]]] = {}
        self._retry_s = 0.0
        telemetry.USERS_TO_ERASE.set(len(self._waiting))

    def erase(self, user_id: str) -> Removed:
        """Erase a user; returns when no file names the user. Raises what the pass raises, which is then repeated."""
        result: Future[Removed] = Future()
        with self._changed:
            if user_id not in self._waiting:
                self._save([*self._waiting, user_id])
        self._hide_once(user_id)
        with self._changed:
            self._results.setdefault(user_id, []).append(result)
            if user_id not in self._waiting:  # a pass has ended since
                self._save([*self._waiting, user_id])
            self._changed.notify()
        return result.result()

    def run(self) -> None:
        """Wait for requests, then make one pass for all of them. Raises what the pass raises, after their replies."""
        with self._changed:
            self._changed.wait_for(lambda: self._results, self._retry_s if self._waiting else None)
            users = list(self._waiting)
            results = self._results
            self._results = {}
        self._retry_s = RETRY_S
        try:
            removed = self._pass(users)
            with self._changed:
                self._save([user for user in self._waiting if user not in removed or user in self._results])
            self._hidden -= set(users)
            for user, of_user in results.items():
                for result in of_user:
                    result.set_result(removed[user])
        except LeadreError as error:
            _fail(results, error)
            raise
        finally:
            _fail(results, PeerError("the erasure failed and is repeated; nothing names the user meanwhile"))

    def _pass(self, users: Collection[str]) -> dict[str, Removed]:
        """Remove users from log and tables, then from the store: a late event would bring a profile back."""
        from leadre.serve.events import erasure, suppression  # polars, which nothing else here needs

        with erased.locked(self._paths.erased):
            for user in users:
                self._hide_once(user)
            suppression.renew(self._paths)
            counts = erasure.erase(self._paths, users)
            time.sleep(PROPAGATE_S)
            stored = {
                user: sum(item is not None for item in (self._store.read_profile(user), self._store.read_list(user)))
                for user in users
            }
            self._store.erase(*users)
        return {user: {"events": counts[user], "store": stored[user]} for user in users}

    def _hide_once(self, user_id: str) -> None:
        if user_id not in self._hidden:
            self._hide(user_id)
            self._hidden.add(user_id)

    def _save(self, users: list[str]) -> None:
        """Replace the list of waiting users, on the disk first. StorageError if the disk refuses."""
        durable.replace(self._paths.to_erase, msgspec.json.encode(users), mode=0o600)
        self._waiting = users
        telemetry.USERS_TO_ERASE.set(len(users))


def _fail(results: Mapping[str, list[Future[Removed]]], error: LeadreError) -> None:
    """End the requests that have no result yet."""
    for of_user in results.values():
        for result in of_user:
            if not result.done():
                result.set_exception(error)


def _read(paths: StatePaths) -> list[str]:
    try:
        return msgspec.json.decode(paths.to_erase.read_bytes(), type=list[str]) if paths.to_erase.exists() else []
    except msgspec.DecodeError as error:
        raise StorageError(f"{paths.to_erase}: damaged ({error}); delete it and request its erasures again") from error
