"""Batch leases, replaced workers and retries of a store that is down."""

from pathlib import Path

import pytest

from leadre import progress
from leadre.errors import ShardError, StoreDown
from leadre.generate.lists import job as lists
from leadre.generate.lists.leases import BatchLeases
from leadre.generate.lists.retry import retry


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    monkeypatch.setattr(progress, "say", lambda text: None)


def test_batch_is_leased_to_one_worker_and_done_once(tmp_path):
    first, second = (BatchLeases(tmp_path / "leases.db", "v") for _ in range(2))
    first.start(3)
    assert [first.take("a", 0, 10), second.take("b", 0, 10), first.take("a", 0, 20), second.take("b", 9, 20)] == [
        0,
        1,
        2,
        None,
    ]
    assert first.finish(0, 5) and not second.finish(0, 6)
    assert second.take("b", 10, 20) == 1  # its lease ran out
    assert first.finish(1, 11) and not second.finish(1, 12) and first.left() == 1
    second.start(3)
    assert first.take("a", 11, 20) == 2
    other = BatchLeases(tmp_path / "leases.db", "another")
    other.start(1)
    assert (other.left(), first.left()) == (1, 1)
    for leases in (first, second, other):
        leases.close()


def job(tmp_path):
    nowhere = dict.fromkeys(("tables", "codebook", "model", "erased"), Path("nowhere"))
    numbers = {"now_us": 0, "since_us": None, "live_days": 1, "beam": 1, "top": 1, "batch": 1, "seed": 0, "threads": 1}
    leases = {"leases": tmp_path / "leases.db", "lease_s": 9.0}
    return lists.ListJob(**nowhere, **numbers, **leases, store=f"lmdb:{tmp_path}", version="v", wait_s=0.0)


def test_dead_workers_are_replaced_until_three_in_a_row_finish_nothing(tmp_path, monkeypatch):
    generations = []
    finishes = iter([False, True, False, False, True, False, False, False])

    def killed(*_):
        generations.append(1)
        if next(finishes):
            leases = BatchLeases(tmp_path / "leases.db", "v")
            assert leases.finish(leases.take("w", 0, 1), 0)
            leases.close()
        raise ShardError("a worker died")

    monkeypatch.setattr(lists.scale, "map_shards", killed)
    with pytest.raises(ShardError):
        lists.generate(job(tmp_path), ["a", "b", "c"], 2)
    assert len(generations) == 8


def test_retry_ends_after_the_wait():
    calls = []

    def down():
        calls.append(1)
        raise StoreDown("down")

    with pytest.raises(StoreDown):
        retry(down, 0.6)
    assert len(calls) >= 3
    assert retry(lambda: 7, 0) == 7
