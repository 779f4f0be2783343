"""A worker's access to users."""

from __future__ import annotations

from leadre.clock import ManualClock
from leadre.serve.bidding.user_store import UserStore
from leadre.store import open_store
from leadre.store.contract import Cap


def test_user_who_was_erased_meanwhile_is_not_written(tmp_path):
    """The request began before the erasure, and reserves after the store has removed the user."""
    store = open_store(f"lmdb:{tmp_path / 'lists'}")
    erased = set()
    users = UserStore(store, ManualClock(wall_us=1_000_000), erased.__contains__)
    cap = Cap("c1", 0, 3)
    assert users.reserve("user-4711", cap, now_us=1_000_000, until_us=2_000_000) != ""
    erased.add("user-4711")
    store.erase("user-4711")
    assert users.reserve("user-4711", cap, now_us=1_000_000, until_us=2_000_000) == ""
    store.close()
    assert all(b"user-4711" not in path.read_bytes() for path in tmp_path.rglob("*.mdb"))
